"""What a new link is told, in which order, and that nothing comes in between.

CONNECT, PING | each live subscription once (and UNSUB with what remains) | what was pending
"""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import TimeoutError
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
