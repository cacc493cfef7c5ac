"""The end of a process that has closed nothing: quiet, bounded, and what was published is sent."""

from __future__ import annotations

import os
import sys
import textwrap
from time import monotonic
from typing import Any, NamedTuple

import gevent.subprocess
import pytest

import gnats
from gnats.farewell import PATIENCE
from gnats.testing import NatsServer, wait_until

PATCH = "from gevent import monkey; monkey.patch_all()\n"
SLACK = 6.0  # seconds to start a python on a loaded machine


class Ended(NamedTuple):
    code: int
    said: str
    complained: str
    seconds: float


def run(code: str, url: str, patched: bool = False) -> Ended:
    """Run *code* in a process of its own: ``conn`` is connected, ``url`` is the server."""
    opening = f"import os, sys, time, gevent, gnats\nurl = sys.argv[1]\n{textwrap.dedent(code)}"
    began = monotonic()
    done = gevent.subprocess.run(
        [sys.executable, "-c", (PATCH if patched else "") + opening, url],
        capture_output=True,
        timeout=50,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), monotonic() - began)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise SystemExit", 0), ("raise ValueError('mine')", 1)],
)
def test_what_was_published_is_sent(
    shared_nats_server: NatsServer, patched: bool, end: str, code: int
) -> None:
    with gnats.connect(shared_nats_server.url) as conn:
        sub = conn.subscribe("farewell.sent")
        conn.flush()
        ended = run(
            f"""
            conn = gnats.connect(url)
            for number in range(1000):
                conn.publish("farewell.sent", b"%d" % number)
            {end}
            """,
            shared_nats_server.url,
            patched,
        )
        assert ended.code == code, ended
        assert [int(sub.next_msg(5.0).data) for _ in range(1000)] == list(range(1000))
    wanted = "mine" if "mine" in end else ""
    assert wanted in ended.complained
    assert ("Traceback" in ended.complained) == bool(wanted)


def test_handlers_end_and_callbacks_come(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        def handle(msg):
            gevent.sleep(0.2)
            print("handled", msg.data.decode(), flush=True)

        conn = gnats.connect(url, closed_cb=lambda conn: print("closed", flush=True))
        conn.subscribe("farewell.handle", cb=handle)
        conn.publish("farewell.handle", b"it")
        conn.flush()
        gevent.sleep(0.05)
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.complained) == (0, "")
    assert sorted(ended.said.split("\n")) == ["", "closed", "handled it"]


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_server_that_is_away_holds_up_nobody(nats_server: NatsServer, how: str) -> None:
    code = """
        conn = gnats.connect(url, max_reconnect=-1)
        other = gnats.connect(url, max_reconnect=-1)
        print("ready", flush=True)
        sys.stdin.readline()
        conn.publish("a", b"perhaps too late")
        """
    started = gevent.subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, gnats\nurl = sys.argv[1]\n" + textwrap.dedent(code),
            nats_server.url,
        ],
        stdin=gevent.subprocess.PIPE,
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.PIPE,
    )
    try:
        assert started.stdout.readline() == b"ready\n"
        getattr(nats_server, how)()
        began = monotonic()
        _, complained = started.communicate(b"\n", timeout=30)
        assert monotonic() - began < PATIENCE + SLACK
        assert started.returncode == 0
        assert b"Traceback" not in complained
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
        if how == "pause":
            nats_server.resume()


PARKED = {
    "next_msg": "conn.subscribe('a').next_msg(timeout=None)",
    "iteration": "list(conn.subscribe('a'))",
    "request": "conn.request('farewell.silent', timeout=60.0)",
    "wait_for_status": "conn.wait_for_status('reconnecting')",
    "drain": "conn.drain()",
    "publish": "[conn.publish('a', bytes(500_000)) for _ in range(50)]",
}


@pytest.mark.parametrize("call", PARKED)
def test_greenlets_that_wait_print_no_stack(shared_nats_server: NatsServer, call: str) -> None:
    ended = run(
        f"""
        conn = gnats.connect(url)
        conn.subscribe("farewell.silent", cb=lambda msg: None)
        gevent.spawn(lambda: {PARKED[call]})
        gevent.sleep(0.05)
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.said, ended.complained) == (0, "", "")


def test_a_callback_that_wants_to_exit(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        first = gnats.connect(url, closed_cb=lambda conn: sys.exit(9))
        second = gnats.connect(url, closed_cb=lambda conn: print("second", flush=True))
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.said, ended.complained) == (0, "second\n", "")


def test_the_hub_is_destroyed_already(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        conn = gnats.connect(url)
        gevent.get_hub().destroy(destroy_loop=True)
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.said, ended.complained) == (0, "", "")


def test_closed_and_never_connected_ones_need_nothing(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        closed = gnats.connect(url)
        closed.close()
        never = gnats.Connection()
        gone = gnats.connect(url)
        del gone
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.said, ended.complained) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_end_of_a_child_is_not_that_of_its_parent(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        conn = gnats.connect(url)
        sub = conn.subscribe("farewell.child")
        conn.flush()
        if os.fork() == 0:
            conn.publish("farewell.child", b"by the child")
            conn.flush()
            sys.exit(0)
        print(sub.next_msg(10.0).data.decode())
        os.wait()
        print(conn.rtt() > 0)
        print(conn.stats.disconnects)
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.complained) == (0, "")
    assert ended.said == "by the child\nTrue\n0\n"


def test_one_of_another_thread_is_left_alone(shared_nats_server: NatsServer) -> None:
    ended = run(
        """
        from gevent.monkey import get_original
        gevent.get_hub()  # two threads that make their first hubs at once are gevent's to survive
        made = []
        get_original("_thread", "start_new_thread")(lambda: made.append(gnats.connect(url)), ())
        while not made:
            gevent.sleep(0.01)
        """,
        shared_nats_server.url,
    )
    assert (ended.code, ended.complained) == (0, "")
    assert ended.seconds < PATIENCE + SLACK


def test_the_server_is_told(nats_server: NatsServer) -> None:
    """It has no client left that it would have to find out about."""
    ended = run("conn = gnats.connect(url)", nats_server.url)
    assert ended.code == 0
    wait_until(lambda: not clients(nats_server), timeout=5.0)


def clients(server: NatsServer) -> list[Any]:
    found: list[Any] = server.connz()["connections"]
    return found
