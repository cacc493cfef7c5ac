"""Many greenlets, time-outs and kills that strike anywhere, callbacks that misbehave, the hub.

A fake server parses strictly what is on the wire; a real one counts what it understood.
"""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import AsyncResult, Event

import gnats
from gnats.errors import (
    ConnectionClosedError,
    Error,
    NoRespondersError,
    OutboundBufferLimitError,
    TimeoutError,
)
from gnats.testing import FakeClient, NatsServer, message_frame, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


# -- struck by time-outs and kills ---------------------------------------------------------------


class Struck(gevent.Timeout):
    """Ours, so that no other time-out is taken for it."""


class Storm:
    """Greenlets that do everything there is to do, while time-outs and kills rain on them."""

    def __init__(self, conn: gnats.Connection, rng: random.Random) -> None:
        self.conn = conn
        self.rng = rng
        self.done = 0
        self.wrong: list[str] = []
        self.struck = 0
        self.outcomes: dict[str, int] = {}
        self.published = 0

    def publish(self, who: int) -> None:
        self.conn.publish(f"storm.{who}", b"%d" % self.done + b"x" * self.rng.randrange(3000))

    def publish_much(self, who: int) -> None:
        self.conn.publish(f"storm.{who}", b"y" * 200_000, headers={"Who": str(who)})

    def request(self, who: int) -> None:
        question = b"%d.%d" % (who, self.rng.randrange(1 << 30))
        answer = self.conn.request("echo", question, timeout=self.rng.choice([0.001, 0.05, 2]))
        if answer.data != question:
            self.wrong.append(f"asked {question!r}, was told {answer.data!r}")

    def request_many(self, who: int) -> None:
        question = b"%d.%d" % (who, self.rng.randrange(1 << 30))
        for answer in self.conn.request_many("echo", question, timeout=0.02, max_msgs=1):
            if answer.data != question:
                self.wrong.append(f"asked {question!r}, was told {answer.data!r}")

    def no_responders(self, who: int) -> None:
        try:
            self.conn.request("nobody.here", b"", timeout=2)
        except NoRespondersError:
            return
        self.wrong.append("nobody answered")

    def flush(self, who: int) -> None:
        self.conn.flush(self.rng.choice([0.001, 2]))

    def next_msg(self, who: int) -> None:
        with self.conn.subscribe(f"own.{who}") as sub:
            marker = b"%d" % self.rng.randrange(1 << 30)
            self.conn.publish(f"own.{who}", marker)
            got = sub.next_msg(self.rng.choice([0.001, 2])).data
            if got != marker:
                self.wrong.append(f"own.{who}: {got!r} for {marker!r}")

    def subscribe(self, who: int) -> None:
        with self.conn.subscribe(f"brief.{who}", cb=lambda msg: None, max_msgs=2):
            gevent.sleep(self.rng.choice([0, 0.001]))

    def run(self, who: int, until: int) -> None:
        actions: list[Callable[[int], None]] = [
            self.publish,
            self.publish,
            self.publish_much,
            self.request,
            self.request,
            self.request_many,
            self.no_responders,
            self.flush,
            self.next_msg,
            self.subscribe,
        ]
        while self.done < until:
            self.done += 1
            action = self.rng.choice(actions)
            outcome = "done"
            limit = Struck(self.rng.choice([0, 0.0001, 0.001, 0.01, 5]))
            limit.start()
            try:
                action(who)
                if self.rng.random() < 0.3:
                    gevent.sleep(0)
            except Struck as strike:
                if strike is not limit:
                    self.wrong.append("struck by a foreign time-out")
                outcome = "struck"
            except (TimeoutError, NoRespondersError, gnats.errors.BadSubscriptionError) as exc:
                outcome = type(exc).__name__
            finally:
                limit.close()
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def rage(self, operations: int, greenlets: int) -> None:
        """Run until *operations* were begun; kill somebody every now and then, and replace him."""
        crew = {who: gevent.spawn(self.run, who, operations) for who in range(greenlets)}
        while self.done < operations:
            gevent.sleep(self.rng.choice([0, 0.0005, 0.002]))
            who = self.rng.randrange(greenlets)
            crew[who].kill(block=self.rng.random() < 0.5)
            self.struck += 1
            crew[who] = gevent.spawn(self.run, who, operations)
        gevent.joinall(list(crew.values()), 30)
        for greenlet in crew.values():
            if greenlet.exception is not None:
                self.wrong.append(f"{greenlet.exception!r}")


def test_ten_thousand_operations_under_timeouts_and_kills(
    nats_server: NatsServer, rng: random.Random
) -> None:
    told: list[Exception] = []
    conn = gnats.connect(nats_server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
    conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))
    storm = Storm(conn, rng)
    storm.rage(10_000, 40)
    assert conn.flush(20)
    assert storm.wrong == []
    assert told == []
    stats = conn.stats
    assert stats.errors_received == stats.disconnects == stats.uncertain == stats.dropped == 0
    assert stats.accepted == stats.sent
    varz = nats_server.varz()
    assert varz["in_msgs"] == stats.accepted  # every frame whole, none twice, none lost
    # Nobody is left behind: only the echo and the inbox.
    wait_until(lambda: conn_subscriptions(nats_server) == 2)
    assert conn._requests.waiting == 0
    assert not conn._outbox._waiting
    assert sum(storm.outcomes.values()) + storm.struck >= 10_000
    print(storm.outcomes, f"{storm.struck} killed")  # noqa: T201
    conn.close()


def conn_subscriptions(server: NatsServer) -> int:
    return int(server.connz()["connections"][0]["subscriptions"])


def test_a_storm_over_links_that_break(fake_server: Any, rng: random.Random) -> None:
    """The same, while the server cuts the link at random: every byte on the wire parses."""

    def fickle(client: FakeClient) -> None:
        client.handshake()
        client.serve(timeout=rng.choice([0.01, 0.05, 0.1]))
        if rng.random() < 0.5:
            client.reset()

    server = fake_server(fickle, rcvbuf=8192)
    conn = gnats.connect(server.url, **FAST)
    storm = Storm(conn, rng)
    # Nobody answers here, and links come and go: what fails is no news, what is on the wire is.
    storm.no_responders = lambda who: None  # type: ignore[method-assign]
    run = storm.run

    def bear(who: int, until: int) -> None:
        while storm.done < until:
            try:
                run(who, until)
            except Error:
                gevent.sleep(0.001)

    storm.run = bear  # type: ignore[method-assign]
    storm.rage(3000, 30)
    server.handler = serve
    server.close_clients()
    wait_until(lambda: conn.is_connected)
    wait_until(lambda: flushes(conn), 10)
    assert storm.wrong == []
    for client in server.clients:
        assert client.broken is None
    stats = conn.stats
    assert stats.buffered == 0
    assert stats.accepted == stats.sent + stats.uncertain + stats.dropped
    arrived = sum(len(client.payloads()) for client in server.clients)
    assert stats.accepted - stats.uncertain <= arrived <= stats.accepted
    assert conn._requests.waiting == 0
    assert not conn._outbox._waiting
    conn.close()


def flushes(conn: gnats.Connection) -> bool:
    try:
        return conn.flush(5)
    except Error:
        return False


def test_a_timeout_at_any_moment_of_publish_keeps_all_or_nothing(fake_server: Any) -> None:
    gate = Event()

    def late(client: FakeClient) -> None:
        client.handshake()
        gate.wait()
        client.serve()

    server = fake_server(late, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    kept: list[int] = []

    def publish(number: int) -> None:
        with gevent.Timeout(0.05, False):
            conn.publish("p", b"%d:" % number + b"x" * 40_000)
            kept.append(number)

    gevent.joinall([gevent.spawn(publish, number) for number in range(150)], 20)
    assert 0 < len(kept) < 150
    assert conn.stats.accepted == len(kept)
    gate.set()
    assert conn.flush(10)
    arrived = [int(payload.partition(b":")[0]) for payload in server.clients[0].payloads()]
    assert arrived == kept
    conn.close()


# -- many at once --------------------------------------------------------------------------------


def test_five_hundred_greenlets_publish_at_once(nats_server: NatsServer) -> None:
    publishers, each = 500, 20
    conn = gnats.connect(nats_server.url, **FAST)
    got: dict[int, list[int]] = {who: [] for who in range(publishers)}

    def take(msg: gnats.Msg) -> None:
        who, number = msg.data.split(b" ")
        got[int(who)].append(int(number))

    conn.subscribe("all", cb=take)

    def publish(who: int) -> None:
        for number in range(each):
            conn.publish("all", b"%d %d" % (who, number))
            if (who + number) % 7 == 0:
                gevent.sleep(0)

    crew = [gevent.spawn(publish, who) for who in range(publishers)]
    gevent.joinall(crew, 20)
    assert all(one.successful() for one in crew)
    conn.flush()
    wait_until(lambda: sum(map(len, got.values())) == publishers * each)
    assert all(numbers == list(range(each)) for numbers in got.values())
    conn.close()


def test_requests_of_many_greenlets_get_each_its_own_answer(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)

    def answer_late(msg: gnats.Msg) -> None:
        gevent.sleep(random.random() * 0.01)
        msg.respond(msg.data)

    conn.subscribe("slow.echo", cb=answer_late, concurrency=50)

    def ask(number: int) -> bool:
        return conn.request("slow.echo", b"%d" % number, timeout=20).data == b"%d" % number

    crew = [gevent.spawn(ask, number) for number in range(1000)]
    gevent.joinall(crew, 30)
    assert [one.value for one in crew] == [True] * 1000
    conn.close()


def test_two_connections_of_one_process_know_nothing_of_each_other(
    nats_server: NatsServer, fake_server: Any
) -> None:
    fake = fake_server()
    good = gnats.connect(nats_server.url, **FAST)
    bad = gnats.connect(fake.url, **FAST)
    sub = good.subscribe("x")
    for count in range(2, 8):
        fake.close_clients(reset=True)
        good.publish("x", b"%d" % count)
        assert sub.next_msg(5).data == b"%d" % count
        wait_until(lambda count=count: bad.stats.reconnects == count - 1)
    assert good.stats.disconnects == 0
    bad.close()
    good.publish("x", b"last")
    assert sub.next_msg(5).data == b"last"
    good.close()


# -- fairness ------------------------------------------------------------------------------------


def test_a_greedy_publisher_above_high_water_does_not_starve_others(
    nats_server: NatsServer,
) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    greedy_count = [0]

    def greedy() -> None:
        while True:
            conn.publish("greedy", b"x" * 10_000)
            greedy_count[0] += 1

    hogs = [gevent.spawn(greedy) for _ in range(3)]
    wait_until(lambda: greedy_count[0] > 500)
    for _ in range(30):
        before = greedy_count[0]
        conn.publish("modest", b"m" * 1000)
        # Each gets his turn within a few batches of one high-water mark (100 of these).
        assert greedy_count[0] - before < 1000
        gevent.sleep(0)
    gevent.killall(hogs)
    assert conn.flush(10)
    conn.close()


def test_a_large_message_gets_through_among_many_small_ones() -> None:
    """It needs all the room there is; newcomers that need little must not pass it for ever."""
    with NatsServer(config="max_payload: 8MB") as server:
        conn = gnats.connect(server.url, publish_timeout=5, **FAST)
        counts = [0]

        def small() -> None:
            while True:
                conn.publish("small", b"s" * 1000)
                counts[0] += 1
                gevent.sleep(0)

        crew = [gevent.spawn(small) for _ in range(20)]
        wait_until(lambda: counts[0] > 1000)
        for size in (600_000, 1_000_000, 3_000_000, 8_000_000):
            before = counts[0]
            conn.publish("large", b"L" * size)
            assert counts[0] - before < 20_000
        gevent.killall(crew)
        conn.flush(10)
        conn.close()


class Ticker:
    """A greenlet that ticks each loop turn, as a web server's would: how much fits into a turn?"""

    def __init__(self, count: Callable[[], int]) -> None:
        self.most = 0  # by how much *count* grew in one turn
        self.ticks = 0
        self._count = count
        self._greenlet = gevent.spawn(self._tick)

    def _tick(self) -> None:
        last = self._count()
        while True:
            gevent.sleep(0)
            now = self._count()
            self.most = max(self.most, now - last)
            self.ticks += 1
            last = now

    def stop(self) -> None:
        self._greenlet.kill()


def test_a_flood_on_one_subscription_does_not_starve_the_rest(fake_server: Any) -> None:
    """50,000 messages lie in the kernel and the queue: others still have turns among them."""
    total = 50_000

    def flood(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB flood 1")
        frames = b"".join(message_frame(1, "flood", b"%d" % n) for n in range(total))
        client.send(frames)
        client.serve()

    server = fake_server(flood)
    conn = gnats.connect(server.url)
    got = [0]

    def take(msg: gnats.Msg) -> None:
        got[0] += 1

    conn.subscribe("flood", cb=take)
    received = Ticker(lambda: conn.stats.in_msgs)
    handled = Ticker(lambda: got[0])
    wait_until(lambda: got[0] == total, 20)
    received.stop()
    handled.stop()
    # In messages a turn, not seconds: one recv of 64 KiB holds less than 4000 of these.
    assert received.most < 8000
    assert handled.most < total / 2
    conn.close()


def test_a_handler_that_never_yields_does_not_hold_the_loop(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    got = [0]

    def busy(msg: gnats.Msg) -> None:
        began = perf_counter()
        while perf_counter() - began < 0.001:
            pass
        got[0] += 1

    conn.subscribe("busy", cb=busy)
    for _ in range(500):
        conn.publish("busy")
    wait_until(lambda: got[0] > 5)
    ticker = Ticker(lambda: got[0])
    wait_until(lambda: got[0] == 500, 20)
    ticker.stop()
    # At most a slice of 5 ms at a time, and each message takes one.
    assert ticker.most < 20
    conn.close()


def test_a_blocked_handler_holds_nobody_else(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    gate = Event()
    got: list[bytes] = []
    conn.subscribe("blocked", cb=lambda msg: gate.wait(20))
    conn.subscribe("free", cb=lambda msg: got.append(msg.data))
    conn.publish("blocked")
    conn.publish("blocked")
    for number in range(10):
        conn.publish("free", b"%d" % number)
    wait_until(lambda: len(got) == 10)
    conn.flush()
    assert conn.rtt() < 5
    gate.set()
    conn.close()


def test_a_handler_that_raises_is_told_and_goes_on(nats_server: NatsServer) -> None:
    told: list[Exception] = []
    conn = gnats.connect(nats_server.url, error_cb=lambda _, exc: told.append(exc))
    got: list[bytes] = []

    def moody(msg: gnats.Msg) -> None:
        got.append(msg.data)
        if msg.data == b"raise":
            raise ZeroDivisionError
        if msg.data == b"timeout":
            raise gevent.Timeout
        if msg.data == b"kill":
            gevent.getcurrent().kill()  # type: ignore[attr-defined]
        if msg.data == b"exit":
            raise gevent.GreenletExit

    conn.subscribe("moody", cb=moody)
    words = [b"1", b"raise", b"2", b"timeout", b"3", b"kill", b"4", b"exit", b"5"]
    for word in words:
        conn.publish("moody", word)
    wait_until(lambda: len(got) == len(words))
    assert got == words
    wait_until(lambda: len(told) == 2)
    assert isinstance(told[0].__cause__, ZeroDivisionError)
    conn.flush()
    conn.close()


def test_calls_from_a_handler(nats_server: NatsServer) -> None:
    """Publish, request, subscribe, next_msg, flush, unsubscribe: all but waiting for itself."""
    conn = gnats.connect(nats_server.url)
    conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))
    outcome: AsyncResult = AsyncResult()

    def handler(msg: gnats.Msg) -> None:
        try:
            answer = conn.request("echo", b"inner", timeout=5)
            with conn.subscribe("inner.sub") as inner:
                conn.publish("inner.sub", b"1")
                first = inner.next_msg(5)
            conn.flush(5)
            msg.sub.unsubscribe()
            outcome.set((answer.data, first.data))
        except BaseException as exc:
            outcome.set_exception(exc)

    conn.subscribe("outer", cb=handler)
    conn.publish("outer")
    assert outcome.get(timeout=10) == (b"inner", b"1")
    conn.close()


@pytest.mark.parametrize("way", ["close", "drain"])
def test_a_handler_that_ends_the_connection(nats_server: NatsServer, way: str) -> None:
    closed = Event()
    conn = gnats.connect(nats_server.url, closed_cb=lambda c: closed.set())
    failed: list[BaseException] = []

    def handler(msg: gnats.Msg) -> None:
        try:
            getattr(conn, way)()
        except BaseException as exc:
            failed.append(exc)

    conn.subscribe("end", cb=handler)
    conn.publish("end")
    assert closed.wait(10)
    assert conn.is_closed
    assert failed == []


# -- the hub ---------------------------------------------------------------------------------


def test_publish_and_subscribe_from_hub_callbacks(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    got: list[bytes] = []
    failed: list[BaseException] = []

    def in_hub(call: Callable[..., Any], *args: Any) -> None:
        assert gevent.getcurrent() is get_hub()
        try:
            call(*args)
        except BaseException as exc:
            failed.append(exc)

    loop = get_hub().loop

    def take(msg: gnats.Msg) -> None:
        got.append(msg.data)

    loop.run_callback(in_hub, lambda: conn.subscribe("hub", cb=take))
    for number in range(50):
        loop.run_callback(in_hub, conn.publish, "hub", b"%d" % number)
    timer = loop.timer(0.01)
    timer.start(in_hub, conn.publish, "hub", b"timer")
    wait_until(lambda: len(got) == 51)
    timer.close()
    assert got == [b"%d" % n for n in range(50)] + [b"timer"]
    assert failed == []
    conn.close()


def test_what_cannot_wait_in_the_hub_raises_and_keeps_nothing(fake_server: Any) -> None:
    def deaf(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    server = fake_server(deaf, rcvbuf=4096)
    conn = gnats.connect(server.url, publish_timeout=0.05, **FAST)
    with pytest.raises(OutboundBufferLimitError):
        while True:
            conn.publish("p", b"x" * 60_000)
    before = conn.stats
    outcome: AsyncResult = AsyncResult()

    def publish() -> None:
        try:
            outcome.set(conn.publish("p", b"x" * 60_000))
        except BaseException as exc:
            outcome.set(exc)

    get_hub().loop.run_callback(publish)
    assert isinstance(outcome.get(timeout=5), OutboundBufferLimitError)
    assert conn.stats == before
    conn.close()


def test_close_from_a_hub_callback(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    conn.publish("x")
    get_hub().loop.run_callback(conn.close)
    conn.wait_for_status("closed", 5)
    assert nats_server.varz()["in_msgs"] == 1


# -- what is left --------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def living_greenlets() -> int:
    gc.collect()
    return sum(1 for one in gc.get_objects() if isinstance(one, gevent.Greenlet) and not one.dead)


def test_fifty_connections_leave_nothing_behind(nats_server: NatsServer) -> None:
    made: list[weakref.ref[gnats.Connection]] = []

    def cycle(number: int) -> None:
        conn = gnats.connect(nats_server.url, **FAST)
        made.append(weakref.ref(conn))
        sub = conn.subscribe("x", cb=lambda msg: msg.respond(b""))
        conn.request("x", timeout=5)
        if number % 3 == 0:
            conn.force_reconnect()
            wait_until(lambda: conn.stats.reconnects == 1)
        if number % 2:
            sub.unsubscribe()
            conn.drain()
        else:
            conn.close()

    for number in range(6):
        cycle(number)
    gc.collect()
    files, greenlets = open_files(), living_greenlets()
    for number in range(50):
        cycle(number)
    wait_until(lambda: nats_server.varz()["connections"] == 0)
    assert open_files() == files
    assert living_greenlets() == greenlets
    assert [ref() for ref in made if ref() is not None] == []


def test_a_closed_connection_is_freed(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    sub = conn.subscribe("x", cb=lambda msg: None)
    conn.flush()
    watched = [weakref.ref(conn), weakref.ref(sub)]
    conn.close()
    del conn, sub
    gevent.sleep(0)
    gc.collect()
    assert [ref() for ref in watched] == [None, None]


def test_everyone_who_waits_is_woken_by_a_close(fake_server: Any) -> None:
    """flush, rtt, request, request_many, next_msg, iteration, publish, wait_for_status, drain."""

    def deaf(client: FakeClient) -> None:
        client.handshake()
        client.stall()

    server = fake_server(deaf, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    sub, other = conn.subscribe("x"), conn.subscribe("y")
    waiting = {
        "flush": gevent.spawn(conn.flush, None),
        "rtt": gevent.spawn(conn.rtt, None),
        "request": gevent.spawn(conn.request, "q", b"", None),
        "next_msg": gevent.spawn(sub.next_msg, None),
        "wait_for_status": gevent.spawn(conn.wait_for_status, "reconnecting", None),
        "publish": gevent.spawn(lambda: [conn.publish("p", b"x" * 99_000) for _ in range(100)]),
        "request_many": gevent.spawn(lambda: list(conn.request_many("q", timeout=None))),
        "iteration": gevent.spawn(lambda: list(other)),
        "drain": gevent.spawn(other.drain, 60),
    }
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    began = monotonic()
    conn.close()
    gevent.joinall(list(waiting.values()), 5)
    assert monotonic() - began < 5
    assert {name: one.dead for name, one in waiting.items()} == dict.fromkeys(waiting, True)
    kinds = {name: type(one.exception) for name, one in waiting.items()}
    assert kinds == {
        **dict.fromkeys(waiting, ConnectionClosedError),
        "iteration": type(None),
        "drain": type(None),
    }
