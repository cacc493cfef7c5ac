"""The connection of a web application: when it begins, who waits and how long, forks, its end."""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event
from native import Native

import gnats
import gnats.wsgi
from gnats.errors import (
    BadSubjectError,
    BadURLError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    Error,
    OptionError,
    OutboundBufferLimitError,
    TimeoutError,
    WrongThreadError,
)
from gnats.testing import NatsServer, free_port, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.05, "reconnect_jitter": 0.0}

Make = Callable[..., gnats.wsgi.Nats]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a Nats that is stopped after the test."""
    made: list[gnats.wsgi.Nats] = []

    def one(*args: Any, **settings: Any) -> gnats.wsgi.Nats:
        made.append(gnats.wsgi.Nats(*args, **{**FAST, **settings}))
        return made[-1]

    yield one
    for nats in made:
        nats.stop(0.2)


@pytest.fixture
def nowhere() -> str:
    """A URL where no server is."""
    return f"nats://127.0.0.1:{free_port()}"


# -- made ----------------------------------------------------------------------------------


def test_its_defaults_suit_a_worker(make: Make) -> None:
    options = make("nats://a:1")._conn.options
    assert options.reconnect.max_reconnect == -1
    assert options.reconnect.retry_on_failed_connect
    assert options.reconnect.ignore_auth_error_abort
    assert options.publish_timeout == 1.0
    assert options.reconnect.reconnect_buf_size == 8 * 1024 * 1024


def test_what_the_user_says_counts(make: Make) -> None:
    given = gnats.ConnectionOptions(publish_timeout=3.0, name="given")
    options = make("nats://a:1", options=given, max_reconnect=7)._conn.options
    assert (options.publish_timeout, options.name) == (3.0, "given")
    assert options.reconnect.max_reconnect == 7
    assert options.reconnect.retry_on_failed_connect


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"max_reconect": 1}, TypeError, "max_reconnect"),
        ({"servers": "http://a"}, BadURLError, "http"),
        ({"connect_wait": -1}, OptionError, "connect_wait"),
        ({"connect_wait": None}, OptionError, "connect_wait"),
        ({"connect_wait": True}, OptionError, "connect_wait"),
        ({"stop_timeout": float("nan")}, OptionError, "stop_timeout"),
        ({"stop_timeout": float("inf")}, OptionError, "stop_timeout"),
        ({"fail_fast": 1}, OptionError, "fail_fast"),
        ({"fail_fast": True, "reconnect_buf_size": 5}, OptionError, "fail_fast"),
        ({"retry_on_failed_connect": False}, OptionError, "connect_wait"),
        ({"options": {}}, TypeError, "ConnectionOptions"),
    ],
)
def test_bad_settings_are_refused_when_it_is_made(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        gnats.wsgi.Nats(**settings)


def test_making_it_begins_nothing(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url)
    assert nats._conn.status == "disconnected"
    nats.stop()  # nothing to stop
    assert nats._conn.status == "disconnected"
    assert nats.connection.status == "connecting"


def test_it_cannot_be_configured_in_use(make: Make, shared_nats_server: NatsServer) -> None:
    nats = make("nats://a:1")
    nats.configure(shared_nats_server.url)
    nats.flush()
    with pytest.raises(Error, match=r"stop\(\)"):
        nats.configure("nats://b:1")
    nats.stop()
    nats.configure(shared_nats_server.url, name="again")
    assert nats.flush()
    assert nats.connection.options.name == "again"


# -- the first use -------------------------------------------------------------------------


def test_many_first_uses_make_one_connection(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url, connect_wait=5.0)
    with gnats.connect(nats_server.url) as conn:
        sub = conn.subscribe("first")
        conn.flush()
        gevent.joinall(
            [gevent.spawn(nats.publish, "first", str(n)) for n in range(100)], raise_error=True
        )
        assert nats.flush()
        assert sorted(int(sub.next_msg().data) for _ in range(100)) == list(range(100))
    assert nats.connection.stats.connects == 1


def test_all_wait_once_and_together(
    make: Make, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats = make(nowhere, connect_wait=0.4)
    began = monotonic()
    first = [gevent.spawn(nats.publish, "a", b"1") for _ in range(10)]
    gevent.sleep(0.2)
    later = gevent.spawn(nats.publish, "a", b"2")
    gevent.joinall([*first, later], raise_error=True)
    assert 0.35 <= monotonic() - began < 0.4 + 0.2 + PAUSE
    began = monotonic()
    for _ in range(100):
        nats.publish("a", b"3")
    assert monotonic() - began < 0.35
    assert nats.connection.stats.buffered == 111
    told = [record for record in caplog.records if "connect_wait" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "refused" in told[0].message


#: What a busy machine may add to a wait, in seconds.
PAUSE = 2.0


def test_no_wait_at_all(make: Make, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    nats = make(nowhere, connect_wait=0)
    nats.publish("a", b"1")
    assert nats.connection.stats.attempts == 0  # it has not even switched
    assert "connect_wait (0 s)" in caplog.text


def test_a_server_that_comes_within_the_wait(make: Make, rng: random.Random) -> None:
    server = NatsServer()
    nats = make(server.url, connect_wait=10.0)
    asked = gevent.spawn(nats.flush)
    gevent.sleep(rng.uniform(0.0, 0.3))
    try:
        server.start()
        assert asked.get(timeout=10.0)
    finally:
        nats.stop()
        server.close()


def test_what_is_buffered_is_sent_when_a_server_comes(make: Make) -> None:
    server = NatsServer()
    nats = make(server.url, connect_wait=0)
    got: list[bytes] = []
    nats.subscription("late")(lambda msg: got.append(msg.data))
    for n in range(100):
        nats.publish("late", str(n))
    try:
        server.start()
        wait_until(lambda: len(got) == 100)
        nats.stop()
    finally:
        server.close()


@pytest.mark.parametrize("call", ["request", "request_many", "flush"])
def test_the_wait_is_within_the_time_of_a_call(
    make: Make, nowhere: str, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats = make(nowhere, connect_wait=30.0)
    began = monotonic()
    with pytest.raises(TimeoutError, match=call):
        if call == "flush":
            nats.flush(timeout=0.2)
        else:
            getattr(nats, call)("a", timeout=0.2)
    assert 0.15 <= monotonic() - began < 0.2 + PAUSE
    assert "connect_wait" not in caplog.text  # there is time left


def test_request_many_and_headers(make: Make, shared_nats_server: NatsServer) -> None:
    nats = make(shared_nats_server.url)
    nats.subscription("wsgi.many")(lambda msg: msg.respond(msg.headers["X"]))
    replies = nats.request_many("wsgi.many", headers={"X": "1"}, timeout=2.0, max_msgs=1)
    assert [msg.data for msg in replies] == [b"1"]


# -- there is no link ----------------------------------------------------------------------


def test_fail_fast(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url, fail_fast=True, connect_wait=5.0)
    nats.flush()
    nats_server.kill()
    nats.connection.wait_for_status("reconnecting", timeout=5.0)
    began = monotonic()
    with pytest.raises(OutboundBufferLimitError):
        nats.publish("a", b"1")
    for call in (nats.flush, lambda: nats.request("a"), lambda: nats.request_many("a")):
        with pytest.raises(ConnectionReconnectingError):
            call()
    assert monotonic() - began < PAUSE
    nats_server.restart()
    nats.connection.wait_for_status("connected", timeout=10.0)
    nats.publish("a", b"1")
    assert nats.flush()


def test_an_outage_is_no_first_use(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url, connect_wait=30.0)
    nats.flush()
    nats_server.kill()
    nats.connection.wait_for_status("reconnecting", timeout=5.0)
    began = monotonic()
    nats.publish("a", b"1")
    with pytest.raises(TimeoutError):
        nats.request("a", timeout=0.1)
    assert monotonic() - began < 0.1 + PAUSE


# -- other threads -------------------------------------------------------------------------


def test_a_native_thread_publishes_and_does_not_begin(
    make: Make, shared_nats_server: NatsServer
) -> None:
    native = gevent.get_hub().threadpool.apply
    nats = make(shared_nats_server.url)
    with pytest.raises(WrongThreadError, match=r"start\(\)"):
        native(nats.publish, ("wsgi.native", b"0"))
    got: list[bytes] = []
    nats.subscription("wsgi.native")(lambda msg: got.append(msg.data))
    nats.start()
    native(nats.publish, ("wsgi.native", b"1"))  # it waits for no link
    nats.flush()
    native(nats.publish, ("wsgi.native", b"2"))
    wait_until(lambda: got == [b"1", b"2"])
    for call in (nats.flush, nats.stop):
        with pytest.raises(WrongThreadError):
            native(call)


# -- handlers ------------------------------------------------------------------------------


def test_declared_handlers_begin_with_start(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url)
    handled: list[str] = []

    @nats.subscription("one.*")
    def one(msg: gnats.Msg) -> None:
        handled.append(msg.subject)

    with gnats.connect(nats_server.url) as conn:
        with pytest.raises(gnats.errors.NoRespondersError):
            conn.request("one.0")
        nats.start()
        nats.start()  # again: nothing doubles
        nats.connection.wait_for_status("connected", timeout=5.0)
        nats.flush()
        conn.publish("one.1")
        wait_until(lambda: handled)

        @nats.subscription("two.*", queue="q")
        def two(msg: gnats.Msg) -> None:
            msg.respond(b"two")

        assert nats.flush()
        assert conn.request("two.1").data == b"two"
    assert handled == ["one.1"]
    assert one.__name__ == "one"  # still a function


async def coroutine(_msg: Any) -> None: ...


def test_a_bad_declaration_is_refused_at_once(make: Make, nowhere: str) -> None:
    nats = make(nowhere)
    with pytest.raises(BadSubjectError):
        nats.subscription("a b")(print)
    with pytest.raises(OptionError, match="concurrency"):
        nats.subscription("a", concurrency=0)(print)
    with pytest.raises(TypeError, match="concurency"):
        nats.subscription("a", concurency=1)(print)
    with pytest.raises(OptionError, match="callable"):
        nats.subscription("a")("no function")  # type: ignore[type-var]
    with pytest.raises(OptionError, match="not an async one"):
        nats.subscription("a")(coroutine)
    assert nats._conn.status == "disconnected"


def test_handlers_wait_for_start_in_an_arbiter(
    make: Make, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gnats.wsgi, "_arbiter", None)
    gnats.wsgi.handlers_wait_for_start()
    nats = make(nats_server.url)
    nats.subscription("job")(lambda msg: msg.respond(b"done"))
    nats.flush()
    nats.subscription("other")(lambda msg: msg.respond(b"done"))
    for subject in ("job", "other"):
        with pytest.raises(gnats.errors.NoRespondersError):
            nats.request(subject)
    nats.start()
    for subject in ("job", "other"):
        assert nats.request(subject).data == b"done"


def test_a_worker_that_does_not_cooperate_is_told_of_once_without_any_hook(
    make: Make, nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn", SimpleNamespace())  # its worker has imported it
    monkeypatch.setattr(gnats.wsgi, "_warned", None)
    for _ in range(2):
        make(nowhere).start()
    expected = 0 if monkey.is_module_patched("socket") else 1
    assert caplog.text.count("no gevent worker") == expected


def test_the_hooks_of_gunicorn(
    make: Make,
    nats_server: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gnats.wsgi, "_arbiter", None)
    hooks = importlib.import_module("gnats.contrib.gunicorn")
    monkeypatch.setattr(gnats.wsgi, "_arbiter", None)
    monkeypatch.setattr(gnats.wsgi, "_warned", None)
    nats = make(nats_server.url)
    monkeypatch.setattr(gnats.wsgi, "_living", {nats})
    worker = SimpleNamespace(pid=os.getpid(), cfg=SimpleNamespace(graceful_timeout=3))
    hooks.post_worker_init(worker)
    nats.connection.wait_for_status("connected", timeout=5.0)
    assert ("no gevent worker" in caplog.text) == (not monkey.is_module_patched("socket"))
    hooks.worker_exit(None, SimpleNamespace(pid=0))  # the arbiter, of a worker that is gone
    assert nats.connection.is_connected
    hooks.worker_exit(None, worker)
    assert nats.connection.is_closed


# -- the end -------------------------------------------------------------------------------


def test_stop_finishes_what_is_under_way(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url)
    done: list[bytes] = []

    @nats.subscription("slow")
    def slow(msg: gnats.Msg) -> None:
        gevent.sleep(0.05)
        done.append(msg.data)
        nats.publish("done", msg.data)

    with gnats.connect(nats_server.url) as conn:
        sub = conn.subscribe("done")
        conn.flush()
        nats.start()
        nats.flush()
        for n in range(5):
            nats.publish("slow", str(n))
        nats.stop()
        assert [sub.next_msg().data for _ in range(5)] == done == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(ConnectionClosedError):
        nats.publish("a", b"1")
    nats.stop()  # no error
    nats.start()
    nats.publish("slow", b"5")
    wait_until(lambda: done[-1] == b"5")


def test_stop_without_a_server_is_bounded_and_says_what_was_left(
    make: Make, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats = make(nowhere, connect_wait=0, stop_timeout=0.3)
    for _ in range(3):
        nats.publish("a", b"1")
    began = monotonic()
    nats.stop()
    assert 0.25 <= monotonic() - began < 0.3 + PAUSE
    (said,) = [record for record in caplog.records if "gnats: stopped" in record.message]
    assert said.levelno == logging.WARNING
    assert "3 published and not written" in said.message
    with pytest.raises(OptionError, match="timeout"):
        nats.stop(-1)


def test_stop_without_a_server_and_with_nothing_to_send_is_quick(
    make: Make, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    nats = make(nowhere, connect_wait=0, stop_timeout=30.0)
    nats.start()
    began = monotonic()
    nats.stop()
    assert monotonic() - began < PAUSE
    assert nats.connection.is_closed
    assert "gnats: stopped" not in caplog.text


@pytest.mark.parametrize("publishes", [False, True])
def test_stop_without_a_server_waits_for_the_handlers(
    make: Make, nats_server: NatsServer, publishes: bool
) -> None:
    nats = make(nats_server.url, stop_timeout=1.5)
    done: list[bytes] = []

    @nats.subscription("slow")
    def slow(msg: gnats.Msg) -> None:
        gevent.sleep(0.05)
        done.append(msg.data)
        if publishes:
            nats.publish("done", msg.data)

    nats.start()
    nats.flush()
    for n in range(5):
        nats.publish("slow", str(n))
    nats.flush()
    nats_server.kill()
    nats.connection.wait_for_status("reconnecting", timeout=5.0)
    began = monotonic()
    nats.stop()
    assert done == [b"0", b"1", b"2", b"3", b"4"]
    assert monotonic() - began < 1.5 + PAUSE
    assert nats.connection.stats.dropped == (5 if publishes else 0)


def test_what_is_said_in_a_group_counts() -> None:
    group = gnats.ReconnectOptions(max_reconnect=5)
    assert gnats.wsgi.Nats(reconnect=group)._conn.options.reconnect.max_reconnect == 5
    options = gnats.ConnectionOptions(reconnect=group, publish_timeout=7.0)
    made = gnats.wsgi.Nats(options=options)._conn.options
    assert (made.reconnect.max_reconnect, made.publish_timeout) == (5, 7.0)
    full = gnats.ReconnectOptions(reconnect_buf_size=5000)
    for said in ({"reconnect": full}, {"options": gnats.ConnectionOptions(reconnect=full)}):
        with pytest.raises(OptionError, match="reconnect_buf_size"):
            gnats.wsgi.Nats(fail_fast=True, **said)


def test_none_is_something_that_can_be_said() -> None:
    assert gnats.wsgi.Nats(publish_timeout=None)._conn.options.publish_timeout is None


def test_start_during_a_stop_begins_anew(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url)
    going_on = Event()
    nats.subscription("slow")(lambda msg: going_on.wait(10.0))
    nats.start()
    nats.flush()
    before = nats.connection
    nats.publish("slow")
    wait_until(lambda: before.health().unhandled == 1, timeout=5.0)
    stopping = gevent.spawn(nats.stop)
    wait_until(lambda: before.is_draining, timeout=5.0)
    nats.start()
    assert nats.connection is not before
    assert nats.flush(5.0)
    going_on.set()
    stopping.get(timeout=10.0)
    assert before.is_closed
    assert nats.connection.is_connected


def test_start_elsewhere_leaves_a_connection_to_its_thread(make: Make, nowhere: str) -> None:
    nats = make(nowhere, connect_wait=0.3)
    nats.start()
    Native(nats.start).join()
    began = monotonic()
    nats.publish("a")  # waits here, as before, and is not taken for another thread's
    assert 0.2 <= monotonic() - began < 0.3 + PAUSE


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(OptionError, match="reconnect_after_fork"):
        gnats.wsgi.Nats(reconnect_after_fork=False)


@pytest.mark.parametrize("call", ["request", "request_many", "flush"])
@pytest.mark.parametrize("timeout", ["5", -1, True, float("nan")])
def test_what_is_no_time(make: Make, nowhere: str, call: str, timeout: Any) -> None:
    arguments = {} if call == "flush" else {"subject": "a"}
    with pytest.raises(OptionError, match="timeout"):
        getattr(make(nowhere, connect_wait=0), call)(timeout=timeout, **arguments)


def test_a_bad_time_for_all() -> None:
    with pytest.raises(OptionError, match="at_most"):
        gnats.wsgi.stop_all(-1)


def test_start_all_and_stop_all(
    make: Make, nats_server: NatsServer, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    monkeypatch.setattr(gnats.wsgi, "_living", type(gnats.wsgi._living)())
    both = [make(nats_server.url), make(nowhere, stop_timeout=9.0)]
    gnats.wsgi.start_all()
    both[0].connection.wait_for_status("connected", timeout=5.0)
    assert both[1]._conn.status == "connecting"
    began = monotonic()
    gnats.wsgi.stop_all(at_most=0.3)
    assert monotonic() - began < 0.3 + PAUSE
    assert [nats.connection.is_closed for nats in both] == [True, True]


# -- forks ---------------------------------------------------------------------------------


def fork_unheard() -> int:
    """As a server written in C does it: Python's hooks do not run."""
    return int(ctypes.PyDLL(None).fork())


# Its own thread pool, if it was used before, fails in such a child there: no attribute "clear".
POOL_FAILS = sys.version_info >= (3, 13) and gevent.version_info[:2] < (25, 0)
FORKS = pytest.mark.parametrize(
    "fork",
    [
        pytest.param(os.fork, id="fork"),
        pytest.param(
            fork_unheard,
            id="unheard",
            marks=pytest.mark.skipif(POOL_FAILS, reason="gevent before 25 on Python 3.13"),
        ),
    ],
)


def in_child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """What *work* returns in a forked child."""
    end, there = os.pipe()
    if fork() == 0:
        try:
            with gevent.Timeout(15.0):
                said = json.dumps({"result": work()})
        except BaseException as exc:
            said = json.dumps({"failure": repr(exc)})
        os.write(there, said.encode())
        os._exit(0)
    os.close(there)
    data = b""
    while chunk := gevent.os.tp_read(end, 65536):
        data += chunk
    os.close(end)
    said = json.loads(data)
    assert "failure" not in said, said["failure"]
    return said["result"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@FORKS
@pytest.mark.parametrize("before", ["unused", "used", "stopped"])
def test_each_process_has_its_own(
    make: Make, nats_server: NatsServer, before: str, fork: Callable[[], int]
) -> None:
    nats = make(nats_server.url)
    nats.subscription("pid")(lambda msg: msg.respond(str(os.getpid())))
    if before != "unused":
        nats.flush()
    if before == "stopped":
        nats.stop()
    with gnats.connect(nats_server.url) as conn:
        sub = conn.subscribe("from.child")
        conn.flush()

        def work() -> Any:
            nats.publish("from.child", b"here")
            nats.flush()
            replies = nats.request_many("pid", timeout=5.0, stall=0.3)
            pids = sorted(int(msg.data) for msg in replies)
            nats.stop()
            return [os.getpid(), pids]

        child, pids = in_child(work, fork)
        own = [os.getpid()] if before == "used" else []
        assert pids == sorted([child, *own])
        assert sub.next_msg().data == b"here"
    if before == "used":
        assert int(nats.request("pid").data) == os.getpid()
        assert nats.connection.stats.connects == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@FORKS
def test_children_have_inboxes_of_their_own(
    make: Make, nats_server: NatsServer, fork: Callable[[], int]
) -> None:
    nats = make(nats_server.url)

    def work() -> str:
        inbox = nats.connection.new_inbox()
        nats.stop()
        return inbox

    inboxes = {in_child(work, fork) for _ in range(3)}
    assert len({inbox[: len("_INBOX.") + 12] for inbox in inboxes}) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@FORKS
def test_a_plain_connection_is_told_of_a_fork(
    nats_server: NatsServer, fork: Callable[[], int]
) -> None:
    with gnats.connect(nats_server.url) as conn:
        inbox = conn.new_inbox()

        def work() -> list[Any]:
            gnats.after_fork()
            gnats.after_fork()  # once is enough, twice is the same
            conn.flush(5.0)
            conn.close()
            return [conn.stats.connects, conn.new_inbox()]

        connects, other = in_child(work, fork)
        assert connects == 1
        assert other[: len("_INBOX.") + 12] != inbox[: len("_INBOX.") + 12]
        conn.flush(5.0)
        assert (conn.stats.connects, conn.is_connected) == (1, True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_waits_for_its_own_link(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url, connect_wait=0.4)
    nats.flush()
    nats_server.kill()
    nats.connection.wait_for_status("reconnecting", timeout=5.0)

    def work() -> list[float]:
        took = []
        for _ in range(2):
            began = monotonic()
            nats.publish("a", b"1")
            took.append(monotonic() - began)
        nats.stop(0.1)
        return took

    first, second = in_child(work)
    assert 0.35 <= first < 0.4 + PAUSE
    assert second < 0.35


# -- other threads -------------------------------------------------------------------------


def test_another_thread_publishes_without_waiting(make: Make) -> None:
    server = NatsServer()
    nats = make(server.url, connect_wait=30.0)
    got: list[bytes] = []
    nats.subscription("from.thread")(lambda msg: got.append(msg.data))
    nats.start()
    began = monotonic()
    Native(nats.publish, "from.thread", b"here").join_blocking()
    assert monotonic() - began < PAUSE
    for refused in (nats.request, nats.flush):
        with pytest.raises(WrongThreadError):
            Native(refused, "from.thread" if refused == nats.request else 5.0).join_blocking()
    assert monotonic() - began < 2 * PAUSE
    try:
        server.start()
        wait_until(lambda: got == [b"here"])
        nats.stop()
    finally:
        server.close()


# -- health --------------------------------------------------------------------------------


def serve(app: Any, path: str = "/", method: str = "GET") -> tuple[str, dict[str, str], bytes]:
    """One request to a WSGI application."""
    said: list[Any] = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO()}
    body = b"".join(app(environ, lambda status, headers: said.extend([status, dict(headers)])))
    return said[0], said[1], body


def test_health_over_http(make: Make, nats_server: NatsServer) -> None:
    nats = make(nats_server.url)
    status, headers, body = serve(nats.health_app, "/ready")
    assert status == "503 Service Unavailable"
    assert headers["Content-Length"] == str(len(body))
    # Asking has begun the connection: a worker must be able to become ready.
    nats.connection.wait_for_status("connected", timeout=5.0)
    for path in ("/", "/ready", "/live", "/health/live/"):
        status, headers, body = serve(nats.health_app, path)
        assert status == "200 OK"
        report = json.loads(body)
        assert (report["live"], report["ready"], report["status"]) == (True, True, "connected")
        assert headers["Content-Type"] == "application/json"
    status, headers, body = serve(gnats.wsgi.health_app(nats.connection), method="HEAD")
    assert (status, body) == ("200 OK", b"")
    status, headers, body = serve(nats.health_app, method="POST")
    assert (status[:3], headers["Allow"]) == ("405", "GET, HEAD")
    nats_server.kill()
    nats.connection.wait_for_status("reconnecting", timeout=5.0)
    assert serve(nats.health_app, "/live")[0] == "200 OK"
    status, _, body = serve(nats.health_app, "/ready")
    assert status == "503 Service Unavailable"
    assert json.loads(body)["last_error"]
    nats.stop(0.1)
    assert serve(nats.health_app, "/live")[0] == "503 Service Unavailable"
