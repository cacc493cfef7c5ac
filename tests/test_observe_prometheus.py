"""Prometheus: every number scraped as it is, over outages and over connections that come and go."""

from __future__ import annotations

import gc
import os
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import gevent
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import gnats
from gnats.contrib.prometheus import NatsCollector
from gnats.metrics import METERS
from gnats.testing import NatsServer, wait_until

pytestmark = pytest.mark.frameworks

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def metrics(registry: CollectorRegistry) -> NatsCollector:
    return NatsCollector(registry)


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Sample name and label values -> value, through the text that a server would be sent."""
    text = generate_latest(registry).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, *s.labels.values()): s.value for s in samples}
    assert len(found) == len(samples), "a series twice"
    return found


def test_names_and_labels(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    assert scrape(registry) == {}
    with gnats.connect(shared_nats_server.url, name="shop", observer=metrics) as conn:
        sub = conn.subscribe("prometheus.names")
        conn.publish("prometheus.names", b"12345")
        conn.flush()
        sub.next_msg(1.0)
        wait_until(lambda: ("gnats_events_total", "shop", "connected") in scrape(registry))
        found = scrape(registry)
        stats = conn.stats
    assert found["gnats_accepted_total", "shop"] == 1
    assert found["gnats_out_bytes_total", "shop"] == found["gnats_in_bytes_total", "shop"] == 5
    assert found["gnats_in_msgs_total", "shop"] == found["gnats_connects_total", "shop"] == 1
    assert found["gnats_attempts_total", "shop"] == stats.attempts
    assert found["gnats_ready", "shop"] == 1
    assert found["gnats_outage_seconds", "shop"] == 0
    assert found["gnats_rtt_seconds", "shop"] > 0
    assert found["gnats_buffered_bytes", "shop"] == 0
    assert found["gnats_events_total", "shop", "connected"] == 1
    assert len([one for one in found if len(one) == 2]) == len(METERS)


def test_help_and_type(registry: CollectorRegistry, metrics: NatsCollector) -> None:
    lines = generate_latest(registry).decode().splitlines()
    assert "# TYPE gnats_accepted_total counter" in lines
    assert "# HELP gnats_accepted_total Messages that publish took" in lines
    assert "# TYPE gnats_rtt_seconds gauge" in lines


def test_the_docs_name_every_series(metrics: NatsCollector) -> None:
    page = Path(__file__).parent.parent / "docs" / "observability.md"
    rows = re.findall(r"^\| `(gnats_\w+)` \| (\w+) \|", page.read_text(encoding="utf-8"), re.M)
    families = [(f.name + "_total" * (f.type == "counter"), f.type) for f in metrics.describe()]
    assert rows == families


def test_a_prefix_and_no_registry(shared_nats_server: NatsServer) -> None:
    registry = CollectorRegistry()
    metrics = NatsCollector(registry=None, prefix="bus")
    with gnats.connect(shared_nats_server.url) as conn:
        metrics.watch(conn)
        metrics.watch(conn)
        assert scrape(registry) == {}
        registry.register(metrics)
        assert scrape(registry)["bus_ready", "1"] == 1


def test_one_collector_is_enough(registry: CollectorRegistry, metrics: NatsCollector) -> None:
    with pytest.raises(ValueError, match="gnats_accepted"):
        NatsCollector(registry)
    NatsCollector(registry, prefix="other")


def test_an_outage(
    nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    conn = gnats.connect(nats_server.url, name="shop", observer=metrics, **FAST)
    conn.publish("prometheus.outage", b"1")
    conn.flush()
    before = scrape(registry)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    conn.publish("prometheus.outage", b"2")
    wait_until(lambda: scrape(registry)["gnats_attempts_total", "shop"] > 1)
    during = scrape(registry)
    assert during["gnats_ready", "shop"] == 0
    assert during["gnats_outage_seconds", "shop"] > 0
    assert during["gnats_buffered", "shop"] == 1
    assert during["gnats_accepted_total", "shop"] == 2
    assert during["gnats_disconnects_total", "shop"] == 1
    assert during["gnats_reconnects_total", "shop"] == 0
    nats_server.restart()
    conn.wait_for_status("connected", timeout=10.0)
    conn.flush()
    wait_until(lambda: ("gnats_events_total", "shop", "reconnected") in scrape(registry))
    after = scrape(registry)
    assert after["gnats_ready", "shop"] == 1
    assert after["gnats_outage_seconds", "shop"] == after["gnats_buffered", "shop"] == 0
    assert after["gnats_reconnects_total", "shop"] == after["gnats_disconnects_total", "shop"] == 1
    assert after["gnats_events_total", "shop", "disconnected"] == 1
    for earlier, later in ((before, during), (during, after)):
        for key, value in earlier.items():
            assert not key[0].endswith("_total") or later[key] >= value, key
    conn.close()
    assert scrape(registry)["gnats_ready", "shop"] == 0


def test_several_at_once(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    conns = [
        gnats.connect(shared_nats_server.url, observer=metrics, name=name)
        for name in ("shop", "", "shop", "", "shop-2")
    ]
    for number, conn in enumerate(conns):
        metrics.watch(conn)
        for _ in range(number + 1):
            conn.publish("prometheus.several")
    found = scrape(registry)
    accepted = {k[1]: v for k, v in found.items() if k[0] == "gnats_accepted_total"}
    assert accepted == {"shop": 1, "1": 2, "shop-2": 3, "2": 4, "shop-2-2": 5}
    for conn in conns:
        conn.close()


def test_a_name_is_taken_again(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    kept = []
    for number in range(1, 4):
        conn = gnats.connect(shared_nats_server.url, observer=metrics, name="shop")
        kept.append(conn)  # closed, but not gone
        conn.publish("prometheus.again")
        conn.flush()
        wait_until(lambda: ("gnats_ready", "shop") in scrape(registry))
        found = scrape(registry)
        assert found["gnats_accepted_total", "shop"] == number
        assert found["gnats_connects_total", "shop"] == number
        assert found["gnats_ready", "shop"] == 1
        conn.close()
        wait_until(
            lambda n=number: scrape(registry).get(("gnats_events_total", "shop", "closed")) == n
        )
    assert {key[1] for key in scrape(registry)} == {"shop"}


def test_what_is_gone_stays_counted(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    def live() -> weakref.ref[gnats.Connection]:
        with gnats.connect(shared_nats_server.url, name="brief", observer=metrics) as conn:
            conn.publish("prometheus.gone", b"123")
        return weakref.ref(conn)

    ref = live()  # nobody scraped meanwhile
    wait_until(lambda: gc.collect() >= 0 and ref() is None)
    found = scrape(registry)
    assert found["gnats_accepted_total", "brief"] == 1
    assert found["gnats_out_bytes_total", "brief"] == 3
    assert found["gnats_events_total", "brief", "closed"] == 1
    assert ("gnats_ready", "brief") not in found
    live()
    assert scrape(registry)["gnats_accepted_total", "brief"] == 2


def test_a_native_thread_scrapes(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    told: list[float] = []
    with gnats.connect(shared_nats_server.url, name="shop", observer=metrics) as conn:
        metrics.watch(conn)
        pool = gevent.get_hub().threadpool
        jobs = [pool.spawn(scrape, registry) for _ in range(20)]
        for job in jobs:
            conn.publish("prometheus.thread")
            told.append(job.get()["gnats_accepted_total", "shop"])
        conn.flush()
    assert len(told) == 20
    assert 0 <= min(told) <= max(told) <= 20


def test_a_child_counts_from_zero(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    conn = gnats.connect(shared_nats_server.url, name="shop", observer=metrics)
    conn.publish("prometheus.fork")
    conn.flush()
    wait_until(lambda: ("gnats_events_total", "shop", "connected") in scrape(registry))
    metrics._books._process.lock.acquire()  # as a thread that scrapes would have it just now
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = scrape(registry)
            conn.publish("prometheus.fork")
            numbers = (
                found["gnats_accepted_total", "shop"],
                scrape(registry)["gnats_accepted_total", "shop"],
                found.get(("gnats_events_total", "shop", "connected")),
            )
            os.write(writing, repr(numbers).encode())
        finally:
            os._exit(0)
    metrics._books._process.lock.release()
    os.close(writing)
    assert os.read(reading, 100) == b"(0.0, 1.0, None)"
    os.close(reading)
    os.waitpid(pid, 0)
    assert scrape(registry)["gnats_accepted_total", "shop"] == 1
    conn.close()


def test_connections_in_many_threads(
    shared_nats_server: NatsServer, registry: CollectorRegistry, metrics: NatsCollector
) -> None:
    def work() -> None:
        with gnats.connect(shared_nats_server.url, name="many", observer=metrics) as conn:
            metrics.watch(conn)
            for _ in range(50):
                conn.publish("prometheus.many")

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scrape(registry)
        gevent.sleep(0.005)
    found = scrape(registry)
    accepted = sum(v for k, v in found.items() if k[0] == "gnats_accepted_total")
    closed = sum(v for k, v in found.items() if k[0::2] == ("gnats_events_total", "closed"))
    assert (accepted, closed) == (250, 5)
