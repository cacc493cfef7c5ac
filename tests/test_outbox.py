"""Who may put a message in, and who must wait: room, order in the line, limits, refusals."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from finish import check_books

import gnats
from gnats import errors
from gnats.buffer import OutboundBuffer
from gnats.outbox import HIGH_WATER, Outbox
from gnats.testing import FakeClient, FakeServer, NatsServer, wait_until
from gnats.threads import Owner

SLACK = 0.7
FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


class Desk:
    """An outbox and a publisher's part of the work."""

    def __init__(self, reconnect_buf_size: int = 1000) -> None:
        self.buffer = OutboundBuffer()
        self.outbox = Outbox(self.buffer, reconnect_buf_size, Owner())
        self.accepted: list[int] = []

    def put(self, size: int, timeout: float | None = None, name: int = 0) -> None:
        """As Connection.publish does."""
        if self.buffer.size + size > self.buffer.limit:
            self.outbox.make_room(size, timeout)
        self.buffer.frames.append(b"PUB a 0\r\n".ljust(size, b"x"))
        self.buffer.size += size
        self.accepted.append(name)

    def write(self) -> None:
        """As the flusher does."""
        self.buffer.take()
        self.buffer.written()
        self.outbox.bytes_moved()


@pytest.fixture
def desk() -> Desk:
    opened = Desk()
    opened.outbox.open()
    opened.outbox.link()
    return opened


# -- by itself ------------------------------------------------------------------------------------


def test_before_and_after() -> None:
    desk = Desk()
    for size in (0, 10, HIGH_WATER):
        with pytest.raises(errors.ConnectionClosedError, match="not connected"):
            desk.put(size)
    desk.outbox.open()
    desk.put(10)
    desk.outbox.link()
    desk.put(10)
    desk.outbox.shut(lambda: errors.ConnectionDrainingError("publish"))
    with pytest.raises(errors.ConnectionDrainingError):
        desk.put(0)
    desk.outbox.link()  # a link that comes while it is shut opens nothing
    with pytest.raises(errors.ConnectionDrainingError):
        desk.put(10)
    assert len(desk.accepted) == 2


def test_there_is_room_up_to_the_mark(desk: Desk) -> None:
    desk.put(HIGH_WATER - 10)
    desk.put(10)
    assert desk.buffer.size == HIGH_WATER
    with pytest.raises(errors.OutboundBufferLimitError) as info:
        desk.put(1, timeout=0)
    assert (info.value.size, info.value.buffered, info.value.limit) == (1, HIGH_WATER, HIGH_WATER)
    assert desk.buffer.size == HIGH_WATER


def test_without_a_link_the_limit_is_the_reconnect_buffer(desk: Desk) -> None:
    desk.outbox.unlink()
    desk.put(1000)
    began = monotonic()
    with pytest.raises(errors.OutboundBufferLimitError) as info:
        desk.put(1, timeout=60)
    assert monotonic() - began < SLACK  # it does not wait
    assert info.value.limit == 1000
    desk.outbox.link()
    desk.put(1)


def test_no_reconnect_buffer_at_all() -> None:
    desk = Desk(reconnect_buf_size=0)
    desk.outbox.open()
    with pytest.raises(errors.OutboundBufferLimitError):
        desk.put(10)
    desk.outbox.link()
    desk.put(10)


def test_one_larger_than_the_mark_goes_when_it_is_alone(desk: Desk) -> None:
    desk.put(HIGH_WATER * 3)
    waiting = gevent.spawn(desk.put, HIGH_WATER * 2, None, 2)
    small = gevent.spawn(desk.put, 10, None, 3)
    gevent.sleep(0)
    assert desk.accepted == [0]
    desk.write()
    gevent.sleep(0.005)
    assert desk.accepted == [0, 2]
    desk.write()
    gevent.joinall([waiting, small], timeout=5)
    assert desk.accepted == [0, 2, 3]


def test_first_come_first_served(desk: Desk) -> None:
    desk.put(HIGH_WATER)
    sizes = [100, HIGH_WATER, 10, 500_000, 1, 700_000, 20]
    waiting = [gevent.spawn(desk.put, size, None, name) for name, size in enumerate(sizes, 1)]
    gevent.sleep(0)
    newcomer = None
    for _ in range(20):
        desk.write()
        if newcomer is None:
            newcomer = gevent.spawn(desk.put, 1, None, 99)
        gevent.sleep(0.002)
    gevent.joinall([*waiting, newcomer], timeout=5)
    assert desk.accepted == [0, 1, 2, 3, 4, 5, 6, 7, 99]
    assert len(desk.outbox._waiting) == 0
    assert desk.buffer.limit == HIGH_WATER  # the fast lane is open again


@pytest.mark.parametrize("how", ["kill", "timeout", "publish_timeout"])
def test_one_who_leaves_the_line_gives_the_room_on(desk: Desk, how: str) -> None:
    desk.put(HIGH_WATER)
    head = gevent.spawn(desk.put, HIGH_WATER, 0.02 if how == "publish_timeout" else None, 1)
    gevent.sleep(0)
    behind = gevent.spawn(desk.put, 10, None, 2)
    gevent.sleep(0)
    desk.buffer.size -= 100  # room for the small one only
    if how == "kill":
        head.kill(timeout=5)
    elif how == "timeout":
        head.kill(gevent.Timeout(), timeout=5)
    else:
        with pytest.raises(errors.OutboundBufferLimitError, match="publish_timeout"):
            head.get(timeout=5)
    behind.get(timeout=5)
    assert desk.accepted == [0, 2]
    assert len(desk.outbox._waiting) == 0


def test_one_woken_and_killed_in_one_turn_gives_the_room_on(desk: Desk) -> None:
    desk.put(HIGH_WATER)
    head = gevent.spawn(desk.put, 10, None, 1)
    behind = gevent.spawn(desk.put, 10, None, 2)
    gevent.sleep(0)
    desk.write()
    head.kill(block=False)
    behind.get(timeout=5)
    assert desk.accepted in ([0, 2], [0, 1, 2])


def test_a_loss_turns_the_line_into_the_reconnect_buffer(desk: Desk) -> None:
    desk.put(HIGH_WATER)
    waiting = [gevent.spawn(desk.put, 10, None, name) for name in (1, 2)]
    gevent.sleep(0)
    desk.outbox.unlink()
    for greenlet in waiting:
        with pytest.raises(errors.OutboundBufferLimitError):
            greenlet.get(timeout=5)
    assert desk.accepted == [0]


def test_shutting_wakes_the_line(desk: Desk) -> None:
    desk.put(HIGH_WATER)
    waiting = [gevent.spawn(desk.put, 10, None, name) for name in (1, 2, 3)]
    gevent.sleep(0)
    desk.outbox.shut(errors.ConnectionClosedError)
    for greenlet in waiting:
        with pytest.raises(errors.ConnectionClosedError):
            greenlet.get(timeout=5)
    assert desk.accepted == [0]


def test_a_hub_callback_never_waits(desk: Desk) -> None:
    desk.put(HIGH_WATER - 10)
    seen: list[Any] = []

    def put(size: int) -> None:
        try:
            desk.put(size)
            seen.append("put")
        except errors.OutboundBufferLimitError as exc:
            seen.append(exc)

    loop = gevent.get_hub().loop
    loop.run_callback(put, 10)
    loop.run_callback(put, 10)
    gevent.sleep(0.002)
    assert seen[0] == "put"
    assert isinstance(seen[1], errors.OutboundBufferLimitError)
    assert "hub" in str(seen[1])


# -- on a connection ------------------------------------------------------------------------------


def stalling(client: FakeClient) -> None:
    client.handshake()
    client.stall()


def abandon(server: FakeServer, conn: gnats.Connection) -> None:
    """End the link: close() would give a stalled server its second."""
    server.stop()
    conn.wait_for_status("reconnecting", 5)


def test_publish_waits_and_gives_up() -> None:
    with FakeServer(stalling, rcvbuf=4096) as server:
        conn = gnats.connect(server.url, publish_timeout=0.05)
        with pytest.raises(errors.OutboundBufferLimitError) as info:
            while True:
                began = monotonic()
                conn.publish("a", b"x" * 100_000)
        assert 0.047 <= monotonic() - began < 0.05 + SLACK
        assert info.value.limit == HIGH_WATER
        before = conn.stats
        assert before.buffered_bytes <= HIGH_WATER
        with pytest.raises(errors.OutboundBufferLimitError):
            conn.publish("a", b"x" * 100_000, headers={"a": "b"})
        assert conn.stats == before  # nothing of it was kept
        check_books(conn)
        abandon(server, conn)
        conn.close()
        check_books(conn)


def test_publish_goes_on_when_the_server_does(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    nats_server.pause()
    done: list[int] = []

    def flood(name: int) -> None:
        for _ in range(40):
            conn.publish(f"a.{name}", b"x" * 100_000)
        done.append(name)

    flooding = [gevent.spawn(flood, name) for name in range(4)]
    wait_until(lambda: len(conn._outbox._waiting) == 4)
    assert conn.stats.buffered_bytes <= HIGH_WATER + 1000
    nats_server.resume()
    gevent.joinall(flooding, timeout=20, raise_error=True)
    assert sorted(done) == [0, 1, 2, 3]
    assert conn.flush(20)
    assert conn.stats.accepted == conn.stats.sent == 160
    assert nats_server.varz()["in_msgs"] == 160
    conn.close()
    check_books(conn)


def test_a_publisher_that_is_struck_while_it_waits() -> None:
    with FakeServer(stalling, rcvbuf=4096) as server:
        conn = gnats.connect(server.url)
        accepted: list[int] = []

        def flood() -> None:
            while True:
                conn.publish("a", b"x" * 100_000)
                accepted.append(1)

        flooding = gevent.spawn(flood)
        wait_until(lambda: len(conn._outbox._waiting) == 1)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            conn.publish("a", b"x" * 100_000)
        flooding.kill(timeout=5)
        assert conn.stats.accepted == len(accepted)
        assert len(conn._outbox._waiting) == 0
        abandon(server, conn)
        conn.close()
        check_books(conn)


def test_a_publisher_that_waits_when_the_link_is_lost(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST, reconnect_buf_size=16 * 1024 * 1024)
    nats_server.pause()
    published: list[int] = []

    def flood() -> None:
        for number in range(100):
            conn.publish("a", b"%d " % number + b"x" * 100_000)
            published.append(number)

    flooding = gevent.spawn(flood)
    wait_until(lambda: len(conn._outbox._waiting) == 1)
    nats_server.kill()
    flooding.get(timeout=5)  # the reconnect buffer has room for it
    assert published == list(range(100))
    check_books(conn)
    nats_server.start()
    conn.wait_for_status("connected", 5)
    assert conn.flush(20)
    stats = conn.stats
    assert stats.buffered == 0
    assert stats.sent + stats.uncertain == 100
    assert nats_server.varz()["in_msgs"] >= 100 - stats.uncertain
    conn.close()
    check_books(conn)


# -- what is kept until a PONG ------------------------------------------------------------------


@pytest.fixture
def keeper() -> Desk:
    desk = Desk(reconnect_buf_size=3 * HIGH_WATER)
    desk.buffer = OutboundBuffer(keep=True)
    desk.outbox = Outbox(desk.buffer, 3 * HIGH_WATER, Owner())
    desk.outbox.open()
    desk.outbox.link()
    return desk


def confirm(desk: Desk) -> None:
    """As a PONG behind everything does."""
    desk.buffer.confirm(desk.buffer.position)
    desk.outbox.bytes_moved()


def test_kept_messages_leave_the_mark_to_the_unwritten_until_they_fill_the_buffer(
    keeper: Desk,
) -> None:
    for written in (1, 2):
        keeper.put(HIGH_WATER - 100)
        with pytest.raises(errors.OutboundBufferLimitError):
            keeper.put(101, timeout=0)
        keeper.write()
        assert (keeper.buffer.size, keeper.buffer.kept) == (0, written * (HIGH_WATER - 100))
    keeper.put(HIGH_WATER)
    keeper.write()
    keeper.put(200)
    with pytest.raises(errors.OutboundBufferLimitError) as info:
        keeper.put(1, timeout=0)
    assert info.value.buffered == info.value.limit == 3 * HIGH_WATER
    keeper.write()
    with pytest.raises(errors.OutboundBufferLimitError):
        keeper.put(1, timeout=0)
    waiting = gevent.spawn(keeper.put, 1)
    gevent.sleep(0)
    confirm(keeper)
    waiting.get(timeout=5)
    assert (keeper.buffer.size, keeper.buffer.kept) == (1, 0)


def test_messages_over_the_mark_follow_each_other_without_a_confirmation(keeper: Desk) -> None:
    for _ in range(2):
        keeper.put(HIGH_WATER + 100, timeout=0)
        keeper.write()
    with pytest.raises(errors.OutboundBufferLimitError):
        keeper.put(HIGH_WATER + 100, timeout=0)
    confirm(keeper)
    keeper.put(HIGH_WATER + 100, timeout=0)


def test_an_outage_takes_what_the_buffer_takes_kept_messages_included(keeper: Desk) -> None:
    keeper.put(HIGH_WATER)
    keeper.write()
    keeper.buffer.lost()
    keeper.outbox.unlink()
    assert (keeper.buffer.size, keeper.buffer.kept) == (HIGH_WATER, 0)
    keeper.put(2 * HIGH_WATER)
    with pytest.raises(errors.OutboundBufferLimitError):
        keeper.put(1)
