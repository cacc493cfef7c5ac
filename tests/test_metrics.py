"""What can be measured: every number, told as it is; every event, told once and in order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import gnats
from gnats import errors
from gnats.metrics import METERS
from gnats.testing import NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


class Notebook:
    """An observer that writes everything down."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.events: list[tuple[str, Any]] = []
        self.conns: set[gnats.Connection] = set()

    def counter(self, name: str, value: int) -> None:
        self.counters[name] = value

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def event(self, conn: gnats.Connection, name: str, facts: Any) -> None:
        self.conns.add(conn)
        self.events.append((name, dict(facts)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def test_the_table() -> None:
    names = [meter.name for meter in METERS]
    assert len(set(names)) == len(names)
    assert {meter.kind for meter in METERS} == {"counter", "gauge"}
    assert all(meter.description and meter.unit for meter in METERS)
    counters = {meter.name for meter in METERS if meter.kind == "counter"}
    assert counters <= {field.name for field in dataclasses.fields(gnats.Stats)}


def test_every_number_is_told(shared_nats_server: NatsServer) -> None:
    book = Notebook()
    with gnats.connect(shared_nats_server.url) as conn:
        sub = conn.subscribe("metrics.a")
        for _ in range(3):
            conn.publish("metrics.a", b"12345")
        conn.flush()
        assert sub.next_msg().data == b"12345"
        conn.observe(book)
        stats = conn.stats
    assert [*book.counters, *book.gauges] == [meter.name for meter in METERS]
    assert (book.counters["accepted"], book.counters["out_bytes"]) == (3, 15)
    assert (book.counters["in_msgs"], book.counters["connects"]) == (3, 1)
    for name, value in book.counters.items():
        assert value == getattr(stats, name)
    assert (book.gauges["ready"], book.gauges["buffered"], book.gauges["outage"]) == (1.0, 0, 0.0)
    assert book.gauges["rtt"] > 0
    assert book.events == []


def test_no_counter_ever_falls(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    seen: dict[str, int] = {}
    for _ in range(3):
        for number in range(200):
            conn.publish("metrics.fall", b"%d" % number)
        nats_server.kill()
        conn.wait_for_status("reconnecting", timeout=5.0)
        check_growth(conn, seen)
        nats_server.restart()
        conn.wait_for_status("connected", timeout=10.0)
        conn.flush()
        check_growth(conn, seen)
    conn.close()
    check_growth(conn, seen)
    assert seen["disconnects"] == 3


def check_growth(conn: gnats.Connection, seen: dict[str, int]) -> None:
    book = Notebook()
    conn.observe(book)
    assert all(value >= seen.get(name, 0) for name, value in book.counters.items())
    seen.update(book.counters)


def test_every_event_is_told_behind_its_callback(nats_server: NatsServer) -> None:
    book = Notebook()
    order: list[str] = []

    class Both(Notebook):
        def event(self, conn: gnats.Connection, name: str, facts: Any) -> None:
            order.append(f"event {name}")
            book.event(conn, name, facts)

    conn = gnats.connect(
        nats_server.url,
        observer=Both(),
        connected_cb=lambda conn: order.append("callback connected"),
        disconnected_cb=lambda conn: order.append("callback disconnected"),
        **FAST,
    )
    wait_until(lambda: "connected" in book.names)
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    nats_server.restart()
    conn.wait_for_status("connected", timeout=10.0)
    nats_server.lame_duck()
    wait_until(lambda: "lame_duck" in book.names, timeout=10.0)
    conn.close()
    wait_until(lambda: book.names[-1] == "closed")
    lives = [name for name in book.names if name not in ("error", "status")]
    assert lives[:3] == ["connected", "disconnected", "reconnected"]
    assert lives.count("closed") == 1
    moves = [(str(f["old"]), str(f["new"])) for name, f in book.events if name == "status"]
    assert moves[:4] == [
        ("disconnected", "connecting"),
        ("connecting", "connected"),
        ("connected", "reconnecting"),
        ("reconnecting", "connected"),
    ]
    facts = dict(book.events)
    assert isinstance(facts["disconnected"]["error"], errors.Error)
    assert isinstance(facts["error"]["error"], errors.Error)
    assert book.conns == {conn}
    at = order.index("callback connected")
    assert order[at + 1] == "event connected"


def test_an_observer_that_raises_harms_nothing(shared_nats_server: NatsServer) -> None:
    told: list[Exception] = []

    class Broken(Notebook):
        def event(self, conn: gnats.Connection, name: str, facts: Any) -> None:
            super().event(conn, name, facts)
            if name == "connected":
                raise ValueError("no room on the dashboard")

    book = Broken()
    conn = gnats.connect(
        shared_nats_server.url, observer=book, error_cb=lambda conn, exc: told.append(exc)
    )
    wait_until(lambda: bool(told))
    assert str(told[0]) == "no room on the dashboard"
    conn.close()
    wait_until(lambda: book.names[-1] == "closed")


@pytest.mark.parametrize("observer", [object(), print, "x"])
def test_what_is_no_observer(observer: Any) -> None:
    with pytest.raises(errors.OptionError, match="observer"):
        gnats.Connection(observer=observer)
