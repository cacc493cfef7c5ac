"""Every example runs as printed, against a real server, and does what it says.

The demonstration (reconnection_test.py) must also be able to fail: its verdict is tested, and so is
its exit status when one message is withheld.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
from gevent import socket
from gevent.subprocess import STDOUT, Popen

import gnats
from gnats.testing import NatsServer, free_port, wait_until

# Nothing here depends on the python's gevent, loop or patching.
pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO = EXAMPLES / "reconnection_test.py"
GUNICORN_CONF = EXAMPLES / "gunicorn.conf.py"  # read by gunicorn, for the web applications

PATIENCE = 20.0  # seconds; a Python with gevent takes long to start on a busy machine

WITHOUT_NUMBER_300 = """
import runpy, sys, gnats
publish = gnats.Connection.publish
def forgetful(conn, subject, payload=b"", *args, **named):
    if (subject, payload) != ("demo.numbers", "300"):
        publish(conn, subject, payload, *args, **named)
gnats.Connection.publish = forgetful
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class Running:
    """An example under way."""

    def __init__(
        self, arguments: list[str], output: Path, more: dict[str, str] | None = None
    ) -> None:
        self._output = output
        with open(output, "wb") as stdout:
            self._process = Popen(
                [sys.executable, *arguments],
                stdout=stdout,
                stderr=STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})},
                cwd=output.parent,
                # A shell starts its background jobs deaf to Ctrl-C, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def text(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def await_text(self, wanted: str) -> None:
        """Until it has printed *wanted*; fails when it ends without."""

        def printed() -> bool:
            ended = self._process.poll() is not None
            return wanted in self.text or ended

        wait_until(printed, PATIENCE, lambda: f"{wanted!r} in:\n{self.text}")
        assert wanted in self.text

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def press_ctrl_c(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def await_end(self, status: int = 0) -> str:
        """What it has printed in all, once it ended with *status*."""
        wait_until(
            lambda: self._process.poll() is not None, 2 * PATIENCE, lambda: f"end:\n{self.text}"
        )
        assert self._process.returncode == status, self.text
        return self.text

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start ``python examples/<name> <arguments>``."""
    started: list[Running] = []

    def start(name: str, *arguments: str) -> Running:
        output = tmp_path / f"output-{len(started)}"
        started.append(Running([str(EXAMPLES / name), *arguments], output))
        return started[-1]

    yield start
    for one in started:
        one.end()


# -- the small ones ------------------------------------------------------------------------


def test_publish(run: Run, shared_nats_server: NatsServer) -> None:
    with gnats.connect(shared_nats_server.url) as conn:
        sub = conn.subscribe("demo.greetings")
        conn.flush()
        output = run("publish.py", shared_nats_server.url).await_end()
        received = [sub.next_msg() for _ in range(6)]
    assert "published 6 messages to demo.greetings" in output
    assert [m.data for m in received[:5]] == [b"hello number %d" % n for n in range(1, 6)]
    assert received[5].headers is not None
    assert received[5].headers["Language"] == "en"


def test_subscribe(run: Run, shared_nats_server: NatsServer) -> None:
    example = run("subscribe.py", shared_nats_server.url)
    example.await_text("waiting for messages")
    with gnats.connect(shared_nats_server.url) as conn:
        conn.publish("demo.greetings", "hi", headers={"Language": "en"})
        conn.publish("demo.other", b"\x00\xff\x00")
    example.await_text("callback: 'hi' (language: en)")
    example.await_text("loop: 2 bytes on demo.greetings")
    example.await_text("loop: 3 bytes on demo.other")
    example.press_ctrl_c()
    assert "bye" in example.await_end()


def test_request_reply(run: Run, shared_nats_server: NatsServer) -> None:
    output = run("request_reply.py", shared_nats_server.url).await_end()
    assert "1 + 2 + 3 = 6" in output
    assert "too slow: no answer" in output
    assert "no service: nobody listens on 'demo.nobody'" in output


def test_queue_workers(run: Run, shared_nats_server: NatsServer) -> None:
    output = run("queue_workers.py", shared_nats_server.url).await_end()
    done = re.findall(r"worker [ABC] did job (\d+)", output)
    assert sorted(map(int, done)) == list(range(1, 13))
    assert "done here: 12 jobs" in output


def test_multi_server(run: Run) -> None:
    with NatsServer() as first, NatsServer() as second:
        example = run("multi_server.py", f"{first.url},{second.url}")
        example.await_text(f"connected to {first.url}")
        example.await_text("received tick 1\n")
        first.kill()
        example.await_text(f"reconnected to {second.url}")
        second.kill()
        example.await_text("no server answers, next try in 0.2 s")
        first.start()
        example.await_text(f"reconnected to {first.url}")
        seen = example.text.count("received")
        wait_until(lambda: example.text.count("received") > seen, message="more ticks")
        example.press_ctrl_c()
        output = example.await_end()
    ticks = [int(number) for number in re.findall(r"received tick (\d+)", output)]
    assert ticks == sorted(set(ticks))
    assert "bye" in output


def test_monitor(run: Run) -> None:
    with NatsServer() as server:
        example = run("monitor.py", server.url)
        example.await_text("connected: rtt")
        server.kill()
        example.await_text("disconnected_cb")
        server.start()
        example.await_text("reconnected_cb")
        example.press_ctrl_c()
        output = example.await_end()
    told = re.findall(r"^\w+_cb(?=:)", output, re.MULTILINE)
    assert set(told) >= {"connected_cb", "error_cb", "status_cb"}
    assert told[-1] == "closed_cb"
    assert "status_cb: connected -> reconnecting" in output


def test_backpressure(run: Run, shared_nats_server: NatsServer) -> None:
    output = run("backpressure.py", shared_nats_server.url).await_end()
    accepted = _number(r"accepted (\d+), then: no room", output)
    assert _number(r"sent (\d+), still buffered 0", output) == accepted
    handled = _number(r"handled (\d+)", output)
    dropped = _number(r"dropped (\d+)", output)
    assert 0 < accepted < 100
    assert handled >= 10
    assert dropped > 0
    assert handled + dropped == accepted
    assert "error_cb: slow consumer on 'demo.flood'" in output


# -- web applications ----------------------------------------------------------------------


@pytest.mark.frameworks
def test_legacy_app(tmp_path: Path, nats_server: NatsServer) -> None:
    with under_gunicorn("legacy_app:app", tmp_path, nats_server) as (example, port):
        _await_both_workers(nats_server)
        assert http(port, "/upper", b"pears") == (200, b"PEARS")
        assert http(port, "/health")[0] == 200
        _assert_good_end(example)


@pytest.mark.frameworks
def test_flask_app(tmp_path: Path, nats_server: NatsServer) -> None:
    with under_gunicorn("flask_app:app", tmp_path, nats_server) as (example, port):
        _await_both_workers(nats_server)
        assert http(port, "/health")[0] == 200
        for _ in range(10):
            assert http(port, "/orders", b"pears") == (202, b"accepted\n")
        wait_until(lambda: example.text.count("cooked pears") == 10, PATIENCE)
        done: dict[int, list[str]] = {}

        def all_told() -> bool:
            told = json.loads(http(port, "/orders")[1])
            done[told["worker"]] = told["done"]
            return sum(map(len, done.values())) == 10

        wait_until(all_told, PATIENCE)
        _assert_good_end(example)


def _await_both_workers(server: NatsServer) -> None:
    """Until they have handlers. One that is told to stop in the moment of its birth is deaf to it,
    and has to be killed by the arbiter in the end."""
    wait_until(lambda: _subscribed(server) == 2, PATIENCE, lambda: f"{_subscribed(server)}")


def _subscribed(server: NatsServer) -> int:
    return sum(one["subscriptions"] > 0 for one in server.connz()["connections"])


@contextmanager
def under_gunicorn(
    target: str, tmp_path: Path, server: NatsServer
) -> Iterator[tuple[Running, int]]:
    """As the example says, on another port."""
    port = free_port()
    arguments = [
        "-c",
        str(GUNICORN_CONF),
        "-b",
        f"127.0.0.1:{port}",
        "--chdir",
        str(EXAMPLES),
        target,
    ]
    output = tmp_path / "output"
    running = Running(["-m", "gunicorn", *arguments], output, {"NATS_URL": server.url})
    try:
        yield running, port
    finally:
        running.end()


def _assert_good_end(example: Running) -> None:
    example.terminate()
    output = example.await_end()
    assert "Traceback" not in output
    assert "gnats: stopped" not in output  # nothing was left behind


def http(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of a response; 0 when there was none."""
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\nHost: test\r\n"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(head.encode() + b"\r\n" + (body or b""))
            while chunk := sock.recv(65536):
                answer += chunk
    except OSError:
        return 0, b""
    first, _, content = answer.partition(b"\r\n\r\n")
    return int((first.split() or [b"", b"0"])[1]), content


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


EACH = sorted(path for path in EXAMPLES.glob("*.py") if path != GUNICORN_CONF)


@pytest.mark.parametrize("path", EACH, ids=lambda path: path.name)
def test_a_beginner_can_read_it(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    by_python, by_gunicorn = f"python examples/{path.name}", f"gunicorn.conf.py {path.stem}:app"
    assert by_python in doc or by_gunicorn in doc
    assert source.isascii()
    if path != DEMO:
        assert len(source.splitlines()) < 40
    name = "test_the_demo" if path == DEMO else f"test_{path.stem}"
    assert name in globals(), f"no test runs {path.name}"


# -- the demonstration ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reconnection_test", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo(run: Run, demo: ModuleType) -> None:
    output = run(DEMO.name).await_end()
    assert "PASSED" in output
    assert "FAILED" not in output
    assert "Traceback" not in output
    assert "published    200 before, 500 during, 200 after, 100 moved: 1000" in output
    assert output.count("lost 0, doubled 0, order kept") == 3
    assert "callbacks    " + ", ".join(demo.EXPECTED_CALLBACKS) in _unwrapped(output)
    assert re.search(r"accepted (\d+) = sent \1 \+ uncertain 0 \+ dropped 0 \+ buffered 0", output)
    assert re.search(r"attempts +\d+: 3 came up, \d+ failed", output)
    assert len(re.findall(r"\d+ ms after the server accepted again", output)) == 2


def _unwrapped(output: str) -> str:
    return re.sub(r"\n {13}", " ", output)


def test_the_demo_fails_when_a_message_is_lost(tmp_path: Path) -> None:
    running = Running(["-c", WITHOUT_NUMBER_300, str(DEMO)], tmp_path / "output")
    try:
        running.await_text("kill the server")
        output = running.await_end(status=1)
    finally:
        running.end()
    for reader in ("callback", "queue group", "next_msg"):
        assert f"FAILED: {reader}: 1 messages lost, the first is 300" in output
    assert "PASSED" not in output


@pytest.fixture
def flawless(demo: ModuleType) -> Any:
    """The record of a run in which all went well."""
    record = demo.Record()
    first = 1
    for phase, count in demo.MESSAGES.items():
        record.published[phase] = list(range(first, first + count))
        first += count
    numbers = record.all_published()
    record.readers = {
        "callback": [list(numbers)],
        "queue group": [numbers[::2], numbers[1::2]],
        "next_msg": [list(numbers)],
    }
    record.answered = ["before", "during", "after"]
    record.callbacks = list(demo.EXPECTED_CALLBACKS)
    record.moves = list(demo.EXPECTED_MOVES)
    record.errors = [gnats.errors.Error("lost")]
    record.delays = 1
    record.buffered = demo.MESSAGES["during"]
    record.stats = _books(accepted=len(numbers), sent=len(numbers))
    return record


def _books(**fields: int) -> gnats.Stats:
    return gnats.Stats(**{**dict.fromkeys(gnats.Stats.__dataclass_fields__, 0), **fields})


def test_a_flawless_run_passes(demo: ModuleType, flawless: Any) -> None:
    assert demo.faults(flawless) == []


def _swap(numbers: list[int]) -> None:
    numbers[3], numbers[4] = numbers[4], numbers[3]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda r: r.readers["callback"][0].remove(300), "callback: 1 messages lost"),
        (lambda r: r.readers["queue group"][1].clear(), "queue group: 500 messages lost"),
        (lambda r: r.readers["next_msg"][0].append(1000), "next_msg: 1 messages doubled"),
        # Both members of a group got it: doubled, though each of them got it once.
        (lambda r: r.readers["queue group"][1].insert(0, 1), "queue group: 1 messages doubled"),
        (lambda r: _swap(r.readers["callback"][0]), "callback: the order was not kept"),
        (lambda r: r.published["during"].pop(), "published during"),
        (lambda r: r.answered.remove("during"), "the request made during"),
        (lambda r: r.callbacks.remove("lame_duck_cb"), "callbacks:"),
        (lambda r: r.callbacks.insert(1, "disconnected_cb"), "callbacks:"),
        (lambda r: r.moves.pop(), "status:"),
        (lambda r: r.errors.clear(), "error_cb was never called"),
        (lambda r: setattr(r, "delays", 0), "custom_reconnect_delay_cb was never called"),
        (lambda r: setattr(r, "buffered", 499), "only 499 messages were kept"),
        (lambda r: setattr(r, "stats", None), "there are no books"),
        (lambda r: setattr(r, "stats", _books(accepted=2, sent=1)), "the books do not close"),
        (lambda r: setattr(r, "stats", _books(accepted=1, uncertain=1)), "uncertain"),
    ],
)
def test_a_spoilt_run_fails(
    demo: ModuleType, flawless: Any, spoil: Callable[[Any], object], expected: str
) -> None:
    spoil(flawless)
    assert any(expected in fault for fault in demo.faults(flawless))
