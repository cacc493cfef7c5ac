"""Large numbers and long storms. The heavy ones are marked slow; what they measure they print."""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import Error
from gnats.testing import FakeClient, NatsServer, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}

# What an idle subscription may weigh, in bytes.
IDLE_LIMIT = 1536


def living_greenlets() -> int:
    return sum(1 for one in gc.get_objects() if isinstance(one, gevent.Greenlet) and not one.dead)


def held_by_server(server: NatsServer) -> int:
    (client,) = server.connz()["connections"]
    return int(client["subscriptions"])


# -- many subscriptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_the_weight_of_an_idle_subscription(nats_server: NatsServer, used: bool) -> None:
    """All that its existence costs this process, its place in the registry included."""
    count = 5000
    conn = gnats.connect(nats_server.url, **FAST)
    got = [0]

    def handler(msg: gnats.Msg) -> None:
        got[0] += 1

    conn.subscribe("warm", cb=handler)
    conn.publish("warm")
    conn.flush()
    subjects = [f"subject.number.{number}" for number in range(count)]
    gc.collect()
    greenlets = living_greenlets()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        subs = [conn.subscribe(subject, cb=handler) for subject in subjects]
        conn.flush()
        if used:
            for subject in subjects:
                conn.publish(subject)
            conn.flush()
            wait_until(lambda: got[0] == count + 1)
            gevent.sleep(0)
            gevent.sleep(0)
        gc.collect()
        weight = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    print(f"an idle subscription weighs {weight:.0f} bytes")  # noqa: T201
    assert living_greenlets() == greenlets
    assert len(subs) == count
    assert weight <= IDLE_LIMIT
    conn.close()


@pytest.mark.slow
def test_twenty_thousand_subscriptions_come_back(nats_server: NatsServer) -> None:
    count = 20_000
    conn = gnats.connect(nats_server.url, **FAST)
    got: dict[str, int] = {}

    def handler(msg: gnats.Msg) -> None:
        got[msg.subject] = got.get(msg.subject, 0) + 1

    subjects = [f"many.{number}" for number in range(count)]
    for subject in subjects:
        conn.subscribe(subject, cb=handler)
    conn.flush()
    assert held_by_server(nats_server) == count
    for turn in range(1, 4):
        nats_server.kill()
        wait_until(lambda turn=turn: conn.stats.disconnects == turn)
        conn.publish(subjects[0])
        nats_server.start()
        began = monotonic()
        wait_until(lambda turn=turn: conn.stats.reconnects == turn)
        conn.flush()
        took = monotonic() - began
        print(f"{count} subscriptions restored in {took * 1000:.0f} ms")  # noqa: T201
        assert held_by_server(nats_server) == count
        assert got.pop(subjects[0]) == 1
        for subject in subjects:
            conn.publish(subject)
        conn.flush()
        wait_until(lambda: len(got) == count)
        assert set(got.values()) == {1}
        got.clear()
    assert conn.stats.uncertain == 0
    conn.close()


# -- long storms ----------------------------------------------------------------------------------


class Chaos:
    """Kill, stop, continue, restart at random, while publishers, requests and flushes go on.

    A message may be lost with a server, and the books then say so as ``uncertain``: our own
    subscription is on the same link, so what a PONG confirmed was delivered before that PONG. None
    may come twice, none that is certain out of order, and when peace comes everything works.
    """

    def __init__(self, rng: random.Random, servers: list[NatsServer]) -> None:
        self.rng = rng
        self.servers = servers
        self.got: list[int] = []
        self.accepted: list[int] = []
        self.number = 0
        self.wrong: list[str] = []
        self.going = True
        self.conn = gnats.connect(
            [server.url for server in servers],
            ping_interval=0.2,
            max_pings_out=1,
            write_timeout=0.5,
            connect_timeout=0.3,
            reconnect_buf_size=2_000_000,
            **FAST,
        )
        self.conn.subscribe("storm", cb=lambda msg: self.got.append(number_of(msg.data)))
        self.conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))

    def publish_one(self) -> None:
        self.number += 1
        payload = b"%d:" % self.number + b"x" * self.rng.choice([0, 10, 20_000])
        number = self.number
        self.conn.publish("storm", payload)
        self.accepted.append(number)

    def publish(self) -> None:
        while self.going:
            try:
                self.publish_one()
            except gnats.errors.OutboundBufferLimitError:
                gevent.sleep(0.01)
            if self.rng.random() < 0.2:
                gevent.sleep(0.001)

    def request(self) -> None:
        while self.going:
            question = b"%d" % self.rng.randrange(1 << 40)
            try:
                if self.conn.request("echo", question, timeout=0.5).data != question:
                    self.wrong.append("a wrong reply")
            except Error:
                gevent.sleep(0.01)

    def flush(self) -> None:
        while self.going:
            try:
                self.conn.flush(1)
            except Error:
                gevent.sleep(0.01)

    def audit(self) -> None:
        while self.going:
            stats = self.conn.stats
            if stats.accepted != stats.sent + stats.uncertain + stats.dropped + stats.buffered:
                self.wrong.append(f"{stats}")
            gevent.sleep(0.001)

    def hurt(self, server: NatsServer) -> None:
        fault = self.rng.choice(["kill", "kill", "pause", "restart", "force"])
        if fault == "kill":
            server.kill()
        elif fault == "force":
            self.conn.force_reconnect()
        elif not server.is_running:
            server.start()
        elif server.is_paused:
            server.resume()
        elif fault == "pause":
            server.pause()
        else:
            server.restart()

    def heal(self) -> None:
        for server in self.servers:
            if server.is_paused:
                server.resume()
            server.start()

    def rage(self, seconds: float) -> None:
        jobs = (self.publish, self.request, self.request, self.flush, self.audit)
        crew = [gevent.spawn(job) for job in jobs]
        until = monotonic() + seconds
        while monotonic() < until:
            self.hurt(self.rng.choice(self.servers))
            gevent.sleep(self.rng.choice([0, 0.02, 0.1, 0.3]))
        self.heal()
        wait_until(lambda: settled(self.conn), 10)
        self.going = False
        gevent.joinall(crew, 10)
        assert all(one.successful() for one in crew)

    def reckon(self) -> None:
        self.conn.flush()
        for _ in range(1000):
            self.publish_one()
            gevent.sleep(0)
        self.conn.flush()
        wait_until(lambda: self.got[-1:] == [self.number])
        stats = self.conn.stats
        print(  # noqa: T201
            f"{stats.disconnects} losses, {stats.attempts} attempts, {len(self.accepted)} "
            f"published, {len(self.got)} received, {stats.uncertain} uncertain, {stats.replayed} "
            "replayed"
        )
        assert self.wrong == []
        assert len(self.got) == len(set(self.got))  # none twice
        # A server that was stopped with our bytes in its kernel may still publish them when it
        # goes on, behind newer ones: those are uncertain. Nothing else is out of order.
        newest = 0
        late = [number for number in self.got if (newest := max(newest, number)) > number]
        assert len(late) <= stats.uncertain
        assert set(self.got) <= set(self.accepted)
        assert self.got[-1000:] == self.accepted[-1000:]
        assert len(self.accepted) - len(self.got) <= stats.uncertain
        assert stats.buffered == stats.dropped == 0
        assert stats.accepted == stats.sent + stats.uncertain
        assert stats.errors_received == 0
        assert self.conn._requests.waiting == 0
        self.conn.close()


def number_of(payload: bytes) -> int:
    return int(payload.partition(b":")[0])


def settled(conn: gnats.Connection) -> bool:
    try:
        return conn.request("echo", b"peace", timeout=1).data == b"peace"
    except Error:
        return False


def test_a_short_chaos(rng: random.Random) -> None:
    with NatsServer() as one, NatsServer() as two:
        chaos = Chaos(rng, [one, two])
        chaos.rage(2)
        chaos.reckon()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_long_chaos(rng: random.Random) -> None:
    with NatsServer() as one, NatsServer() as two, NatsServer() as three:
        chaos = Chaos(rng, [one, two, three])
        chaos.rage(45)
        chaos.reckon()


def cutter(rng: random.Random, links: int) -> Callable[[FakeClient], None]:
    """Each of so many links is cut after a random number of bytes, with or without PONGs."""

    def cut(client: FakeClient) -> None:
        client.handshake()
        if client.number >= links:
            client.serve()
            return
        left = rng.choice([rng.randrange(200), rng.randrange(20_000), rng.randrange(200_000)])
        known = len(client.frames)
        while left > 0:
            step = min(left, rng.randrange(1, 20_000))
            client.read_exactly(step)
            left -= step
            pings = sum(frame.op == "PING" for frame in client.frames[known:])
            known = len(client.frames)
            if pings and rng.random() < 0.8:
                client.send(b"PONG\r\n" * pings)
        if rng.random() < 0.5:
            client.reset()

    return cut


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_links_cut_at_random_bytes(rng: random.Random, fake_server: Any, keep: bool) -> None:
    """What every one of 300 servers took is put together and compared."""
    links = 300
    server = fake_server(cutter(rng, links), rcvbuf=4096)
    conn = gnats.connect(server.url, replay_unconfirmed=keep, **{**FAST, "reconnect_wait": 0.001})
    subs = [conn.subscribe(f"s.{number}") for number in range(10)]
    count = 0
    while len(server.clients) <= links:
        try:
            conn.publish("p", b"%d:" % count + b"x" * rng.choice([0, 50, 500]))
        except gnats.errors.OutboundBufferLimitError:
            gevent.sleep(0.001)
        else:
            count += 1
        if rng.random() < 0.2:
            gevent.sleep(0)
    wait_until(lambda: conn.is_connected)
    assert conn.flush(20)
    arrived = [list(map(number_of, client.payloads())) for client in server.clients]
    for client, numbers in zip(server.clients, arrived):
        assert client.broken is None
        if numbers:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        asked = [frame.subject for frame in client.frames if frame.op == "SUB"]
        assert asked == [sub.subject for sub in subs][: len(asked)]
    seen = [number for numbers in arrived for number in numbers]
    stats = conn.stats
    print(f"{links} links, {len(seen)} arrivals of {count}, {stats}")  # noqa: T201
    assert stats.accepted == count == stats.sent + stats.uncertain
    assert stats.buffered == stats.dropped == 0
    if keep:
        assert set(seen) == set(range(count))
        assert stats.uncertain == 0
    else:
        assert seen == sorted(set(seen))
        assert count - len(seen) <= stats.uncertain
    conn.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_many_losses_leave_no_memory_behind(
    fake_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "gnats")  # pytest keeps every record
    server = fake_server(serve)
    conn = gnats.connect(server.url, **{**FAST, "reconnect_wait": 0.0})
    for number in range(100):
        conn.subscribe(f"s.{number}")

    def lose(times: int) -> None:
        for _ in range(times):
            before = conn.stats.reconnects
            conn.force_reconnect()
            wait_until(lambda before=before: conn.stats.reconnects > before)
            conn.publish("p", b"x" * 100)
            conn.flush()
        server.clients.clear()
        gc.collect()

    lose(50)
    greenlets = living_greenlets()
    tracemalloc.start()
    try:
        lose(50)
        before = tracemalloc.get_traced_memory()[0]
        lose(300)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    print(f"300 losses: {grown} bytes more")  # noqa: T201
    assert grown < 100_000
    assert living_greenlets() == greenlets
    conn.close()
