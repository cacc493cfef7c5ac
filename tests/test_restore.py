"""What a new link is told, in which order, and that nothing comes in between.

CONNECT, PING | each live subscription once (and UNSUB with what remains) | what was pending
"""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import BadSubscriptionError, FrameRefusedError, HeaderError, TimeoutError
from gnats.testing import FakeClient, FakeServer, Frame, NatsServer, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


def cut_off(server: FakeServer, conn: gnats.Connection) -> None:
    """No link, and none to be had until ``listen``."""
    server.refuse()
    server.close_clients()
    conn.wait_for_status("reconnecting", 5)


def behind_handshake(client: FakeClient) -> list[Frame]:
    """What came behind CONNECT and PING, without the PINGs that ride along."""
    frames = list(client.frames)
    assert [frame.op for frame in frames[:2]] == ["CONNECT", "PING"]
    return [frame for frame in frames[2:] if frame.op != "PING"]


def words(frames: list[Frame]) -> list[str]:
    return [" ".join([frame.op, *frame.args]) for frame in frames]


# -- the order on the wire -----------------------------------------------------------------------


def test_the_order_of_a_restore(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    plain = conn.subscribe("plain")
    queued = conn.subscribe("queued", queue="workers")
    limited = conn.subscribe("limited", max_msgs=10)
    later = conn.subscribe("later")
    later.unsubscribe(limit=5)
    gone = conn.subscribe("gone")
    gone.unsubscribe()
    spent = conn.subscribe("spent", max_msgs=2)
    dropped = conn.subscribe("dropped")
    client = server.wait_for_client()
    client.wait_for_frames(7, "SUB")
    for _ in range(3):
        client.deliver(limited.sid, "limited", b"")
    client.deliver(later.sid, "later", b"")
    for _ in range(2):
        client.deliver(spent.sid, "spent", b"")
    wait_until(lambda: conn.stats.in_msgs == 6)

    cut_off(server, conn)
    conn.publish("p", b"1")
    dropped.unsubscribe()
    new = conn.subscribe("new")
    conn.publish("p", b"2")
    fleeting = conn.subscribe("fleeting")
    conn.publish("p", b"3", reply="r", headers={"K": "v"})
    fleeting.unsubscribe()
    narrowed = conn.subscribe("narrowed", queue="q")
    narrowed.unsubscribe(limit=4)
    conn.publish("p", b"4")
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.flush()

    frames = behind_handshake(server.clients[1])
    assert words(frames) == [
        f"SUB plain {plain.sid}",
        f"SUB queued workers {queued.sid}",
        f"SUB limited {limited.sid}",
        f"UNSUB {limited.sid} 7",
        f"SUB later {later.sid}",
        f"UNSUB {later.sid} 4",
        f"SUB new {new.sid}",
        f"SUB narrowed q {narrowed.sid}",
        f"UNSUB {narrowed.sid} 4",
        "PUB p",
        "PUB p",
        "HPUB p r",
        "PUB p",
    ]
    assert server.clients[1].payloads() == [b"1", b"2", b"3", b"4"]
    server.clients[1].assert_whole()
    conn.close()


def test_no_publish_comes_between_connect_subs_and_pending(fake_server: Any) -> None:
    """Greedy publishers in every loop turn, while the handshake and the restore go on."""

    def slow(client: FakeClient) -> None:
        client.send_info()
        client.expect("CONNECT ")
        gevent.sleep(0.02)  # the publishers have many turns between INFO, CONNECT, PING and PONG
        client.expect("PING")
        gevent.sleep(0.02)
        client.send(b"PONG\r\n")
        client.serve()

    server = fake_server([serve, slow])
    conn = gnats.connect(server.url, **FAST)
    subs = [conn.subscribe(f"s{number}") for number in range(20)]
    conn.flush()
    published: list[bytes] = []
    going = True

    def publish() -> None:
        while going:
            published.append(b"%d" % len(published))
            conn.publish("p", published[-1])
            gevent.sleep(0)

    cut_off(server, conn)
    publishers = [gevent.spawn(publish) for _ in range(3)]
    server.listen()
    conn.wait_for_status("connected", 5)
    wait_until(lambda: conn.stats.sent > conn.stats.replayed + 100)
    going = False
    gevent.joinall(publishers)
    conn.flush()
    client = server.clients[1]
    frames = behind_handshake(client)
    assert words(frames[:20]) == [f"SUB {sub.subject} {sub.sid}" for sub in subs]
    assert {frame.op for frame in frames[20:]} == {"PUB"}
    arrived = client.payloads()
    assert arrived == published[len(published) - len(arrived) :]
    assert len(published) - len(arrived) == conn.stats.uncertain == 0
    conn.close()


def test_a_subscription_made_just_before_the_loss_is_asked_for_once(fake_server: Any) -> None:
    """Its SUB was pending, or in the kernel, when the link went: the next one has it once."""
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    for _ in range(10):
        count = len(server.clients)
        server.close_clients()
        sub = conn.subscribe("x")
        conn.publish("x", b"")
        wait_until(lambda count=count: len(server.clients) > count and conn.is_connected)
        conn.flush()
        frames = [f for f in server.clients[-1].frames if f.op in ("SUB", "UNSUB")]
        assert words(frames) == [f"SUB x {sub.sid}"]
        sub.unsubscribe()
    conn.close()


def test_an_unsubscribe_just_before_the_loss_is_not_forgotten(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    for _ in range(10):
        sub = conn.subscribe("x")
        conn.flush()
        count = len(server.clients)
        server.close_clients()
        sub.unsubscribe()
        wait_until(lambda count=count: len(server.clients) > count and conn.is_connected)
        conn.flush()
        assert [f for f in server.clients[-1].frames if f.op in ("SUB", "UNSUB")] == []
    conn.close()


def test_reconnected_cb_comes_behind_the_replay(fake_server: Any) -> None:
    server = fake_server()
    seen: list[int] = []
    conn = gnats.connect(server.url, reconnected_cb=lambda c: seen.append(c.stats.replayed), **FAST)
    cut_off(server, conn)
    for _ in range(50):
        conn.publish("p", b"x" * 1000)
    server.listen()
    wait_until(lambda: seen)
    assert seen == [50]
    conn.close()


def test_reconnected_cb_waits_for_a_slow_server_to_take_the_replay(fake_server: Any) -> None:
    gate = gevent.event.Event()

    def slow(client: FakeClient) -> None:
        client.handshake()
        gate.wait(10)
        client.serve()

    server = fake_server([serve, slow], rcvbuf=4096)
    seen: list[gnats.Stats] = []
    conn = gnats.connect(server.url, reconnected_cb=lambda c: seen.append(c.stats), **FAST)
    cut_off(server, conn)
    for _ in range(70):
        conn.publish("p", b"x" * 100_000)
    server.listen()
    conn.wait_for_status("connected", 5)
    gevent.sleep(0.05)
    assert not seen
    gate.set()
    wait_until(lambda: seen)
    assert seen[0].replayed == 70
    conn.close()


def test_a_loss_in_the_middle_of_the_restore_starts_it_over(fake_server: Any) -> None:
    """Cut in the SUBs or in the replay: the next link gets all of it, whole."""
    for cut in (1, 20, 60, 200, 3000, 9000):

        def half(client: FakeClient, cut: int = cut) -> None:
            client.handshake()
            client.cut_after(cut)

        server = fake_server([serve, half, serve])
        conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
        subs = [conn.subscribe(f"subject.{number}") for number in range(10)]
        conn.flush()
        cut_off(server, conn)
        for number in range(100):
            conn.publish("p", b"%d" % number + b"x" * 100)
        server.listen()
        third = server.wait_for_client(3)
        conn.wait_for_status("connected", 5)
        conn.flush()
        frames = behind_handshake(third)
        assert words(frames[:10]) == [f"SUB {sub.subject} {sub.sid}" for sub in subs]
        payloads = third.payloads()
        assert [int(p.rstrip(b"x")) for p in payloads] == list(range(100 - len(payloads), 100))
        before = [int(p.rstrip(b"x")) for p in server.clients[1].payloads()]
        assert set(before) | set(range(100 - len(payloads), 100)) == set(range(100))
        conn.close()
        server.stop()


# -- counted subscriptions --------------------------------------------------------------------


def test_what_remains_of_a_count_over_several_links(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    sub = conn.subscribe("c", max_msgs=5)
    for left in (5, 4, 3, 2, 1):
        client = server.clients[-1]
        client.wait_for_frames(1, "UNSUB")
        assert words([f for f in client.frames if f.op == "UNSUB"]) == [f"UNSUB {sub.sid} {left}"]
        client.deliver(sub.sid, "c", b"%d" % left)
        assert sub.next_msg(5).data == b"%d" % left
        count = len(server.clients)
        client.reset()
        wait_until(lambda count=count: len(server.clients) > count and conn.is_connected)
    conn.flush()
    assert sub.is_closed
    assert behind_handshake(server.clients[-1]) == []
    conn.close()


def test_a_limit_set_after_a_return_counts_from_where_the_server_began(fake_server: Any) -> None:
    """The server counts from the SUB of this link; 3 of the 10 came over the one before."""
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    sub = conn.subscribe("c")
    client = server.wait_for_client()
    client.wait_for_frames(1, "SUB")
    for _ in range(3):
        client.deliver(sub.sid, "c", b"")
    wait_until(lambda: sub.pending_msgs == 3)
    client.reset()
    second = server.wait_for_client(2)
    conn.wait_for_status("connected", 5)
    second.wait_for_frames(1, "SUB")
    second.deliver(sub.sid, "c", b"")
    wait_until(lambda: sub.pending_msgs == 4)
    sub.unsubscribe(limit=10)
    conn.flush()
    assert words(behind_handshake(second)) == [f"SUB c {sub.sid}", f"UNSUB {sub.sid} 7"]
    conn.close()


def test_a_limit_set_after_a_return_leaves_no_interest_behind(nats_server: NatsServer) -> None:
    """On a real server: when the subscription has ended here, it has ended there."""
    conn = gnats.connect(nats_server.url, **FAST)
    sub = conn.subscribe("c", queue="q")
    for _ in range(3):
        conn.publish("c")
        sub.next_msg(5)
    nats_server.restart()
    wait_until(lambda: conn.stats.reconnects == 1)
    sub.unsubscribe(limit=5)
    for _ in range(2):
        conn.publish("c")
        sub.next_msg(5)
    assert sub.is_closed
    conn.flush()
    assert nats_server.connz()["connections"][0]["subscriptions"] == 0
    conn.close()


# -- against a real server --------------------------------------------------------------------


def server_side(server: NatsServer) -> list[str]:
    """The subjects that the server holds for its only client, with their queues."""
    (client,) = server.monitor("/connz?subs=detail")["connections"]
    held = client.get("subscriptions_list_detail") or []
    return sorted(f"{sub['subject']} {sub.get('qgroup', '')}".strip() for sub in held)


def test_every_subscription_is_there_once_after_each_restart(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    got: list[str] = []
    subs = [
        conn.subscribe(f"s.{number}", cb=lambda m: got.append(m.subject)) for number in range(50)
    ]
    conn.subscribe("q", queue="workers", cb=lambda m: got.append(m.subject))
    for _ in range(4):
        conn.flush()
        wanted = sorted([sub.subject for sub in subs] + ["q workers"])
        assert server_side(nats_server) == wanted
        got.clear()
        for subject in (*[sub.subject for sub in subs], "q"):
            conn.publish(subject)
        conn.flush()
        wait_until(lambda: len(got) == len(subs) + 1)
        assert sorted(got) == sorted([sub.subject for sub in subs] + ["q"])
        before = conn.stats.reconnects
        nats_server.kill()
        conn.wait_for_status("reconnecting", 5)
        subs.pop(0).unsubscribe()
        subs.append(conn.subscribe(f"t.{before}", cb=lambda m: got.append(m.subject)))
        nats_server.start()
        wait_until(lambda before=before: conn.stats.reconnects > before)
    conn.close()


def test_requests_work_again_after_a_restart(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))
    assert conn.request("echo", b"1", timeout=5).data == b"1"
    nats_server.restart()
    wait_until(lambda: conn.stats.reconnects == 1)
    assert conn.request("echo", b"2", timeout=5).data == b"2"
    conn.close()


def test_a_request_made_in_an_outage_is_answered_behind_it(nats_server: NatsServer) -> None:
    """It keeps its own deadline: published with the replay, answered over the new link."""
    conn = gnats.connect(nats_server.url, **FAST)
    conn.subscribe("echo", cb=lambda msg: msg.respond(msg.data))
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    asked = gevent.spawn(conn.request, "echo", b"1", timeout=10)
    hasty = gevent.spawn(conn.request, "echo", b"2", timeout=0.05)
    hasty.join(5)
    assert isinstance(hasty.exception, TimeoutError)
    assert not asked.dead
    nats_server.start()
    assert asked.get(timeout=10).data == b"1"
    conn.close()


def test_a_request_whose_link_is_lost_may_still_be_answered(fake_server: Any) -> None:
    """The reply comes over the next link; one that has timed out gets no reply of another."""
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    asked = gevent.spawn(conn.request, "slow", b"1", timeout=10)
    client = server.wait_for_client()
    pub = client.wait_for_frames(1, "PUB")[0]
    client.reset()
    second = server.wait_for_client(2)
    inbox = second.wait_for_frames(1, "SUB")[0]
    second.deliver(inbox.sid, pub.reply, b"answer")
    assert asked.get(timeout=5).data == b"answer"
    with pytest.raises(TimeoutError):
        conn.request("slow", b"2", timeout=0.02)
    late = second.wait_for_frames(1, "PUB")[-1].reply
    asked = gevent.spawn(conn.request, "slow", b"3", timeout=10)
    reply = second.wait_for_frames(2, "PUB")[-1].reply
    second.deliver(inbox.sid, late, b"late")
    second.deliver(inbox.sid, reply, b"right")
    assert asked.get(timeout=5).data == b"right"
    conn.close()


def test_iteration_and_next_msg_span_an_outage(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    sub = conn.subscribe("it")
    got: list[bytes] = []

    def iterate() -> None:
        for msg in sub:
            got.append(msg.data)

    iterating = gevent.spawn(iterate)
    conn.publish("it", b"before")
    wait_until(lambda: got == [b"before"])
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    conn.publish("it", b"during")
    nats_server.start()
    conn.wait_for_status("connected", 5)
    conn.publish("it", b"after")
    wait_until(lambda: len(got) == 3)
    assert got == [b"before", b"during", b"after"]
    conn.close()
    iterating.join(5)
    assert iterating.successful()


def test_a_flush_begun_in_an_outage_covers_the_replay(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, **FAST)
    cut_off(server, conn)
    for number in range(100):
        conn.publish("p", b"%d" % number)
    flushing = gevent.spawn(conn.flush, 10)
    gevent.sleep(0.02)
    assert not flushing.dead
    server.listen()
    assert flushing.get(timeout=5) is True
    # At this very moment the server has them all: nothing is waited for here.
    assert server.clients[1].payloads() == [b"%d" % n for n in range(100)]
    conn.close()


# -- a frame that servers refuse -----------------------------------------------------------------

SHORT_LINES = "max_control_line: 300"
LONG = "long." + "x" * 400


def test_a_kept_message_that_the_server_closes_the_link_for_is_given_up() -> None:
    """The others, in front of it and behind it, arrive; in order, and the books close."""
    told: list[Exception] = []
    with NatsServer(config=SHORT_LINES) as server:
        conn = gnats.connect(
            server.url, replay_unconfirmed=True, error_cb=lambda _, exc: told.append(exc), **FAST
        )
        reader = gnats.connect(server.url, **FAST)
        got = reader.subscribe("p")
        reader.flush()
        for number in range(10):
            conn.publish("p", b"%d" % number)
        conn.publish(LONG, b"poison")
        for number in range(10, 20):
            conn.publish("p", b"%d" % number)
        assert conn.flush(20)
        conn.publish("p", b"end")
        payloads = [got.next_msg(5).data]
        while payloads[-1] != b"end":
            payloads.append(got.next_msg(5).data)
        first_times = list(dict.fromkeys(payloads))
        assert first_times == [b"%d" % number for number in range(20)] + [b"end"]
        refused = [exc for exc in told if isinstance(exc, FrameRefusedError)]
        assert [(exc.operation, exc.subject) for exc in refused] == [("publish", LONG)]
        assert refused[0].size == len(f"PUB {LONG} 6\r\npoison\r\n")
        assert "maximum control line" in refused[0].text.lower()
        stats = conn.stats
        assert (stats.dropped, stats.uncertain) == (1, 0)
        assert stats.accepted == stats.sent + stats.dropped + stats.buffered
        lost_before = stats.disconnects
        conn.force_reconnect()
        wait_until(lambda: conn.stats.reconnects == lost_before + 1 and conn.is_connected)
        assert conn.flush(5)  # trusted again, and nothing is sent that was refused
        assert conn.stats.disconnects == lost_before + 1
        conn.close()
        reader.close()


@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "keep"])
def test_a_subscription_that_the_server_closes_the_link_for_is_ended(keep: bool) -> None:
    told: list[Exception] = []
    with NatsServer(config=SHORT_LINES) as server:
        conn = gnats.connect(
            server.url, replay_unconfirmed=keep, error_cb=lambda _, exc: told.append(exc), **FAST
        )
        before = [conn.subscribe(f"before.{number}") for number in range(5)]
        poison = conn.subscribe(LONG)
        behind = [conn.subscribe(f"behind.{number}", max_msgs=3) for number in range(5)]
        with pytest.raises(BadSubscriptionError) as caught:
            poison.next_msg(20)
        assert isinstance(caught.value.__cause__, FrameRefusedError)
        assert caught.value.__cause__.operation == "subscription"
        assert any(isinstance(exc, FrameRefusedError) for exc in told)
        conn.wait_for_status("connected", 5)
        for sub in [*before, *behind]:
            conn.publish(sub.subject, b"alive")
            assert sub.next_msg(5).data == b"alive"
            assert sub.pending_msgs == 0
        conn.close()


def test_a_refusal_that_is_not_repeated_gives_up_nothing(fake_server: Any) -> None:
    """A line between us that broke once: the frames that came broken are sent again, and stay."""

    def sceptic(client: FakeClient) -> None:
        client.handshake()
        for _ in range(4):  # SUB, and some of the messages
            client.read_frame()
        client.send_err("Parser Error")
        client.close()

    server = fake_server([sceptic, sceptic, serve])
    conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
    sub = conn.subscribe("s")
    for number in range(10):
        conn.publish("p", b"%d" % number)
    assert conn.flush(10)
    assert conn.stats.dropped == 0
    assert not sub.is_closed
    assert server.clients[2].payloads() == [b"%d" % number for number in range(10)]
    conn.close()


def test_a_server_that_only_closes_makes_nobody_a_suspect(fake_server: Any) -> None:
    def rude(client: FakeClient) -> None:
        client.handshake()
        client.read_frame()
        client.close()

    server = fake_server([rude] * 6 + [serve])
    conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
    conn.subscribe("s")
    for number in range(10):
        conn.publish("p", b"%d" % number)
    assert conn.flush(20)
    assert conn.stats.dropped == 0
    conn.close()


def test_a_link_that_dies_early_each_time_still_gets_on(fake_server: Any) -> None:
    """Kept messages are confirmed piece by piece: no link lives long enough for all of them."""
    payload = b"x" * 1000

    def short_lived(client: FakeClient) -> None:
        client.handshake()
        taken = 0
        while taken < 150:
            frame = client.read_frame()
            taken += frame.op == "PUB"
            if frame.op == "PING":
                client.send(b"PONG\r\n")
        client.close()

    server = fake_server([short_lived] * 30 + [serve])
    conn = gnats.connect(server.url, replay_unconfirmed=True, **FAST)
    cut_off(server, conn)
    for number in range(1000):
        conn.publish("p", b"%04d" % number + payload)
    server.listen()
    assert conn.flush(30)
    assert len(server.clients) < 20
    seen = [int(p[:4]) for client in server.clients for p in client.payloads()]
    assert sorted(set(seen)) == list(range(1000))
    conn.close()


def test_headers_are_not_replayed_to_a_server_that_takes_none(fake_server: Any) -> None:
    def old(client: FakeClient) -> None:
        client.handshake(headers=False)
        client.serve()

    server = fake_server([serve, old])
    told: list[Exception] = []
    conn = gnats.connect(server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
    cut_off(server, conn)
    conn.publish("p", b"1")
    conn.publish("p", b"2", headers={"K": "v"})
    conn.publish("p", b"3")
    server.listen()
    conn.wait_for_status("connected", 5)
    conn.flush()
    assert server.clients[1].payloads() == [b"1", b"3"]
    assert [exc for exc in told if isinstance(exc, HeaderError)]
    assert conn.stats.dropped == 1
    conn.close()
