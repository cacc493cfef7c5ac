"""flush() true means: the server has processed all that was published before. And rtt()."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from finish import finish

import gnats
from gnats import errors
from gnats.nuid import NUID
from gnats.testing import FakeClient, NatsServer, wait_until

_ids = NUID()
FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
SLACK = 0.7


def test_flush_means_processed(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url)
    for round_ in range(1, 4):
        for _ in range(1000):
            conn.publish("a", b"x" * 100)
        assert conn.flush(5) is True
        assert nats_server.varz()["in_msgs"] == round_ * 1000
        assert conn.stats.sent == round_ * 1000
    finish(conn)


def test_flush_makes_a_subscription_known(connect: Any, subject: str) -> None:
    listener, speaker = connect(), connect()
    sub = listener.subscribe(subject)
    assert listener.flush(5)
    speaker.publish(subject, b"x")
    assert speaker.flush(5)
    assert sub.next_msg(5).data == b"x"


def test_flushes_of_many_greenlets(connect: Any, subject: str) -> None:
    conn = connect()

    def work(number: int) -> bool:
        for _ in range(10):
            conn.publish(subject, b"%d" % number)
            assert conn.flush(5)
        return True

    workers = [gevent.spawn(work, number) for number in range(50)]
    assert all(worker.get(timeout=10) for worker in workers)
    assert conn.stats.sent == 500


def test_rtt(connect: Any) -> None:
    conn = connect()
    assert 0 < conn.rtt() < 1
    assert 0 < conn.rtt(timeout=5) < 1


def test_rtt_measures(fake_server: Any) -> None:
    def slow(client: FakeClient) -> None:
        client.handshake()
        client.expect("PING")
        gevent.sleep(0.1)
        client.send(b"PONG\r\n")
        client.serve()

    conn = gnats.connect(fake_server(slow).url)
    assert 0.097 <= conn.rtt() < 0.1 + SLACK
    finish(conn)


@pytest.mark.parametrize("call", ["flush", "rtt"])
def test_a_server_that_does_not_answer(nats_server: NatsServer, call: str) -> None:
    conn = gnats.connect(nats_server.url)
    nats_server.pause()
    for timeout in (0, 0.1):
        began = monotonic()
        with pytest.raises(errors.TimeoutError) as info:
            getattr(conn, call)(timeout)
        assert info.value.timeout == timeout
        assert monotonic() - began < timeout + SLACK
    nats_server.resume()
    # The late PONGs belong to the calls that gave up, not to this one.
    conn.publish("a", b"x")
    assert getattr(conn, call)(5)
    assert nats_server.varz()["in_msgs"] == 1
    finish(conn)


def test_a_flush_is_not_satisfied_by_an_earlier_pong(fake_server: Any) -> None:
    pings = []

    def stingy(client: FakeClient) -> None:
        client.handshake()
        while True:
            if client.read_frame(timeout=20).op == "PING":
                pings.append(client)

    server = fake_server(stingy)
    conn = gnats.connect(server.url)
    with pytest.raises(errors.TimeoutError):
        conn.flush(0.05)
    second = gevent.spawn(conn.flush, 5)
    wait_until(lambda: len(pings) == 2)
    pings[0].send(b"PONG\r\n")  # for the first
    gevent.sleep(0.05)
    assert not second.ready()
    pings[0].send(b"PONG\r\n")
    assert second.get(timeout=5) is True
    server.stop()
    conn.wait_for_status("reconnecting", 5)
    finish(conn)


def test_a_loss_interrupts(nats_server: NatsServer) -> None:
    conn = gnats.connect(nats_server.url, **FAST)
    nats_server.pause()
    flushes = [gevent.spawn(conn.flush, 10) for _ in range(3)]
    rtt = gevent.spawn(conn.rtt, 10)
    gevent.sleep(0.02)
    nats_server.kill()
    for waiter in [*flushes, rtt]:
        with pytest.raises(errors.FlushInterruptedError):
            waiter.get(timeout=5)
    with pytest.raises(errors.ConnectionReconnectingError):
        conn.rtt(1)
    with pytest.raises(errors.TimeoutError):
        conn.flush(0.05)
    later = gevent.spawn(conn.flush, 10)
    nats_server.start()
    assert later.get(timeout=10) is True
    finish(conn)


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_flush_that_is_struck_disturbs_nobody(
    connect: Any, nats_server: NatsServer, how: str
) -> None:
    conn = connect(nats_server.url)
    nats_server.pause()
    if how == "kill":
        victim = gevent.spawn(conn.flush, 10)
        gevent.sleep(0)
        victim.kill(timeout=5)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            conn.flush(10)
    other = gevent.spawn(conn.flush, 10)
    gevent.sleep(0.02)
    assert not other.ready()
    nats_server.resume()
    assert other.get(timeout=5) is True


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", True, b"1"])
@pytest.mark.parametrize("call", ["flush", "rtt", "drain"])
def test_a_bad_timeout(connect: Any, call: str, timeout: Any) -> None:
    conn = connect()
    with pytest.raises(errors.OptionError, match="timeout"):
        getattr(conn, call)(timeout)
    assert conn.status == "connected"
    assert conn.flush(5)


def test_no_timeout_and_an_endless_one(connect: Any) -> None:
    conn = connect()
    assert conn.flush(None)
    assert conn.rtt(None) > 0
    try:
        assert conn.flush(float("inf"))
    except errors.OptionError:
        pass  # refused by name is as good as done
