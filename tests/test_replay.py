"""What became of each published message when a link died under it: replayed, uncertain, refused.

The kernel is played by a valve in front of the socket where a test needs to say after which byte
it stopped; everything else is real sockets against a fake server that parses strictly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import (
    ConnectionClosedError,
    FlushInterruptedError,
    MaxPayloadError,
    OutboundBufferLimitError,
    TransportError,
)
from gnats.testing import FakeClient, FakeServer, NatsServer, serve, wait_until
from gnats.transport import Transport

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


def close_books(conn: gnats.Connection) -> gnats.Stats:
    """The books must close at every moment; returns them."""
    stats = conn.stats
    settled = stats.sent + stats.uncertain + stats.dropped + stats.buffered
    assert stats.accepted == settled, stats
    return stats


class Valve:
    """A kernel that takes so many bytes more, in pieces, and then says that the link is gone."""

    def __init__(self) -> None:
        self.left: int | None = None  # None: it takes everything
        self.piece = 1 << 30

    def send(self, transport: Transport, data: memoryview) -> int:
        if self.left is None:
            return real_send(transport, data)
        if self.left == 0:
            self.left = None
            raise TransportError("the valve is shut")
        taken = real_send(transport, data[: min(self.left, self.piece)])
        self.left -= taken
        return taken


real_send = Transport.send


@pytest.fixture
def valve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valve]:
    one = Valve()
    monkeypatch.setattr(Transport, "send", lambda transport, data: one.send(transport, data))
    return one


# -- cut at every byte -----------------------------------------------------------------------


def publish_batch(conn: gnats.Connection) -> list[tuple[str, bytes, bytes]]:
    """One batch of every kind of message, as (subject, payload, headers)."""
    conn.publish("a", b"1")
    conn.publish("b", b"")
    conn.publish("c.d", b"PUB x 3\r\n", reply="r")
    conn.publish("e", b"4", headers={"K": "v"})
    conn.publish("f", b"\r\n\r\n")
    return [
        ("a", b"1", b""),
        ("b", b"", b""),
        ("c.d", b"PUB x 3\r\n", b""),
        ("e", b"4", b"NATS/1.0\r\nK: v\r\n\r\n"),
        ("f", b"\r\n\r\n", b""),
    ]


def messages(client: FakeClient) -> list[tuple[str, bytes, bytes]]:
    return [(f.subject, f.payload, f.headers) for f in client.frames if f.op in ("PUB", "HPUB")]


def stay(client: FakeClient) -> None:
    """Take everything, but answer no PING after the handshake: nothing is ever confirmed."""
    client.handshake()
    while True:
        client.read_line()


BATCH_BYTES = 103  # with the barrier's PING; a test below checks it


@pytest.mark.parametrize("piece", [1 << 30, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_a_batch_cut_after_any_byte(valve: Valve, keep: bool, piece: int) -> None:
    for cut in range(BATCH_BYTES + 1):
        with FakeServer([stay, serve]) as server:
            conn = gnats.connect(server.url, replay_unconfirmed=keep, **FAST)
            first = server.wait_for_client()
            valve.left, valve.piece = cut, piece
            sent = publish_batch(conn)
            if cut == BATCH_BYTES:
                conn.publish("last", b"")  # the batch is whole: the next one meets the fault
                sent.append(("last", b"", b""))
                gevent.sleep(0)
            second = server.wait_for_client(2)
            assert conn.wait_for_status("connected", 5)
            conn.flush()
            wait_until(lambda first=first: first.is_closed)
            assert first.broken is None, cut
            taken = messages(first)
            after = messages(second)
            if keep:
                assert after == sent, cut
            else:
                assert taken + after == sent, cut
            stats = close_books(conn)
            assert stats.accepted == len(sent)
            assert stats.buffered == 0
            assert stats.uncertain == (0 if keep else len(taken)), cut
            assert stats.replayed == len(after), cut
            second.assert_whole()
            conn.close()


def test_a_batch_size_is_what_the_cuts_assume(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url)
    client = server.wait_for_client()
    wait_until(lambda: len(client.frames) == 2)
    before = len(client.received)
    publish_batch(conn)
    client.wait_for_frames(8)
    assert len(client.received) - before == BATCH_BYTES
    conn.close()


# -- cut somewhere in a big batch, by a real kernel --------------------------------------------


def numbered(number: int, size: int) -> bytes:
    return b"%d:" % number + b"x" * size


def number_of(payload: bytes) -> int:
    return int(payload.partition(b":")[0])


@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_a_big_batch_cut_by_the_server(rng: random.Random, keep: bool) -> None:
    for _ in range(10):
        sizes = [rng.choice([0, 10, 1000, rng.randrange(60_000)]) for _ in range(150)]
        total = sum(sizes)
        cut = rng.randrange(total)
        reset = rng.random() < 0.5

        def half_way(client: FakeClient, cut: int = cut, reset: bool = reset) -> None:
            client.handshake()
            client.cut_after(cut, reset=reset)

        with FakeServer([half_way, serve], rcvbuf=4096) as server:
            conn = gnats.connect(server.url, replay_unconfirmed=keep, **FAST)
            for number, size in enumerate(sizes):
                conn.publish("big", numbered(number, size))
            second = server.wait_for_client(2)
            assert conn.wait_for_status("connected", 5)
            conn.flush()
            first = server.clients[0]
            assert first.broken is None
            before = list(map(number_of, first.payloads()))
            after = list(map(number_of, second.payloads()))
            # Whole, in order, no hole in what is sent again, and nothing behind it forgotten.
            assert before == list(range(len(before)))
            assert after == list(range(len(sizes) - len(after), len(sizes)))
            for client in (first, second):
                for payload in client.payloads():
                    assert len(payload.partition(b":")[2]) == sizes[number_of(payload)]
            stats = close_books(conn)
            lost = len(sizes) - len(after)
            if keep:
                assert lost <= len(before)  # every message arrived at least once
                assert stats.uncertain == 0
            else:
                assert not set(before) & set(after)  # at most once
                assert stats.uncertain == lost
            assert stats.replayed <= len(after)
            second.assert_whole()
            conn.close()


def test_a_pong_for_the_head_of_a_half_written_batch_confirms_it(
    valve: Valve, fake_server: Any
) -> None:
    """PUB, PING | PUB cut in its middle: a flush that was told "processed" is believed."""
    for keep in (False, True):

        def answers(client: FakeClient) -> None:
            client.handshake()
            client.expect("PUB small 1")
            client.expect("1")
            client.expect("PING")
            client.send(b"PONG\r\n")
            client.stall()

        server = fake_server([answers, serve])
        conn = gnats.connect(server.url, replay_unconfirmed=keep, **FAST)
        server.wait_for_client()
        blocked = gevent.event.Event()
        took: list[int] = []

        def send(
            transport: Transport,
            data: memoryview,
            took: list[int] = took,
            blocked: gevent.event.Event = blocked,
        ) -> int:
            if bytes(data).startswith(b"PUB small") and not took:
                head = bytes(data).index(b"PING\r\n") + 6 + 3  # three bytes of the next frame
                took.append(real_send(transport, data[:head]))
                return took[0]
            if len(took) == 1:
                took.append(0)
                blocked.wait(5)
                raise TransportError("the valve is shut")
            return real_send(transport, data)

        valve.send = send  # type: ignore[method-assign]
        conn.publish("small", b"1")
        flushed = gevent.event.AsyncResult()
        # All in one loop turn, so that one batch holds PUB, the flush's PING, PUB.
        conn._reconnector.session.pings.ping(flushed.set)  # type: ignore[union-attr]
        conn.publish("next", b"2")
        assert flushed.get(timeout=5) is True
        blocked.set()
        second = server.wait_for_client(2)
        assert conn.wait_for_status("connected", 5)
        conn.flush()
        assert second.payloads() == [b"2"], keep
        stats = close_books(conn)
        assert stats.uncertain == 0, keep
        conn.close()


# -- the reconnect buffer -----------------------------------------------------------------------


def test_overflow_raises_and_exactly_what_was_accepted_arrives(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, reconnect_buf_size=10_000, **FAST)
    sub = conn.subscribe("over")
    conn.flush()
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    accepted: list[bytes] = []
    refused: list[OutboundBufferLimitError] = []
    for number in range(1000):
        payload = numbered(number, number % 97)
        try:
            conn.publish("over", payload)
        except OutboundBufferLimitError as exc:
            refused.append(exc)
        else:
            accepted.append(payload)
    assert accepted
    assert refused
    assert {exc.limit for exc in refused} == {10_000}
    assert all(exc.buffered <= 10_000 < exc.buffered + exc.size for exc in refused)
    stats = close_books(conn)
    assert stats.accepted == stats.buffered == len(accepted)
    assert stats.buffered_bytes <= 10_000
    nats_server.start()
    conn.wait_for_status("connected", 5)
    assert [sub.next_msg(5).data for _ in accepted] == accepted
    conn.flush()
    assert sub.pending_msgs == 0
    stats = close_books(conn)
    assert stats.replayed == len(accepted)
    assert stats.uncertain == stats.dropped == stats.buffered == 0
    conn.close()


def test_no_reconnect_buffer_refuses_at_once(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, reconnect_buf_size=0, **FAST)
    sub = conn.subscribe("none")
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    began = monotonic()
    with pytest.raises(OutboundBufferLimitError):
        conn.publish("none", b"")
    assert monotonic() - began < 1
    assert close_books(conn).accepted == 0
    nats_server.start()
    conn.wait_for_status("connected", 5)
    conn.publish("none", b"1")
    assert sub.next_msg(5).data == b"1"
    assert close_books(conn).accepted == 1
    conn.close()


def test_without_a_buffer_what_a_full_kernel_left_behind_is_still_replayed(
    fake_server: Any,
) -> None:
    """reconnect_buf_size bounds what publish takes in an outage, not what it took before."""
    published: list[int] = []

    def stall_then_reset(client: FakeClient) -> None:
        client.handshake()
        wait_until(lambda: len(published) == 10)
        client.reset()

    server = fake_server([stall_then_reset, serve], rcvbuf=4096)
    conn = gnats.connect(server.url, reconnect_buf_size=0, **FAST)
    for number in range(10):
        conn.publish("p", numbered(number, 90_000))
        published.append(number)
    second = server.wait_for_client(2)
    conn.wait_for_status("connected", 5)
    conn.flush()
    after = list(map(number_of, second.payloads()))
    assert after == list(range(10 - len(after), 10))
    stats = close_books(conn)
    assert stats.uncertain == 10 - len(after)
    assert stats.dropped == 0
    conn.close()


# -- above the high-water mark ---------------------------------------------------------------


def stall_after_handshake(client: FakeClient) -> None:
    client.handshake()
    client.stall()


def fill(conn: gnats.Connection, payload: bytes = b"z" * 50_000) -> int:
    """Publish until there is no room; returns how many were taken."""
    taken = 0
    while True:
        try:
            conn.publish("fill", payload)
        except OutboundBufferLimitError:
            return taken
        taken += 1
        assert taken < 10_000


def test_publish_waits_no_longer_than_publish_timeout(fake_server: Any) -> None:
    server = fake_server(stall_after_handshake, rcvbuf=4096)
    conn = gnats.connect(server.url, publish_timeout=0.2, **FAST)
    taken = fill(conn)
    stats = close_books(conn)
    assert stats.accepted == taken
    began = monotonic()
    with pytest.raises(OutboundBufferLimitError, match="publish_timeout"):
        conn.publish("fill", b"z" * 50_000)
    assert 0.19 <= monotonic() - began < 2
    assert close_books(conn) == stats  # nothing of it was kept
    conn.close()


def test_publishers_that_wait_for_room_go_on_when_the_link_is_lost(fake_server: Any) -> None:
    server = fake_server([stall_after_handshake, serve], rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    published: list[int] = []

    def publish() -> None:
        for number in range(200):
            conn.publish("p", numbered(number, 50_000))
            published.append(number)

    server.wait_for_client()
    publisher = gevent.spawn(publish)
    wait_until(lambda: len(published) > 5)
    stuck = -1
    while stuck != len(published):
        stuck = len(published)
        gevent.sleep(0.05)
    assert stuck < 200
    server.clients[0].reset()
    publisher.join(5)
    assert publisher.successful(), publisher.exception
    second = server.wait_for_client(2)
    conn.flush()
    after = list(map(number_of, second.payloads()))
    assert after == list(range(200 - len(after), 200))
    stats = close_books(conn)
    assert stats.accepted == 200
    assert stats.uncertain == 200 - len(after)
    conn.close()


def test_a_publisher_that_waits_for_room_is_told_when_the_outage_has_none(
    fake_server: Any,
) -> None:
    server = fake_server(stall_after_handshake, rcvbuf=4096)
    conn = gnats.connect(server.url, reconnect_buf_size=1000, reconnect_wait=30)
    server.wait_for_client()
    publisher = gevent.spawn(fill, conn)
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    server.refuse()
    server.clients[0].reset()
    publisher.join(5)
    assert publisher.successful()
    assert publisher.value == close_books(conn).accepted
    conn.close()


def test_a_publisher_that_waits_for_room_hears_of_a_close(fake_server: Any) -> None:
    server = fake_server(stall_after_handshake, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    publisher = gevent.spawn(fill, conn)
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    conn.close()
    publisher.join(5)
    assert isinstance(publisher.exception, ConnectionClosedError)
    close_books(conn)


def test_a_killed_publisher_that_waited_leaves_nothing_and_the_next_has_its_turn(
    fake_server: Any,
) -> None:
    gate = gevent.event.Event()

    def late(client: FakeClient) -> None:
        client.handshake()
        gate.wait()
        client.serve()

    server = fake_server(late, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    first = gevent.spawn(fill, conn)
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    others = [gevent.spawn(conn.publish, "other", b"%d" % n + b"o" * 90_000) for n in range(20)]
    gevent.sleep(0.05)
    first.kill()
    for other in others[::2]:
        other.kill()
    accepted = conn.stats.accepted
    gate.set()
    gevent.joinall(others, 5)
    conn.flush()
    client = server.clients[0]
    arrived = client.payloads("other")
    assert [p.rstrip(b"o") for p in arrived] == [
        b"%d" % n for n, other in enumerate(others) if other.successful() and other.value is None
    ]
    assert close_books(conn).accepted == accepted + len(arrived) == len(client.payloads())
    client.assert_whole()
    conn.close()


# -- the next server takes less ----------------------------------------------------------------


def test_a_message_too_large_for_the_next_server_is_told_and_not_sent(fake_server: Any) -> None:
    def small(client: FakeClient) -> None:
        client.handshake(max_payload=100)
        client.serve()

    server = fake_server([serve, small])
    told: list[Exception] = []
    conn = gnats.connect(server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
    server.refuse()
    server.close_clients()
    conn.wait_for_status("reconnecting", 5)
    conn.publish("a", b"1")
    conn.publish("large", b"x" * 101)
    conn.publish("large", b"x" * 50, headers={"K": "v" * 60})
    conn.publish("fits", b"x" * 100)
    conn.publish("b", b"2")
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.flush()
    assert server.clients[1].payloads() == [b"1", b"x" * 100, b"2"]
    refused = [exc for exc in told if isinstance(exc, MaxPayloadError)]
    assert [exc.max_payload for exc in refused] == [100, 100]
    assert refused[0].size == 101
    stats = close_books(conn)
    assert stats.dropped == 2
    assert conn.max_payload == 100
    with pytest.raises(MaxPayloadError):
        conn.publish("large", b"x" * 101)
    conn.close()


# -- at least once -------------------------------------------------------------------------------


def test_replay_unconfirmed_loses_nothing_whatever_is_cut(rng: random.Random) -> None:
    """A server that takes some, answers some PINGs, and goes, again and again."""
    count, generations = 600, 15

    def fickle(client: FakeClient) -> None:
        client.handshake()
        if client.number >= generations:
            client.serve()
            return
        for _ in range(rng.randrange(40)):
            if client.read_frame().op == "PING" and rng.random() < 0.7:
                client.send(b"PONG\r\n")
        if rng.random() < 0.5:
            client.reset()

    with FakeServer(fickle, rcvbuf=4096) as server:
        conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
        for number in range(count):
            conn.publish("p", numbered(number, rng.choice([0, 100, 5000])))
            close_books(conn)
            if rng.random() < 0.05:
                gevent.sleep(0.001)
        assert conn.flush(30)
        seen = [number_of(p) for client in server.clients for p in client.payloads()]
        assert set(seen) == set(range(count))
        for client in server.clients:
            numbers = list(map(number_of, client.payloads()))
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else 1
        firsts = sorted(set(seen), key=seen.index)
        assert firsts == list(range(count))  # what arrives for the first time is in order
        stats = close_books(conn)
        assert stats.uncertain == stats.dropped == stats.buffered == 0
        assert stats.sent == count
        conn.close()


def test_replay_unconfirmed_bounds_its_memory_and_goes_on(fake_server: Any) -> None:
    """publish waits when all room is held for replay, and goes on with the PONG."""
    server = fake_server()
    conn = gnats.connect(
        server.url, replay_unconfirmed=True, reconnect_buf_size=20_000, publish_timeout=5, **FAST
    )
    most = 0
    began = monotonic()
    for number in range(300):
        conn.publish("p", numbered(number, 1000))
        most = max(most, conn.stats.buffered_bytes)
    assert most <= 20_000 + 6 * 100  # PINGs are not bounded by it
    conn.flush()
    assert monotonic() - began < 5
    assert len(server.clients[0].payloads()) == 300
    assert close_books(conn).sent == 300
    conn.close()


def test_replay_unconfirmed_against_a_server_that_confirms_nothing(fake_server: Any) -> None:
    server = fake_server([stay, serve])
    conn = gnats.connect(
        server.url, replay_unconfirmed=True, reconnect_buf_size=20_000, publish_timeout=0.1, **FAST
    )
    taken = fill(conn, b"k" * 1000)
    assert 10 < taken < 21
    stats = close_books(conn)
    assert stats.buffered == taken
    assert stats.sent == 0
    server.clients[0].close()
    second = server.wait_for_client(2)
    conn.flush()
    assert len(second.payloads()) == taken
    assert close_books(conn).replayed == taken
    conn.close()


# -- who waits for a confirmation -------------------------------------------------------------


def test_a_flush_and_an_rtt_are_interrupted_by_a_loss(fake_server: Any) -> None:
    server = fake_server([stay, serve])
    conn = gnats.connect(server.url, **FAST)
    waits = [gevent.spawn(conn.flush, 30), gevent.spawn(conn.rtt, 30)]
    server.wait_for_client().wait_for_frames(4)
    server.clients[0].close()
    gevent.joinall(waits, 5)
    assert [type(wait.exception) for wait in waits] == [FlushInterruptedError] * 2
    conn.wait_for_status("connected", 5)
    assert conn.flush()
    assert conn.rtt() > 0
    conn.close()


def test_a_flush_spans_the_outage_when_unconfirmed_messages_are_replayed(
    fake_server: Any,
) -> None:
    server = fake_server([stay, serve])
    conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
    conn.publish("p", b"1")
    flush = gevent.spawn(conn.flush, 30)
    client = server.wait_for_client()
    client.wait_for_frames(4)
    server.refuse()
    client.close()
    conn.wait_for_status("reconnecting", 5)
    gevent.sleep(0.05)
    assert not flush.dead
    server.listen()
    assert flush.get(timeout=5) is True
    assert server.clients[1].payloads() == [b"1"]
    # Its own time-out holds in the outage, too.
    server.refuse()
    server.clients[1].close()
    conn.wait_for_status("reconnecting", 5)
    with pytest.raises(gnats.errors.TimeoutError):
        conn.flush(0.1)
    conn.close()


def test_a_quiet_loss_leaves_nothing_uncertain(nats_server: NatsServer) -> None:
    """The barrier behind the last batch: what was sent a moment ago is settled, not uncertain."""
    conn = gnats.connect(nats_server.url, **FAST)
    for number in range(100):
        conn.publish("q", b"%d" % number)
    wait_until(lambda: conn.stats.sent == 100 and conn._buffer.unconfirmed == 0)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    stats = close_books(conn)
    assert stats.uncertain == 0
    assert stats.sent == 100
    conn.close()
    assert close_books(conn).dropped == 0


def test_what_a_close_leaves_behind_is_counted(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, reconnect_wait=30)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    for number in range(7):
        conn.publish("q", b"%d" % number)
    conn.close()
    stats = close_books(conn)
    assert stats.dropped == 7
    assert stats.buffered == stats.buffered_bytes == 0


def test_a_publisher_that_waited_for_room_is_measured_against_what_the_server_takes_by_then(
    fake_server: Any,
) -> None:
    gate = gevent.event.Event()

    def shrinking(client: FakeClient) -> None:
        client.handshake()
        gate.wait()
        client.send_info(max_payload=100)
        client.serve()

    server = fake_server(shrinking, rcvbuf=4096)
    conn = gnats.connect(server.url, **FAST)
    publisher = gevent.spawn(fill, conn)
    wait_until(lambda: conn.stats.buffered_bytes > 900_000)
    accepted = conn.stats.accepted
    gate.set()
    publisher.join(5)
    assert isinstance(publisher.exception, MaxPayloadError)
    assert publisher.exception.max_payload == 100
    conn.flush()
    assert close_books(conn).accepted >= accepted
    conn.close()
