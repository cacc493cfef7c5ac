"""Leaving a server that goes away: nothing missed, nothing twice, and no loss told."""

from __future__ import annotations

import contextlib
import random
from bisect import bisect
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event as Gate

import gnats
from gnats.errors import NoRespondersError, TimeoutError
from gnats.message import Msg
from gnats.move import Echoes, Seen
from gnats.testing import (
    ChaosProxy,
    ClientGone,
    FakeClient,
    FakeServer,
    Frame,
    NatsCluster,
    serve,
    wait_until,
)

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


# -- what both links brought ---------------------------------------------------------------------


def message(data: bytes, sid: int = 1, subject: str = "s", reply: str = "") -> Msg:
    return Msg(subject, sid, reply, None, data)


def seen(*messages: Msg) -> Seen:
    found = Seen()
    for one in messages:
        found.note(one, 1.0)
    return found


def without(found: Seen, events: list[Msg], now: float = 1.0) -> list[bytes]:
    return [event.data for event in events if not found.take(event, now)]


def test_what_was_seen_is_taken_out_as_often_as_it_was_seen() -> None:
    held = [message(data) for data in (b"2", b"3", b"3", b"4", b"3")]
    both = seen(*map(message, (b"1", b"2", b"3", b"3")))
    assert without(both, held) == [b"4", b"3"]
    assert without(both, held) == [b"2", b"3", b"3", b"4", b"3"]  # used up
    assert both.outstanding() == {1: 1}
    assert without(both, [message(b"1")]) == []
    assert not both


def test_of_messages_that_are_alike_the_nearest_in_time_begins() -> None:
    """A heartbeat of before the next server knew of us is not taken for the present one."""
    both = Seen()
    for now in (1.0, 2.0, 3.0, 4.0):
        both.note(message(b"tick"), now)
    assert [both.take(message(b"tick"), now) for now in (3.01, 3.99, 5.0)] == [True, True, False]
    assert not both


def test_what_came_early_does_not_come_again_behind_the_change() -> None:
    both = Seen()
    both.note(message(b"tick"), 1.0)
    both.settle(2.0)
    both.note(message(b"late"), 3.0)
    both.forget_early()
    assert without(both, [message(b"tick"), message(b"late")], 4.0) == [b"tick"]


def test_an_echo_is_taken_once_by_each_subscription() -> None:
    echoes = Echoes()
    assert not echoes
    echoes.note([b"SUB x 1\r\n", b"PUB s r 1\r\nx\r\n", b"PUB s 1\r\ny\r\n"])
    assert echoes
    echo = message(b"x", reply="r")
    assert [echoes.take(one) for one in (echo, echo, message(b"x"))] == [True, False, False]
    assert echoes.take(message(b"x", sid=2, reply="r"))
    assert echoes.take(message(b"y"))


def test_messages_that_differ_in_anything_are_different() -> None:
    same = message(b"x")
    others = [
        message(b"x", sid=2),
        message(b"x", subject="t"),
        message(b"x", reply="r"),
        Msg("s", 1, "", b"NATS/1.0\r\nA: b\r\n\r\n", b"x"),
        message(b"y"),
    ]
    found = seen(same)
    assert [found.take(one, 1.0) for one in [same, *others]] == [True] + [False] * len(others)


# -- a cluster that is restarted, server by server ---------------------------------------------


class Flood:
    """Numbers, published as long as it runs."""

    def __init__(self, conn: gnats.Connection) -> None:
        self.count = 0
        self._conn = conn
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            for _ in range(10):
                self._conn.publish("n", b"%d" % self.count)
                self._conn.publish("shared", b"%d" % self.count)
                self.count += 1
            gevent.sleep(0.002)

    def stop(self) -> int:
        self._greenlet.kill()
        self._conn.flush(10)
        return self.count


@pytest.mark.timeout(120)
@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_a_rolling_restart_is_not_noticed(keep: bool) -> None:
    told: list[Any] = []
    options: dict[str, Any] = {
        **FAST,
        "replay_unconfirmed": keep,
        "reconnect_wait": 0.2,
        "error_cb": lambda conn, exc: told.append((conn.options.name, exc)),
        "disconnected_cb": lambda conn: told.append((conn.options.name, "lost")),
    }
    # As by default, a server waits ten seconds before it puts the first client out.
    with NatsCluster(3, lame_duck_grace_period=10) as cluster:
        publisher = gnats.connect(cluster.urls[0], name="publisher", **options)
        subscriber = gnats.connect(cluster.urls[1], name="subscriber", **options)
        plain: list[int] = []
        shared: list[int] = []
        subscriber.subscribe("n", cb=lambda msg: plain.append(int(msg.data)))
        # On a subject of its own: what a server has sent to a member that has just left goes back
        # into the cluster, and may reach plain subscriptions to the same subject a second time.
        subscriber.subscribe("shared", queue="q", cb=lambda msg: shared.append(int(msg.data)))
        subscriber.subscribe("ready", cb=lambda msg: msg.respond(b""))  # the last to be known
        wait_until(lambda: all(map(_reaches_the_subscriber, cluster)), 10)
        flood = Flood(publisher)
        for server in cluster:
            server.lame_duck()
            for conn in (publisher, subscriber):
                wait_until(lambda conn=conn, server=server: _has_left(conn, server.port), 15)
            server.kill()
            server.restart()
            cluster.wait_formed(30)
        count = flood.stop()
        wait_until(lambda: len(plain) >= count and len(shared) >= count, 10)
        # Each once. Their order is the cluster's as long as the publisher stays where it is: what
        # it sends over its next link may overtake, between two servers, what it sent before.
        assert sorted(plain) == list(range(count))
        assert rising_sequences(plain) <= len(cluster) + 1
        assert sorted(set(shared)) == list(range(count))
        assert told == []
        stats = publisher.stats
        assert (stats.sent, stats.uncertain, stats.dropped) == (2 * count, 0, 0)
        assert (stats.disconnects, subscriber.stats.disconnects) == (0, 0)
        publisher.close()
        subscriber.close()


def rising_sequences(numbers: list[int]) -> int:
    """Of how many rising sequences *numbers* are a merge, at least."""
    lasts: list[int] = []  # of each sequence, sorted
    for number in numbers:
        index = bisect(lasts, number)
        if index == 0:  # it is smaller than the last of each
            lasts.insert(0, number)
        else:
            lasts[index - 1] = number
    return len(lasts)


def test_rising_sequences() -> None:
    assert rising_sequences([]) == 0
    assert rising_sequences([1, 2, 3]) == 1
    assert rising_sequences([1, 5, 2, 6, 3, 4, 7]) == 2
    assert rising_sequences([3, 2, 1]) == 3


def _reaches_the_subscriber(server: Any) -> bool:
    with gnats.connect(server.url) as conn:
        try:
            conn.request("ready", timeout=1)
        except (NoRespondersError, TimeoutError):
            return False
        return True


def _has_left(conn: gnats.Connection, port: int) -> bool:
    return conn.connected_url is not None and conn.connected_url.port != port


class Torrent:
    """Numbers, published as fast as it goes, *ahead* of those that have arrived at most."""

    def __init__(self, url: str, ahead: int, size: int) -> None:
        self.got: list[int] = []
        self.count = 0
        self._ahead = ahead
        self._padding = b"x" * size
        self._conn = gnats.connect(url)
        self._greenlet: Any = None

    def take(self, msg: Msg) -> None:
        self.got.append(int(msg.data.partition(b" ")[0]))

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)
        self.await_more(1000)

    def _run(self) -> None:
        while True:
            for _ in range(100):
                self._conn.publish("n", b"%d %b" % (self.count, self._padding))
                self.count += 1
            gevent.sleep(0)
            while self.lag >= self._ahead:
                gevent.sleep(0.001)

    @property
    def lag(self) -> int:
        return self.count - len(self.got)

    def await_more(self, count: int) -> None:
        wanted = len(self.got) + count
        wait_until(lambda: len(self.got) >= wanted, 10)

    def end(self) -> None:
        """All has arrived, each once and in its order."""
        self.await_more(1000)
        self._greenlet.kill()
        self._conn.flush(10)
        wait_until(lambda: len(self.got) >= self.count, 10)
        gevent.sleep(0.05)  # a double would come behind
        assert self.got == list(range(self.count))
        self._conn.close()


@contextlib.contextmanager
def a_torrent(
    cluster: NatsCluster, urls: list[str], ahead: int, size: int = 0
) -> Iterator[tuple[Torrent, gnats.Connection]]:
    """From the last server of *cluster* to a subscriber at the first of *urls*, who must hear of
    no loss, and miss nothing."""
    told: list[Any] = []
    torrent = Torrent(cluster.urls[-1], ahead, size)
    conn = gnats.connect(
        urls,
        ignore_discovered_servers=True,
        error_cb=lambda _, exc: told.append(exc),
        disconnected_cb=lambda _: told.append("lost"),
        **FAST,
    )
    conn.subscribe("n", cb=torrent.take)
    conn.subscribe("ready", cb=lambda msg: msg.respond(b""))  # the last to be known
    wait_until(lambda: all(map(_reaches_the_subscriber, cluster)), 10)
    torrent.start()
    yield torrent, conn
    torrent.end()
    assert told == []
    assert (conn.stats.disconnects, conn.stats.in_dropped) == (0, 0)
    conn.close()


def test_a_flood_is_moved_whole() -> None:
    with NatsCluster(2, lame_duck_grace_period=10) as cluster:
        with a_torrent(cluster, cluster.urls, 20_000) as (torrent, conn):
            before = len(torrent.got)
            cluster[0].lame_duck()
            wait_until(lambda: _has_left(conn, cluster[0].port), 15)
            assert len(torrent.got) - before > 5000  # it went on all the while


def test_a_move_from_the_far_end_of_a_slow_line() -> None:
    """The last word of the old server stands behind a second of messages."""
    rate = 400_000
    with NatsCluster(2, lame_duck_grace_period=10) as cluster, ChaosProxy(cluster.urls[0]) as proxy:
        urls = [proxy.url, cluster.urls[1]]
        with a_torrent(cluster, urls, rate // 200, 180) as (torrent, conn):
            proxy.throttle(rate)
            wait_until(lambda: torrent.lag >= rate // 200)
            before = len(torrent.got)
            cluster[0].lame_duck()
            wait_until(lambda: _has_left(conn, proxy.port), 15)
            assert len(torrent.got) - before > rate // 400  # over the slow line


@pytest.mark.parametrize("bound", ["MOST_BYTES", "MOST_HELD"])
def test_what_is_held_has_a_bound(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At which the settling is over, however long it should last. The publisher is at the server
    that is moved to: others would have to hear of the move first, which is what settling is for."""
    monkeypatch.setattr("gnats.move.SETTLE", 60.0)
    monkeypatch.setattr(f"gnats.move.{bound}", 2000)
    with NatsCluster(2, lame_duck_grace_period=10) as cluster:
        with a_torrent(cluster, cluster.urls[:2], 5000) as (_, conn):
            cluster[0].lame_duck()
            wait_until(lambda: _has_left(conn, cluster[0].port), 10)


# -- step by step, against servers that do as they are told -------------------------------------


class Stage:
    """A server that is about to leave, another one, and a connection to the first."""

    def __init__(
        self, fake_server: Any, other: Any = serve, leaving: Any = serve, **options: Any
    ) -> None:
        self.told: list[Any] = []
        self.leaving: FakeServer = fake_server(leaving)
        self.other: FakeServer = fake_server(other)
        self.conn = gnats.connect(
            [self.leaving.url, self.other.url],
            **{**FAST, **options},
            error_cb=lambda _, exc: self.told.append(exc),
            disconnected_cb=lambda _: self.told.append("lost"),
            lame_duck_cb=lambda _: self.told.append("lame duck"),
        )
        self.old = self.leaving.wait_for_client()

    def say_goodbye(self) -> None:
        self.old.send_info(ldm=True)

    @property
    def new(self) -> FakeClient:
        return self.other.clients[-1]

    def await_move(self) -> None:
        wait_until(lambda: str(self.conn.connected_url) == self.other.url, 10)
        assert self.conn.is_connected


def names(frames: list[Frame]) -> list[str]:
    return [" ".join([frame.op, *frame.args]) for frame in frames if frame.op != "PING"]


def test_the_next_link_is_subscribed_before_the_old_one_is_left(fake_server: Any) -> None:
    stage = Stage(fake_server)
    plain = stage.conn.subscribe("plain")
    queue = stage.conn.subscribe("queued", queue="q")
    stage.conn.flush()
    stage.say_goodbye()
    stage.await_move()
    stage.conn.publish("p", b"over there")
    stage.conn.flush()
    subs = [f"SUB plain {plain.sid}", f"SUB queued q {queue.sid}"]
    assert names(stage.new.frames)[1:] == [*subs, "PUB p"]
    assert names(stage.old.frames)[1:] == [
        *subs,
        f"UNSUB {plain.sid}",
        f"UNSUB {queue.sid}",
    ]
    assert stage.told == ["lame duck"]
    assert stage.conn.stats.disconnects == 0
    stage.conn.close()


def test_what_both_links_bring_is_delivered_once_and_in_order(fake_server: Any) -> None:
    gate = Gate()

    def other(client: FakeClient) -> None:
        client.handshake()
        sid = client.read_frame().sid
        for number in (2, 3, 4):
            client.deliver(sid, "plain", b"%d" % number)
        gate.set()
        client.serve()

    stage = Stage(fake_server, other)
    sub = stage.conn.subscribe("plain")
    stage.conn.flush()
    stage.say_goodbye()
    assert gate.wait(5)
    for number in (1, 2, 3):
        stage.old.deliver(sub.sid, "plain", b"%d" % number)
    stage.await_move()
    stage.new.deliver(sub.sid, "plain", b"5")
    assert [sub.next_msg(5).data for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
    with pytest.raises(TimeoutError):
        sub.next_msg(0.05)
    stage.conn.close()


def test_a_next_link_that_lags_behind_delivers_nothing_twice(fake_server: Any) -> None:
    """The old link's last messages, which come over the new one when it is the only one."""

    def leaving(client: FakeClient) -> None:
        client.handshake()
        sid = client.read_frame().sid
        client.send_info(ldm=True)
        while client.read_frame().op != "UNSUB":
            pass
        for number in (1, 2):
            client.deliver(sid, "plain", b"%d" % number)
        client.send(b"PONG\r\n")
        client.serve()

    old, other = fake_server(leaving), fake_server()
    conn = gnats.connect([old.url, other.url], **FAST)
    sub = conn.subscribe("plain")
    wait_until(lambda: str(conn.connected_url) == other.url, 10)
    for number in (1, 2, 3):
        other.clients[-1].deliver(sub.sid, "plain", b"%d" % number)
    assert [sub.next_msg(5).data for _ in range(3)] == [b"1", b"2", b"3"]
    assert sub.pending_msgs == 0
    conn.close()


def test_what_is_published_meanwhile_goes_over_one_link_or_the_other_in_order(
    fake_server: Any,
) -> None:
    stage = Stage(fake_server)
    stage.say_goodbye()
    count = 0
    while not _has_left(stage.conn, stage.leaving.port):
        stage.conn.publish("p", b"%d" % count)
        count += 1
        gevent.sleep(0.001)
    stage.conn.publish("p", b"%d" % count)
    stage.conn.flush()
    before, behind = stage.old.payloads(), stage.new.payloads()
    assert before + behind == [b"%d" % number for number in range(count + 1)]
    assert before
    assert behind
    stats = stage.conn.stats
    assert stats.sent == count + 1
    assert stats.uncertain == 0
    stage.conn.close()


def test_subscriptions_made_and_ended_meanwhile_and_limits(fake_server: Any) -> None:
    gate, go = Gate(), Gate()

    def other(client: FakeClient) -> None:
        client.handshake()
        while client.read_frame().op != "PING":
            pass
        for frame in [frame for frame in client.frames if frame.op == "SUB"]:
            if frame.subject == "limited":
                client.deliver(frame.sid, "limited", b"both")
        gate.set()
        go.wait(5)
        client.send(b"PONG\r\n")
        client.serve()

    stage = Stage(fake_server, other)
    ended = stage.conn.subscribe("ended")
    limited = stage.conn.subscribe("limited", max_msgs=5)
    stage.conn.flush()
    stage.old.deliver(limited.sid, "limited", b"before")
    stage.say_goodbye()
    assert gate.wait(5)
    stage.old.deliver(limited.sid, "limited", b"both")
    ended.unsubscribe()
    made = stage.conn.subscribe("made")
    go.set()
    stage.await_move()
    stage.conn.flush()
    told = names(stage.new.frames)[3:]  # behind CONNECT and the two SUBs
    # Sent over there: one, which came twice. Still wanted: five less the two received.
    assert sorted(told) == sorted(
        [f"UNSUB {ended.sid}", f"UNSUB {limited.sid} 4", f"SUB made {made.sid}"]
    )
    for number in range(3):
        stage.new.deliver(limited.sid, "limited", b"%d" % number)
    got = [limited.next_msg(5).data for _ in range(5)]
    assert got == [b"before", b"both", b"0", b"1", b"2"]
    wait_until(lambda: limited.is_closed)
    stage.conn.close()


def test_a_request_under_way_gets_its_answer_once(fake_server: Any) -> None:
    stage = Stage(fake_server)
    asking = gevent.spawn(stage.conn.request, "q", b"?", 10)
    (frame,) = stage.old.wait_for_frames(1, "PUB")
    sid = next(f.sid for f in stage.old.frames if f.op == "SUB")
    stage.say_goodbye()
    stage.await_move()
    stage.new.deliver(sid, frame.reply, b"!")
    assert asking.get(timeout=5).data == b"!"
    assert stage.conn.stats.in_dropped == 0
    stage.conn.close()


def test_notice_only(fake_server: Any) -> None:
    stage = Stage(fake_server, lame_duck_move=False)
    stage.say_goodbye()
    wait_until(lambda: "lame duck" in stage.told)
    gevent.sleep(0.2)
    assert str(stage.conn.connected_url) == stage.leaving.url
    assert not stage.other.clients
    stage.conn.close()


def test_without_another_server_it_stays_until_it_is_put_out(fake_server: Any) -> None:
    stage = Stage(fake_server)
    stage.other.refuse()
    stage.say_goodbye()
    wait_until(lambda: stage.conn.stats.attempts >= 2)
    assert str(stage.conn.connected_url) == stage.leaving.url
    assert stage.conn.flush(5)
    assert stage.told == ["lame duck"]
    stage.other.listen()
    stage.old.close()
    stage.leaving.refuse()
    stage.await_move()
    assert "lost" in stage.told
    stage.conn.close()


def silent(client: FakeClient) -> None:
    client.handshake()
    with pytest.raises(ClientGone):
        while True:
            client.read_frame()  # and no PONG


def closing(client: FakeClient) -> None:
    client.handshake()
    client.close()


def leaving_too(client: FakeClient) -> None:
    client.handshake(ldm=True)
    client.serve()


@pytest.mark.parametrize("other", [silent, closing, leaving_too], ids=lambda f: f.__name__)
def test_a_next_server_that_fails_harms_nothing(
    fake_server: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnats.move.PATIENCE", 0.2)
    stage = Stage(fake_server, other)
    sub = stage.conn.subscribe("plain")
    stage.conn.flush()
    stage.say_goodbye()
    wait_until(lambda: stage.other.clients and stage.new.is_closed, 5)
    stage.old.deliver(sub.sid, "plain", b"still here")
    assert sub.next_msg(5).data == b"still here"
    assert str(stage.conn.connected_url) == stage.leaving.url
    assert stage.told == ["lame duck"]
    stage.conn.close()


def test_an_old_server_that_does_not_answer_is_left_as_lost(
    fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnats.move.FAREWELL", 0.3)

    def deaf(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB plain")
        client.send_info(ldm=True)
        client.stall()

    leaving, other = fake_server(deaf), fake_server()
    conn = gnats.connect([leaving.url, other.url], **FAST)
    sub = conn.subscribe("plain")
    wait_until(lambda: conn.stats.disconnects == 1, 10)
    wait_until(lambda: str(conn.connected_url) == other.url, 5)
    other.clients[-1].wait_for_frames(1, "SUB")
    other.clients[-1].deliver(sub.sid, "plain", b"x")
    assert sub.next_msg(5).data == b"x"
    stats = conn.stats
    assert stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered
    conn.close()


@pytest.mark.parametrize("leave", ["close", "drain"])
def test_leaving_in_the_middle_of_a_move(fake_server: Any, leave: str) -> None:
    stage = Stage(fake_server, silent)
    stage.conn.subscribe("plain", cb=print)
    stage.conn.flush()
    stage.say_goodbye()
    stage.other.wait_for_client()
    getattr(stage.conn, leave)()
    assert stage.conn.is_closed
    wait_until(lambda: stage.new.is_closed)
    wait_until(lambda: stage.old.is_closed)


def test_a_next_server_that_fails_behind_the_farewell_is_a_loss(
    fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old link was told to send no more and writes no more: it must not be gone back to."""
    monkeypatch.setattr("gnats.move.PATIENCE", 30.0)  # no second move shall hide it
    other = fake_server(strict=False)

    def leaving(client: FakeClient) -> None:
        client.handshake()
        client.send_info(ldm=True)
        while client.read_frame().op != "UNSUB":
            pass
        client.send(b"PONG\r\n")
        other.clients[-1].reset()  # both are heard in one turn of the loop
        client.serve()

    old = fake_server([leaving, serve])
    conn = gnats.connect([old.url, other.url], **FAST)
    sub = conn.subscribe("plain")
    wait_until(lambda: conn.stats.disconnects == 1, 10)
    conn.publish("p", b"x")
    assert conn.flush(10)
    assert not sub.is_closed
    servers = [server.clients[-1] for server in (old, other)]
    alive = next(client for client in servers if not client.is_closed)
    alive.wait_for_frames(1, "SUB")
    assert alive.payloads("p") == [b"x"]
    conn.close()


@pytest.mark.parametrize("operation", ["flush", "rtt", "drain"])
def test_a_round_trip_spans_a_move(fake_server: Any, operation: str) -> None:
    """What asks behind the old server's last word is answered by the next one."""
    gate = Gate()

    def leaving(client: FakeClient) -> None:
        client.handshake()
        while client.read_frame().op != "SUB":
            pass
        client.send_info(ldm=True)
        while client.read_frame().op != "UNSUB":
            pass
        gate.set()  # and no PONG before the test says so
        client.stall()

    stage = Stage(fake_server, leaving=leaving)
    sub = stage.conn.subscribe("plain")
    assert gate.wait(10)
    call = {"flush": stage.conn.flush, "rtt": stage.conn.rtt, "drain": sub.drain}[operation]
    asking = gevent.spawn(call)
    gevent.sleep(0)
    stage.old.send(b"PONG\r\n")
    asking.get(timeout=5)
    assert str(stage.conn.connected_url) == stage.other.url
    assert stage.told == ["lame duck"]
    stage.conn.close()


# -- what else can happen meanwhile ---------------------------------------------------------------


def test_heartbeats_that_are_all_alike_are_all_delivered(fake_server: Any) -> None:
    """One that came before the next server knew of us is no copy of a later one."""
    gate = Gate()

    def other(client: FakeClient) -> None:
        client.handshake()
        sid = client.read_frame().sid
        client.expect("PING")
        client.send(b"PONG\r\n")
        gate.wait(5)
        client.deliver(sid, "tick", b"")
        client.serve()

    stage = Stage(fake_server, other)
    sub = stage.conn.subscribe("tick")
    stage.conn.flush()
    stage.say_goodbye()
    stage.other.wait_for_client().wait_for_frames(1, "SUB")
    stage.old.deliver(sub.sid, "tick", b"")  # over the old link only
    gevent.sleep(0.15)
    stage.old.deliver(sub.sid, "tick", b"")  # over both
    gate.set()
    stage.await_move()
    stage.new.deliver(sub.sid, "tick", b"")
    stage.new.deliver(sub.sid, "tick", b"")
    for _ in range(4):
        sub.next_msg(2)
    with pytest.raises(TimeoutError):
        sub.next_msg(0.05)
    stage.conn.close()


@pytest.mark.parametrize("who", ["conn", "sub"])
def test_a_drain_in_a_move_loses_nothing_of_a_queue_group(who: str, rng: random.Random) -> None:
    with NatsCluster(2, lame_duck_grace_period=10) as cluster:
        leaving = gnats.connect(cluster.urls, **{**FAST, "reconnect_wait": 0.0})
        staying = gnats.connect(cluster.urls[1])
        mine: list[int] = []
        theirs: list[int] = []
        sub = leaving.subscribe("q", queue="g", cb=lambda msg: mine.append(int(msg.data)))
        staying.subscribe("q", queue="g", cb=lambda msg: theirs.append(int(msg.data)))
        leaving.subscribe("ready", cb=lambda msg: msg.respond(b""))
        wait_until(lambda: all(map(_reaches_the_subscriber, cluster)), 10)
        count = [0]

        def publish() -> None:
            while True:
                staying.publish("q", b"%d" % count[0])
                count[0] += 1
                gevent.sleep(0.001)

        flood = gevent.spawn(publish)
        wait_until(lambda: mine)
        cluster[0].lame_duck()
        # Where it strikes is up to the moment: in the listening, the joining, the parting.
        wait_until(lambda: cluster[1].connz()["num_connections"] >= 2, 10)
        gevent.sleep(rng.random() * 0.6)
        (leaving if who == "conn" else sub).drain(10)
        gevent.sleep(0.1)
        flood.kill()
        staying.flush()
        wait_until(lambda: len(mine) + len(theirs) >= count[0], 5)
        assert sorted(mine + theirs) == list(range(count[0]))
        assert leaving.stats.in_dropped == 0
        leaving.close()
        staying.close()


def test_no_echo_holds_in_a_move() -> None:
    with NatsCluster(2, lame_duck_grace_period=10) as cluster:
        conn = gnats.connect(cluster.urls, no_echo=True, **FAST)
        other = gnats.connect(cluster.urls[1])
        got: list[bytes] = []
        conn.subscribe("s", cb=lambda msg: got.append(msg.data))
        conn.subscribe("ready", cb=lambda msg: msg.respond(b""))
        wait_until(lambda: all(map(_reaches_the_subscriber, cluster)), 10)
        cluster[0].lame_duck()
        count = 0
        while not _has_left(conn, cluster[0].port) or count < 100:
            conn.publish("s", b"mine", headers={"n": str(count)} if count % 2 else None)
            other.publish("s", b"%d" % count)
            count += 1
            gevent.sleep(0.001)
        other.flush()
        wait_until(lambda: len(got) >= count)
        assert got == [b"%d" % number for number in range(count)]
        conn.close()
        other.close()


def test_more_than_one_batch_is_pending_at_the_parting(fake_server: Any) -> None:
    def leaving(client: FakeClient) -> None:
        client.handshake(max_payload=4_000_000)
        client.expect("SUB plain")
        client.send_info(ldm=True, max_payload=4_000_000)
        go.wait(5)
        client.serve()

    def other(client: FakeClient) -> None:
        client.handshake(max_payload=4_000_000)
        client.serve()

    go = Gate()
    stage = Stage(fake_server, other, leaving)
    stage.conn.subscribe("plain")
    big = b"x" * 3_000_000
    senders = [gevent.spawn(stage.conn.publish, "big", big) for _ in range(3)]
    stage.other.wait_for_client().wait_for_frames(1, "SUB")
    gevent.sleep(0.3)
    go.set()
    stage.await_move()
    gevent.joinall(senders, timeout=10, raise_error=True)
    stage.conn.flush(10)
    stats = stage.conn.stats
    assert stage.told == ["lame duck"]
    assert (stats.sent, stats.uncertain, stats.disconnects) == (3, 0, 0)
    stage.conn.close()


def test_a_close_at_the_parting_loses_nothing_that_was_published(fake_server: Any) -> None:
    parting = Gate()

    def leaving(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB plain")
        client.send_info(ldm=True)
        client.expect("UNSUB")
        client.expect("PING")
        parting.set()
        gevent.sleep(0.3)
        client.send(b"PONG\r\n")
        client.serve()

    stage = Stage(fake_server, leaving=leaving)
    stage.conn.subscribe("plain")
    assert parting.wait(10)
    stage.conn.publish("last", b"words")
    stage.conn.close()
    assert stage.new.payloads() == [b"words"]
    stats = stage.conn.stats
    assert (stats.accepted, stats.sent, stats.dropped) == (1, 1, 0)


def test_a_server_that_is_lost_while_another_is_dialled(fake_server: Any) -> None:
    def mute(client: FakeClient) -> None:
        client.stall()

    stage = Stage(fake_server, mute)
    stage.say_goodbye()
    stage.other.wait_for_client()
    stage.leaving.refuse()
    stage.old.close()
    wait_until(lambda: stage.conn.stats.disconnects == 1, 2)
    assert stage.conn.is_reconnecting
    stage.conn.close()


def test_a_limit_counts_what_is_still_to_come_twice(fake_server: Any) -> None:
    def leaving(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB plain")
        client.expect("UNSUB")  # the limit
        client.send_info(ldm=True)
        client.expect("UNSUB")
        client.deliver(1, "plain", b"1")
        client.send(b"PONG\r\n")
        client.serve()

    stage = Stage(fake_server, leaving=leaving)
    sub = stage.conn.subscribe("plain", max_msgs=3)
    stage.await_move()
    stage.conn.flush()
    assert f"UNSUB {sub.sid} 3" in names(stage.new.frames)  # the copy of the first, and two more
    for data in (b"1", b"2", b"3"):
        stage.new.deliver(sub.sid, "plain", data)
    assert [msg.data for msg in sub] == [b"1", b"2", b"3"]
    stage.conn.close()


def test_what_is_subscribed_meanwhile_is_told_before_the_parting(fake_server: Any) -> None:
    stage = Stage(fake_server)
    first = stage.conn.subscribe("first")
    stage.conn.flush()
    stage.say_goodbye()
    stage.other.wait_for_client().wait_for_frames(1, "SUB")
    second = stage.conn.subscribe("second")
    third = stage.conn.subscribe("third", queue="q")
    stage.await_move()
    stage.conn.flush()
    assert names(stage.new.frames)[1:] == [
        f"SUB first {first.sid}",
        f"SUB second {second.sid}",
        f"SUB third q {third.sid}",
    ]
    stage.conn.close()


def test_the_users_choice_counts_in_a_move_too(fake_server: Any) -> None:
    servers = [fake_server() for _ in range(3)]
    asked: list[list[str]] = []

    def select(urls: list[Any], info: Any) -> tuple[Any, float]:
        asked.append([str(url) for url in urls])
        return urls[-1], 0.0

    conn = gnats.connect([server.url for server in servers], select_server_cb=select, **FAST)
    servers[0].wait_for_client().send_info(ldm=True)
    wait_until(lambda: str(conn.connected_url) == servers[2].url, 10)
    assert asked == [[servers[1].url, servers[2].url]]
    assert not servers[1].clients
    conn.close()
