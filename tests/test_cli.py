"""The command line, run as a shell runs it, against a real server."""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from authority import Authority
from gevent.event import Event
from gevent.subprocess import DEVNULL, PIPE, Popen
from shell import COMMAND, PATIENCE, Running, environ, gnats, on_a_terminal, running

import gnats as library
from gnats.cli import exits, flags, payloads
from gnats.cli.program import COMMANDS, parser
from gnats.testing import FakeServer, NatsServer, free_port, hold, serve, wait_until

# Most of it depends on no loop and no gevent; what does (signals, forks) has no mark.
once = pytest.mark.once

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def url(shared_nats_server: NatsServer) -> str:
    return shared_nats_server.url


@pytest.fixture
def listen(
    connect: Callable[..., library.Connection], subject: str
) -> Callable[..., library.Subscription]:
    """A subscription of our own, known to the server."""

    def listen(name: str = subject) -> library.Subscription:
        conn = connect()
        sub = conn.subscribe(name)
        conn.flush()
        return sub

    return listen


def subscribers(server: NatsServer, subject: str) -> int:
    return sum(each["subject"] == subject for each in server.subsz().get("subscriptions_list", ()))


@contextlib.contextmanager
def subscribed(
    folder: Path, server: NatsServer, subject: str, *words: str, command: str = "sub", **more: Any
) -> Iterator[Running]:
    """``gnats sub`` (or reply) that the server knows of."""
    before = subscribers(server, subject)
    with running(folder, command, "-s", server.url, subject, *words, **more) as command_:
        wait_until(
            lambda: subscribers(server, subject) > before or command_.process.poll() is not None,
            PATIENCE,
        )
        yield command_


# -- pub ---------------------------------------------------------------------------------------


@once
def test_pub_an_argument(url: str, subject: str, listen: Any) -> None:
    sub = listen()
    done = gnats("pub", subject, "two äpples", "-s", url, "--reply", "there", "-H", "Trace: 7:8")
    msg = sub.next_msg(5)
    assert (msg.data.decode(), msg.reply) == ("two äpples", "there")
    assert dict(msg.headers) == {"Trace": "7:8"}
    assert done.out == b""
    assert subject in done.err
    assert "1 message" in done.err


@once
def test_pub_is_quiet(url: str, subject: str) -> None:
    assert gnats("pub", subject, "x", "-s", url, "-q") == (0, b"", "")


@once
def test_pub_standard_input(url: str, subject: str, listen: Any) -> None:
    sub = listen()
    payload = bytes(range(256)) * 1000
    gnats("pub", subject, "-s", url, stdin=payload)
    gnats("pub", subject, "-", "-s", url, stdin=b"dash")
    gnats("pub", subject, "-s", url)
    assert [sub.next_msg(5).data for _ in range(3)] == [payload, b"dash", b""]


@once
def test_pub_a_file(url: str, subject: str, listen: Any, tmp_path: Path) -> None:
    sub = listen()
    file = tmp_path / "payload"
    file.write_bytes(b"{{Count}}\n")  # only an argument is a template
    gnats("pub", subject, "--file", str(file), "-s", url)
    assert sub.next_msg(5).data == b"{{Count}}\n"


@once
def test_pub_lines(url: str, subject: str, listen: Any, tmp_path: Path) -> None:
    sub = listen()
    (done,) = gnats("pub", subject, "-l", "-s", url, "--json", stdin=b"a\nb\r\n\nlast").json
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(50_000)))
    gnats("pub", subject, "-l", "-f", str(file), "-s", url)
    assert [sub.next_msg(5).data for _ in range(4)] == [b"a", b"b", b"", b"last"]
    assert [int(sub.next_msg(5).data) for _ in range(50_000)] == list(range(50_000))
    assert (done["published"], done["bytes"], done["subject"]) == (4, 6, subject)


@once
def test_pub_many_with_numbers(url: str, subject: str, listen: Any) -> None:
    sub = listen()
    gnats("pub", subject, "{{Count}} {{ID}} {{Unix}}", "-n", "3", "--sleep", "1ms", "-s", url)
    words = [sub.next_msg(5).data.decode().split() for _ in range(3)]
    assert [number for number, _, _ in words] == ["1", "2", "3"]
    assert len({id_ for _, id_, _ in words}) == 3
    assert all(int(unix) > 1_600_000_000 for _, _, unix in words)


@once
def test_pub_lines_are_sent_as_they_come(url: str, subject: str, listen: Any) -> None:
    sub = listen()
    process = Popen([*COMMAND, "pub", subject, "-l", "-s", url], stdin=PIPE, env=environ())
    try:
        for line in (b"first", b"second"):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            assert sub.next_msg(PATIENCE).data == line
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@once
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a b", "x"], "bad subject 'a b'"),
        (["a", "x", "--file", "f"], "either a payload or --file"),
        (["a", "x", "--lines"], "--lines reads a file"),
        (["a", "x", "-H", "no colon"], "is no header"),
        (["a", "x", "-H", "bad name: x"], "header"),
        (["a", "x", "-n", "0"], "is no count"),
        (["a", "x", "-s", "nats://127.0.0.1:1,"], "an empty URL among the servers"),
        (["a", "two", "words"], "unrecognized: words (a payload of several words needs quotes)"),
        (["a", "x", "--flie", "f"], "usage: gnats pub"),
        (["a", "x", "--sleep", "soon"], "is no duration"),
        (["a", "x", "--password", "p"], "--password needs --user"),
        (["a", "x", "--user", "u", "--password", "p", "--token", "t"], "token"),
        (["a", "x", "-s", "ftp://x"], "bad server URL"),
        (["a", "x", "--tlskey", "k"], "cert"),
    ],
)
def test_wrong_usage(url: str, words: list[str], said: str) -> None:
    server = [] if "-s" in words else ["-s", url]
    assert said in gnats("pub", *words, *server, status=2).err


@once
def test_what_fails(url: str, subject: str, tmp_path: Path) -> None:
    missing = gnats("pub", subject, "--file", str(tmp_path / "none"), "-s", url, status=1)
    assert "none" in missing.err
    folder = gnats("pub", subject, "--file", str(tmp_path), "-s", url, status=1)
    assert str(tmp_path) in folder.err
    nobody = gnats("pub", subject, "x", "-s", f"nats://127.0.0.1:{free_port()}", status=1)
    assert "Connection refused" in nobody.err
    large = gnats("pub", subject, "-s", url, stdin=b"x" * 2**21, status=1)
    assert "1048576" in large.err


def test_pub_through_an_outage(nats_server: NatsServer, tmp_path: Path) -> None:
    words = ["tick", "{{Count}}", "-n", "100", "--sleep", "20ms", "--at-least-once", "--json"]
    with running(tmp_path, "pub", "-s", nats_server.url, *words) as command:
        wait_until(lambda: nats_server.varz()["in_msgs"] > 5, PATIENCE)
        nats_server.kill()
        command.await_err("lost the server")
        nats_server.restart()
        with library.connect(nats_server.url) as conn:
            sub = conn.subscribe("tick")
            conn.flush()
            command.end()
            numbers = [int(sub.next_msg(5).data)]
            with contextlib.suppress(library.errors.TimeoutError):
                while True:
                    numbers.append(int(sub.next_msg(0.2).data))
    assert numbers[-1] == 100
    assert f"back, at {nats_server.url}" in command.err
    (facts,) = command.json
    assert (facts["published"], facts["reconnects"], facts["dropped"]) == (100, 1, 0)


def test_pub_interrupted_without_a_server_says_what_it_could_not_send(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    words = ["tick", "x", "-n", "1000", "--sleep", "5ms"]
    with running(tmp_path, "pub", "-s", nats_server.url, *words) as command:
        wait_until(lambda: nats_server.varz()["in_msgs"] > 5, PATIENCE)
        nats_server.kill()
        command.await_err("lost the server")
        gevent.sleep(0.5)  # let it publish into the outage
        command.signal()
        command.end(130)
    assert re.search(r"interrupted after \d+ messages", command.err)
    assert re.search(r"gnats: \d+ messages? could not be sent", command.err)


@once
def test_pub_without_confirmation(fake_server: Any, subject: str) -> None:
    def script(client: Any) -> None:
        client.handshake()
        gevent.sleep(60)

    server: FakeServer = fake_server(script)
    done = gnats("pub", subject, "x", "-s", server.url, "--timeout", "0.3", status=3)
    assert "no confirmation within 0.3 s" in done.err


@once
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pub", "a.*", "x"], "a.*"),
        (["request", "a b", "x"], "a b"),
        (["sub", "a..b"], "a..b"),
        (["reply", "a.", "x"], "a."),
        (["sub", "a", "--queue", "b c"], "b c"),
        (["pub", "a", "--file", "nowhere.json"], "--file nowhere.json: No such file"),
        (["reply", "a", "--file", "nowhere.json"], "--file nowhere.json: No such file"),
    ],
)
def test_what_is_wrong_is_told_before_a_server_is_looked_for(words: list[str], said: str) -> None:
    done = gnats(*words, "-s", f"nats://127.0.0.1:{free_port()}", status=None)
    assert said in done.err
    assert "no servers" not in done.err
    assert done.status == (exits.FAILED if "--file" in words else exits.USAGE)


@once
def test_no_server_and_what_to_do() -> None:
    done = gnats("sub", "a", "-s", f"nats://127.0.0.1:{free_port()}", status=1)
    assert "`gnats server` starts one; -s or $NATS_URL names another" in done.err


def test_pub_waits_for_a_server(tmp_path: Path, subject: str) -> None:
    port = free_port()
    with running(
        tmp_path, "pub", subject, "x", "--retry", "-s", f"nats://127.0.0.1:{port}"
    ) as command:
        command.await_err("waiting for one")
        with NatsServer(port) as server:
            command.end()
            assert server.varz()["in_msgs"] == 1


# -- sub ---------------------------------------------------------------------------------------


def test_sub_until_ctrl_c(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    with subscribed(tmp_path, shared_nats_server, subject) as command:
        conn.publish(subject, b"one", reply="there", headers={"A": ["1", "2"]})
        conn.publish(subject, b"two")
        command.await_out(b"two")
        command.signal()
        command.end()
    assert command.out.decode() == (
        f'[#1] received on "{subject}", reply to "there"\nA: 1\nA: 2\n\none\n\n'
        f'[#2] received on "{subject}"\ntwo\n\n'
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_sub_shows_what_has_come_before_it_ends(
    shared_nats_server: NatsServer,
    conn: library.Connection,
    subject: str,
    tmp_path: Path,
    signum: int,
) -> None:
    with subscribed(tmp_path, shared_nats_server, subject, "--raw") as command:
        for number in range(20_000):
            conn.publish(subject, b"%d" % number)
        conn.flush()
        command.signal(signum)
        command.end()
    assert [int(line) for line in command.out.splitlines()] == list(range(20_000))


@once
def test_sub_counts(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    with subscribed(tmp_path, shared_nats_server, subject, "-n", "2", "--raw") as command:
        for word in (b"a", b"b", b"c"):
            conn.publish(subject, word)
        command.end()
    assert command.out == b"a\nb\n"


@once
def test_sub_json(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    with subscribed(tmp_path, shared_nats_server, subject, "-n", "2", "--json") as command:
        conn.publish(subject, "ä\n", headers={"A": "1"}, reply="there")
        conn.publish(subject, b"\xff")
        command.end()
    first, second = command.json
    assert first.pop("time").startswith("20")
    assert first == {
        "number": 1,
        "subject": subject,
        "reply": "there",
        "headers": {"A": ["1"]},
        "data": "ä\n",
    }
    assert base64.b64decode(second["data_base64"]) == b"\xff"


@once
def test_sub_counts_in_a_queue_group_and_leaves_the_rest_to_others(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["--queue", "q", "-n", "3", "--raw"]
    with subscribed(tmp_path, shared_nats_server, subject, *words) as command:
        rest = conn.subscribe(subject, queue="q")
        for number in range(100):
            conn.publish(subject, b"%d" % number)
        conn.flush()
        command.end()
        shown = [int(line) for line in command.out.split()]
        assert len(shown) == 3
        others = [int(rest.next_msg(5).data) for _ in range(97)]
        assert sorted(shown + others) == list(range(100))


@once
def test_sub_shows_a_message_whose_headers_cannot_be_read(fake_server: Any) -> None:
    def script(client: Any) -> None:
        client.handshake()
        client.expect("SUB")
        client.expect("UNSUB")  # --count 1
        client.expect("PING")
        client.send(b"HMSG a 1 9 11\r\nnonsense\nhi\r\nPONG\r\n")
        client.serve()

    server: FakeServer = fake_server(script)
    done = gnats("sub", "a", "-n", "1", "--json", "-s", server.url)
    (facts,) = done.json
    assert facts["data"] == "hi"
    assert "header" in facts["headers_error"]


@once
def test_a_payload_from_a_named_pipe(url: str, subject: str, listen: Any, tmp_path: Path) -> None:
    sub = listen()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with running(tmp_path, "pub", subject, "--file", str(pipe), "-s", url) as command:
        writer = Popen(["bash", "-c", f"echo hi > {shlex.quote(str(pipe))}"])
        command.end()
        writer.wait(PATIENCE)
    assert sub.next_msg(5).data == b"hi\n"


@once
def test_help_into_a_pipe_that_breaks(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with running(tmp_path, "--help", stdout=writing) as command:
            command.end(exits.BROKEN_PIPE)
    finally:
        os.close(writing)
    assert command.err == ""


@once
def test_standard_error_that_is_closed(conn: library.Connection, url: str, subject: str) -> None:
    command = shlex.join([*COMMAND, "request", subject, "x", "-s", url])
    process = Popen(["bash", "-c", f"{command} 2>&-"], stdout=PIPE, env=environ())
    out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (exits.NOBODY, b"")


@once
def test_json_keeps_what_is_no_utf8(fake_server: Any) -> None:
    def script(client: Any) -> None:
        client.handshake()
        for frame in ("SUB", "UNSUB", "PING"):
            client.expect(frame)
        client.send(b"MSG h.\xff\xfe 1 0\r\n\r\nPONG\r\n")
        for _ in range(2):  # the drain
            client.expect("PING")
            client.send(b"PONG\r\n")
        hold(client)

    done = gnats("sub", "h.*", "-n", "1", "--json", "-s", fake_server(script).url)
    (facts,) = done.json
    assert facts["subject"].encode("utf-8", "surrogateescape") == b"h.\xff\xfe"


@once
def test_a_server_that_never_confirms(fake_server: Any) -> None:
    """Nothing waits longer than was asked for."""

    def script(client: Any) -> None:
        client.handshake()
        hold(client)

    url = fake_server(script).url
    for words in (
        ["sub", "a", "-n", "1", "--timeout", "0.5"],
        ["health", "--timeout", "0.5"],
        ["rtt", "1", "--timeout", "0.5"],
        ["pub", "a", "x", "--timeout", "0.5"],
    ):
        began = monotonic()
        gnats(*words, "-s", url, status=exits.TIME_IS_UP)
        assert monotonic() - began < 0.5 + 8


@once
def test_standard_output_that_is_closed(url: str, subject: str) -> None:
    command = shlex.join([*COMMAND, "health", "-s", url])
    process = Popen(["bash", "-c", f"{command} >&-"], stderr=PIPE, env=environ())
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert b"standard output is closed" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk here")
def test_a_full_disk_is_told(
    conn: library.Connection, url: str, subject: str, tmp_path: Path
) -> None:
    for words in (["pub", subject, "x", "--json", "-s", url], ["--help"]):
        with open("/dev/full", "wb") as full, running(tmp_path, *words, stdout=full) as command:
            command.end(exits.FAILED)
        assert "gnats: standard output: No space left on device" in command.err
    with (
        open("/dev/full", "wb") as full,
        running(tmp_path, "sub", subject, "-s", url, stdout=full) as command,
    ):
        command.await_err("listening")
        conn.publish(subject, b"x")
        command.end(exits.FAILED)
    assert command.err.count("No space left on device") == 1


@pytest.mark.slow
def test_a_server_that_stands_still_is_left(nats_server: NatsServer, tmp_path: Path) -> None:
    """Also while a command waits for its confirmation, and nobody would ever answer."""
    words = ["sub", "a", "--timeout", "60", "-s", nats_server.url]
    with running(tmp_path, *words) as command:
        command.await_err("listening")
        nats_server.pause()
        try:
            command.await_err("lost the server", 60)
        finally:
            nats_server.resume()
        command.await_err("back, at")
        command.signal()
        command.end()


def test_a_second_ctrl_c_ends_it_at_once(fake_server: Any, tmp_path: Path) -> None:
    """The server never answers: the drain would wait for it."""

    draining = Event()

    def script(client: Any) -> None:
        client.handshake()
        client.expect("SUB")
        client.expect("PING")
        client.send(b"PONG\r\n")
        client.expect("UNSUB")
        draining.set()
        hold(client)

    server: FakeServer = fake_server(script)
    with running(tmp_path, "sub", "a", "-s", server.url) as command:
        command.await_err("listening")
        command.signal()
        assert draining.wait(PATIENCE)
        assert command.process.poll() is None
        command.signal()
        command.process.wait(5)
        assert command.process.returncode == 130
        assert "Traceback" not in command.err


@once
def test_sub_in_time(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["sub", subject, "-s", shared_nats_server.url, "--timeout", "0.2"]
    assert gnats(*words).out == b""
    late = gnats(*words, "-n", "1", status=3)
    assert "0 of 1 message" in late.err


@once
def test_sub_shares_a_queue(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["--queue", "q", "--raw"]
    with subscribed(tmp_path, shared_nats_server, subject, *words) as one:
        with subscribed(tmp_path, shared_nats_server, subject, *words) as two:
            for number in range(100):
                conn.publish(subject, b"%d" % number)
            conn.flush()
            for command in (one, two):
                command.signal()
                command.end()
    assert sorted(map(int, one.out.split() + two.out.split())) == list(range(100))


def test_sub_survives_its_server(nats_server: NatsServer, tmp_path: Path) -> None:
    with subscribed(tmp_path, nats_server, "a.*", "b", "--raw", "-n", "2") as command:
        nats_server.kill()
        command.await_err("lost the server")
        nats_server.restart()
        command.await_err("back, at")
        gnats("pub", "a.x", "1", "-s", nats_server.url)
        gnats("pub", "b", "2", "-s", nats_server.url)
        command.end()
    assert command.out == b"1\n2\n"


def test_sub_into_a_pipe_that_breaks(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    with subscribed(tmp_path, shared_nats_server, subject, "--raw", stdout=writing) as command:
        os.close(writing)
        conn.publish(subject, b"seen")
        conn.flush()
        assert gevent.get_hub().threadpool.apply(os.read, (reading, 100)) == b"seen\n"
        os.close(reading)

        def go_on() -> bool:
            conn.publish(subject, b"x")
            conn.flush()
            return command.process.poll() is not None

        wait_until(go_on, PATIENCE)
        command.end(141)
    assert command.err.replace(f"listening on {subject}\n", "") == ""


def test_a_reader_that_is_slow_does_not_cost_the_connection(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """While nobody reads our output PINGs are answered, so the server keeps us."""
    nats_server.reload('ping_interval: "200ms"\nping_max: 2\n')
    reading, writing = os.pipe()
    with subscribed(tmp_path, nats_server, "flood", "--raw", stdout=writing) as command:
        os.close(writing)
        with library.connect(nats_server.url) as conn:
            for _ in range(100):
                conn.publish("flood", b"x" * 65536)
            conn.flush()
            began = nats_server.varz()["now"]
            wait_until(lambda: _seconds_after(nats_server, began) > 1.5, 30)
            reader = Popen(["cat"], stdin=reading, stdout=DEVNULL)
            os.close(reading)
            command.signal()
            command.end()
            assert reader.wait(PATIENCE) == 0
    assert "lost" not in command.err


def _seconds_after(server: NatsServer, began: str) -> float:
    def parsed(text: str) -> datetime:
        return datetime.fromisoformat(text[:19])

    return (parsed(server.varz()["now"]) - parsed(began)).total_seconds()


# -- request and reply -------------------------------------------------------------------------


@once
def test_request(conn: library.Connection, url: str, subject: str) -> None:
    conn.subscribe(subject, cb=lambda msg: msg.respond(msg.data.upper(), headers={"A": "1"}))
    conn.flush()
    assert gnats("request", subject, "apples", "--raw", "-s", url).out == b"APPLES\n"
    text = gnats("request", subject, "-s", url, stdin=b"pears").out.decode()
    assert re.fullmatch(r'answer after [\d.]+ ms on "_INBOX\..*"\nA: 1\n\nPEARS\n\n', text)
    (facts,) = gnats("request", subject, "x", "--json", "-s", url).json
    assert (facts["data"], facts["headers"]) == ("X", {"A": ["1"]})
    assert 0 < facts["seconds"] < 5
    assert gnats("request", subject, "{{Count}}", "-n", "3", "--raw", "-s", url).out == b"1\n2\n3\n"


@once
def test_a_request_that_nobody_answers(conn: library.Connection, url: str, subject: str) -> None:
    assert subject in gnats("request", subject, "-s", url, status=4).err
    conn.subscribe(subject)
    conn.flush()
    gnats("request", subject, "-s", url, "--timeout", "0.1", status=3)
    many = gnats("request", subject, "-s", url, "--timeout", "0.1", "--replies", "2", status=3)
    assert "0 of 2 answers" in many.err


@once
def test_a_request_with_many_answers(conn: library.Connection, url: str, subject: str) -> None:
    for number in range(3):
        conn.subscribe(subject, cb=lambda msg, number=number: msg.respond(b"%d" % number))
    conn.flush()
    words = ["request", subject, "x", "--raw", "-s", url]
    assert len(gnats(*words, "--replies", "3").out.split()) == 3
    assert len(gnats(*words, "--replies", "0", "--timeout", "0.3").out.split()) == 3
    assert len(gnats(*words, "--replies", "0", "--stall", "0.2").out.split()) == 3
    short = gnats(*words, "--replies", "4", "--timeout", "0.3", status=3)
    assert "3 of 4 answers" in short.err


@once
def test_reply(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["{{Request}} is number {{Count}}", "-H", "A: 1", "-n", "2"]
    with subscribed(tmp_path, shared_nats_server, subject, *words, command="reply") as command:
        first = conn.request(subject, b"this", timeout=5)
        assert (first.data, dict(first.headers or {})) == (b"this is number 1", {"A": "1"})
        assert conn.request(subject, b"\xff", timeout=5).data == b"\xff is number 2"
        command.end()
    assert command.out.startswith(b'[#1] request on "')


@once
def test_reply_by_echo_and_by_file(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    with subscribed(tmp_path, shared_nats_server, subject, "--echo", command="reply") as command:
        assert conn.request(subject, b"x" * 1000, timeout=5).data == b"x" * 1000
        command.signal()
        command.end()
    file = tmp_path / "answer"
    file.write_bytes(b"from a file")
    words = ["--file", str(file), "-n", "1"]
    with subscribed(tmp_path, shared_nats_server, subject, *words, command="reply") as command:
        assert conn.request(subject, timeout=5).data == b"from a file"
        command.end()


def test_reply_by_a_command(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    shell = (
        'read word; [ "$word" = fail ] && { echo broken >&2; exit 3; }; '
        'printf "$word $NATS_REQUEST_SUBJECT"'
    )
    with subscribed(
        tmp_path, shared_nats_server, subject, "--command", shell, command="reply"
    ) as command:
        assert conn.request(subject, b"hello\n", timeout=10).data == f"hello {subject}".encode()
        failed = conn.request(subject, b"fail\n", timeout=10)
        assert dict(failed.headers or {}) == {
            "Nats-Service-Error-Code": "3",
            "Nats-Service-Error": "broken",
        }
        command.signal()
        command.end()
    assert "the command failed (3): broken" in command.err


@once
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--command", "setsid sleep 600", "--command-timeout", "0.3"], "longer than 0.3 s"),
        (["--command", "setsid sleep 600 & echo a", "--command-timeout", "0.3"], "longer than"),
        (["--command", "yes"], "printed more than 1048576 bytes"),
        (["--command", "printf 'a\\000b' >&2; false"], "a\\x00b"),
        (["--command", "head -c 1048570 /dev/zero", "-H", "A: bcdef"], "too long"),
    ],
)
def test_a_reply_that_fails_is_an_answer_too(
    shared_nats_server: NatsServer,
    conn: library.Connection,
    subject: str,
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    with subscribed(
        tmp_path, shared_nats_server, subject, *words, "-n", "1", command="reply"
    ) as command:
        answer = conn.request(subject, timeout=20)
        assert said in (answer.headers or {})["Nats-Service-Error"]
        command.end()


def test_no_command_outlives_a_second_ctrl_c(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["--command", "echo $$ > pid; sleep 600"]
    with subscribed(
        tmp_path, shared_nats_server, subject, *words, command="reply", cwd=tmp_path
    ) as command:
        conn.publish(subject, b"", reply="nowhere")
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), PATIENCE)
        command.signal()
        wait_until(lambda: not subscribers(shared_nats_server, subject), PATIENCE)  # it drains
        command.signal()
        command.end(130)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid), PATIENCE)


@once
def test_what_a_command_has_started_is_ended_with_it(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["--command", "sleep 600 & echo $! > pid; echo a", "--command-timeout", "0.3"]
    with subscribed(
        tmp_path, shared_nats_server, subject, *words, "-n", "1", command="reply", cwd=tmp_path
    ) as command:
        assert "longer" in (conn.request(subject, timeout=20).headers or {})["Nats-Service-Error"]
        command.end()
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())), PATIENCE)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@once
def test_a_reply_that_the_server_refuses_is_a_failure(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    nats_server.config = """authorization { users: [
        {user: a, password: a, permissions: {publish: "none"}}, {user: b, password: b}] }"""
    nats_server.reload()
    words = ["reply", "q", "x", "-n", "1", "-s", nats_server.url, "--user", "a", "--password", "a"]
    with (
        running(tmp_path, *words) as command,
        library.connect(nats_server.url, user="b", password="b") as conn,
    ):
        command.await_err("answering on q")
        conn.publish("q", b"", reply="p")
        command.end(exits.FAILED)
    assert "Permissions Violation" in command.err


def test_the_last_answer_waits_for_a_server(nats_server: NatsServer, tmp_path: Path) -> None:
    words = ["--command", "echo > begun; while [ ! -e go ]; do sleep 0.05; done; echo hi"]
    words += ["-n", "1"]
    with (
        library.connect(nats_server.url, max_reconnect=-1, reconnect_wait=0.05) as conn,
        subscribed(tmp_path, nats_server, "q", *words, command="reply", cwd=tmp_path) as command,
    ):
        answers = conn.subscribe("answers")
        conn.publish("q", b"", reply="answers")
        wait_until(lambda: (tmp_path / "begun").exists(), PATIENCE)
        nats_server.kill()
        command.await_err("lost the server")
        (tmp_path / "go").touch()
        nats_server.start()
        command.end()
        assert command.process.returncode == 0
        assert "could not be sent" not in command.err
        assert answers.next_msg(10).data == b"hi\n"


@pytest.mark.parametrize("words", [["sub", "a"], ["reply", "a", "x"], ["pub", "a", "--lines"]])
def test_a_connection_that_has_ended_for_good_ends_the_command(
    nats_server: NatsServer, tmp_path: Path, words: list[str]
) -> None:
    """Refused twice with the same words: the library gives up."""
    nats_server.config = "authorization { user: a, password: one }"
    nats_server.reload()
    reading, writing = os.pipe()
    url = nats_server.url.replace("://", "://a:one@")
    try:
        os.write(writing, b"a line for pub\n")
        with running(tmp_path, *words, "-s", url, stdin=reading) as command:
            if words[0] == "pub":
                wait_until(lambda: nats_server.varz()["in_msgs"] == 1, PATIENCE)
            else:
                command.await_err("ing on a")
            nats_server.kill()
            nats_server.config = "authorization { user: a, password: two }"
            nats_server.start()
            command.end(exits.FAILED)
    finally:
        os.close(reading)
        os.close(writing)
    assert "gnats: the connection has ended: " in command.err
    assert "Authorization Violation" in command.err


@once
def test_what_a_slow_reader_has_missed_is_told(nats_server: NatsServer, tmp_path: Path) -> None:
    """Nobody reads its output: in the end the drain gives up."""
    reading, writing = os.pipe()
    words = ["sub", "a", "--raw", "-s", nats_server.url]
    try:
        with (
            running(tmp_path, *words, stdout=writing) as command,
            library.connect(nats_server.url) as conn,
        ):
            command.await_err("listening")
            for _ in range(100):
                conn.publish("a", bytes(100_000))
            conn.flush()
            command.signal()
            command.end(exits.INCOMPLETE)
    finally:
        os.close(reading)
        os.close(writing)
    assert re.search(
        r"gnats: drain did not end within 10 s: .*; \d+ received messages dropped", command.err
    )


def test_a_command_that_hangs_is_ended(
    shared_nats_server: NatsServer, conn: library.Connection, subject: str, tmp_path: Path
) -> None:
    words = ["--command", "sleep 60", "--command-timeout", "0.2", "-n", "1"]
    with subscribed(tmp_path, shared_nats_server, subject, *words, command="reply") as command:
        answer = conn.request(subject, timeout=10)
        assert "longer than 0.2 s" in (answer.headers or {})["Nats-Service-Error"]
        command.end()


@once
def test_reply_needs_one_answer(url: str) -> None:
    for words in ([], ["x", "--echo"]):
        assert "one answer is needed" in gnats("reply", "a", *words, "-s", url, status=2).err


# -- rtt, health, bench ------------------------------------------------------------------------


@once
def test_rtt(url: str) -> None:
    assert "ms median of 3" in gnats("rtt", "3", "-s", url).out.decode()
    dead = f"nats://127.0.0.1:{free_port()}"
    done = gnats("rtt", "2", "--json", "-s", f"{dead},{url}", status=1)
    (facts,) = done.json
    assert (facts["server"], facts["count"]) == (url, 2)
    assert 0 < facts["min"] <= facts["median"] <= facts["max"] < 5
    assert dead in done.err


@once
def test_health(url: str, shared_nats_server: NatsServer) -> None:
    text = gnats("health", "-s", url).out.decode()
    assert text.startswith(f"healthy: {url} ({shared_nats_server.name}, nats-server 2.")
    (facts,) = gnats("health", "--json", "-s", url).json
    assert (facts["healthy"], facts["server"], facts["jetstream"]) == (True, url, False)
    slow = gnats("health", "--json", "--max-rtt", "0", "-s", url, status=3)
    assert slow.json[0]["healthy"] is False


@once
def test_health_of_what_is_ill(nats_server: NatsServer) -> None:
    nats_server.pause()
    silent = gnats("health", "-s", nats_server.url, "--timeout", "0.3", "--json", status=3)
    assert silent.json == [{"healthy": False, "error": "no answer within 0.3 s"}]
    nats_server.resume()
    nats_server.kill()
    done = gnats("health", "--json", "-s", nats_server.url, status=1)
    assert done.json[0]["healthy"] is False
    assert "Connection refused" in done.json[0]["error"]


@once
@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ([], "publish and receive"),
        (["--pub", "3", "--sub", "2", "--size", "100", "--at-least-once"], "publish and receive"),
        (["--sub", "0"], "publish"),
        (["--request", "--pub", "4", "--sub", "2"], "request"),
    ],
)
def test_bench(url: str, words: list[str], mode: str) -> None:
    (facts,) = gnats("bench", "-n", "1,001", *words, "--json", "-s", url).json
    assert facts["mode"] == mode
    assert facts["done"] == facts["expected"] == 1001 * (2 if "3" in words else 1)
    for name in ("publish", "receive", "request"):
        if name in facts:
            assert facts[name]["msgs_per_second"] > 10
    if mode == "request":
        assert 0 < facts["latency"]["p50"] <= facts["latency"]["p99"] <= facts["latency"]["max"]
    text = gnats("bench", "-n", "1000", *words, "-s", url).out.decode()
    assert "msg/s" in text
    assert "MISSING" not in text


@once
def test_bench_tells_what_is_missing(nats_server: NatsServer) -> None:
    nats_server.config = (
        'authorization { users: [{user: a, password: a, permissions: {subscribe: "_INBOX.>"}}] }'
    )
    nats_server.reload()
    done = gnats(
        *["bench", "forbidden", "-n", "50", "--user", "a", "--password", "a"],
        *["--stall", "0.3", "-s", nats_server.url],
        status=1,
    )
    assert "MISSING  50 of 50" in done.out.decode()
    assert "ermission" in done.err


@once
@pytest.mark.parametrize("words", [[], ["--request"]], ids=["publish", "request"])
def test_bench_with_what_the_server_does_not_take(url: str, words: list[str]) -> None:
    done = gnats("bench", "-s", url, "--size", "2000000", "-n", "10", *words, status=1)
    assert "the server takes at most 1048576" in done.err
    assert "failed with" not in done.err


@once
def test_bench_counts_no_message_that_was_lost(fake_server: Any) -> None:
    """The first link is cut behind the first message."""
    links: list[Any] = []

    def script(client: Any) -> None:
        links.append(client)
        if len(links) > 1:
            serve(client)
        client.handshake()
        client.expect("PUB")

    words = ["bench", "--sub", "0", "-n", "1", "--json", "-s", fake_server(script).url]
    done = gnats(*words, status=exits.INCOMPLETE)
    assert (done.json[0]["done"], done.json[0]["expected"]) == (0, 1)


@once
def test_bench_through_an_outage(nats_server: NatsServer, tmp_path: Path) -> None:
    words = ["bench", "--sub", "0", "-n", "3000000", "--at-least-once", "-s", nats_server.url]
    with running(tmp_path, *words) as command:
        wait_until(lambda: nats_server.varz()["in_msgs"] > 1000, PATIENCE)
        nats_server.kill()
        command.await_err("lost the server")
        gevent.sleep(1.0)  # until no more fits into the buffer
        nats_server.start()
        command.await_err("back, at")
        command.signal()
        command.end(130)


@once
def test_bench_wants_someone(url: str) -> None:
    assert "--pub" in gnats("bench", "--pub", "0", "-s", url, status=2).err
    assert "--sub" in gnats("bench", "--request", "--sub", "0", "-s", url, status=2).err


def test_bench_is_interrupted(url: str, tmp_path: Path) -> None:
    with running(tmp_path, "bench", "-n", "90,000,000", "-s", url) as command:
        wait_until(lambda: _has_begun(command.process.pid), PATIENCE)
        command.signal()
        command.end(130)


def _has_begun(pid: int) -> bool:
    """Whether it has used more than a second of processor time: it is in its loop."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") > 1.5


# -- server ------------------------------------------------------------------------------------


def test_server(tmp_path: Path) -> None:
    with running(tmp_path, "server", "-p", "0", "--json", "--jetstream") as command:
        command.await_out(b"\n")
        (facts,) = command.json
        (health,) = gnats("health", "--json", "-s", facts["url"]).json
        assert health["jetstream"] is True
        (server,) = facts["servers"]
        command.signal()
        command.end()
    wait_until(lambda: not _lives(server["pid"]), 5)


def _lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@once
@pytest.mark.parametrize("words", [["--token", "t", "server"], ["server", "--token", "t"]])
def test_server_has_its_credentials_from_before_or_behind(tmp_path: Path, words: list[str]) -> None:
    with running(tmp_path, *words, "-p", "0", "--json") as command:
        command.await_out(b"\n")
        url = command.json[0]["url"]
        assert "uthorization" in gnats("health", "-s", url, status=1).err
        gnats("health", "-s", url, "--token", "t")
        command.signal()
        command.end()


def test_server_with_credentials_and_arguments(tmp_path: Path) -> None:
    words = ["-p", "0", "--user", "u", "--password", "p", "--", "-D"]
    with running(tmp_path, "server", *words) as command:
        command.await_out(b"\n")
        url = command.out.decode().strip()
        gnats("health", "-s", url, status=1)
        gnats("health", "-s", url, "--user", "u", "--password", "p")
        command.signal(signal.SIGTERM)
        command.end()


@once
def test_a_cluster(tmp_path: Path) -> None:
    with running(tmp_path, "server", "--cluster", "2", "--json") as command:
        command.await_out(b"\n")
        (facts,) = command.json
        first, second = facts["url"].split(",")
        with library.connect(first) as one, library.connect(second) as two:
            sub = one.subscribe("x")
            one.flush()
            wait_until(lambda: (two.publish("x", b"over"), sub.pending_msgs)[1], 10)
        command.signal()
        command.end()


@once
def test_a_server_that_ends_by_itself(tmp_path: Path) -> None:
    with running(tmp_path, "server", "-p", "0", "--json") as command:
        command.await_out(b"\n")
        os.kill(command.json[0]["servers"][0]["pid"], signal.SIGKILL)
        command.end(1)
    assert "has ended" in command.err


@once
def test_a_server_that_cannot_start(url: str, tmp_path: Path) -> None:
    taken = gnats("server", "-p", url.rpartition(":")[2], status=1)
    assert "the port is in use (by a server that runs already?): --port 0" in taken.err
    config = tmp_path / "server.conf"
    config.write_text("port: {")
    assert "Parse error" in gnats("server", "-p", "0", "-c", str(config), status=1).err
    assert "none" in gnats("server", "-p", "0", "-c", str(tmp_path / "none"), status=1).err
    flags = gnats("server", "-p", "0", "-DV", status=2)
    assert "unrecognized: -DV (nats-server's own flags stand behind --)" in flags.err
    assert "--port" in gnats("server", "-p", "5000", "--cluster", "2", status=2).err
    assert "--server" in gnats("-s", url, "server", status=2).err


# -- who we are --------------------------------------------------------------------------------


@once
def test_credentials_by_flag_and_by_environment() -> None:
    with NatsServer(user="u", password="p") as server:
        flags_ = ["--user", "u", "--password", "p"]
        gnats("health", "-s", server.url, *flags_)
        gnats(*flags_, "-s", server.url, "health")  # before the command, too
        gnats("health", NATS_URL=server.url, NATS_USER="u", NATS_PASSWORD="p")
        gnats("health", *flags_, NATS_URL=server.url, NATS_CREDS="there/is/none.creds")
        wrong = gnats("health", "-s", server.url, "--user", "u", "--password", "secret", status=1)
        assert "uthorization" in wrong.err
        assert "secret" not in wrong.err
    with NatsServer(token="t") as server:
        gnats("health", "-s", server.url, "--token", "t")
        gnats("health", "-s", server.url, NATS_TOKEN="t")


@once
def test_an_nkey_and_a_creds_file(tmp_path: Path) -> None:
    pytest.importorskip("nkeys")
    from jwts import Identity, Realm, creds

    identity = Identity("user")
    seed = tmp_path / "seed"
    seed.write_bytes(identity.seed)
    config = f"authorization {{ users: [{{nkey: {identity.public}}}] }}"
    with NatsServer(config=config) as server:
        gnats("health", "-s", server.url, "--nkey", str(seed))
        gnats("health", "-s", server.url, NATS_NKEY=str(seed))
        gnats("health", "-s", server.url, status=1)
    realm = Realm()
    file = tmp_path / "user.creds"
    file.write_text(creds(*realm.user()))
    with NatsServer(config=realm.config) as server:
        gnats("health", "-s", server.url, "--creds", str(file))
        gnats("health", "-s", server.url, NATS_CREDS=str(file))
        assert "none" in gnats("health", "-s", server.url, "--creds", "none", status=1).err


@once
def test_tls(authority: Authority) -> None:
    extra = f', verify: true, ca_file: "{authority.ca}"'
    cert, key = authority.issue("client")
    ours = ["--tlscert", cert, "--tlskey", key]
    with NatsServer(config=authority.config("127.0.0.1", extra=extra)) as server:
        gnats("health", "-s", server.url, "--tlsca", str(authority.ca), *ours)
        gnats(
            "health", NATS_URL=server.url, NATS_CA=str(authority.ca), NATS_CERT=cert, NATS_KEY=key
        )
        assert "ertificate" in gnats("health", "-s", server.url, *ours, status=1).err
    first = authority.config("127.0.0.1", extra=", handshake_first: true")
    with NatsServer(config=first, expect_info=False) as server:
        gnats("health", "-s", server.url, "--tlsfirst", "--tlsca", str(authority.ca))


# -- what is forbidden -------------------------------------------------------------------------


@once
def test_what_the_server_forbids(nats_server: NatsServer, tmp_path: Path) -> None:
    users = '{user: a, password: a, permissions: {publish: "free", subscribe: "free"}}'
    nats_server.reload(f"authorization {{ users: [{users}] }}")
    who = ["-s", nats_server.url, "--user", "a", "--password", "a"]
    gnats("pub", "free", "x", *who)
    assert "ermission" in gnats("pub", "closed", "x", *who, status=1).err
    assert "ermission" in gnats("sub", "closed", *who, status=1).err
    assert "ermission" in gnats("reply", "closed", "x", *who, status=1).err


# -- on a terminal -----------------------------------------------------------------------------


@once
def test_a_progress_bar_on_a_terminal(url: str) -> None:
    shown = on_a_terminal(["bench", "--sub", "0", "-n", "3,000,000", "-s", url]).err
    assert "━" in shown
    assert "/s" in shown
    assert "publish " in shown


@once
def test_nor_can_a_command_of_reply_or_json(
    conn: library.Connection, url: str, subject: str
) -> None:
    def ask() -> None:
        wait_until(lambda: _is_heard(conn, subject), PATIENCE)

    asker = gevent.spawn(ask)
    words = ["reply", subject, "-s", url, "-n", "1", "--json", "--command"]
    shown = on_a_terminal([*words, "cat >&2; exit 1"]).out
    asker.join(PATIENCE)
    assert b"pwned" in shown
    assert b"\x1b]0" not in shown
    assert b"\xc2\x9b" not in shown


def _is_heard(conn: library.Connection, subject: str) -> bool:
    try:
        conn.request(subject, b"\x1b]0;pwned\x07 \xc2\x9b31m", timeout=5)
    except library.errors.NoRespondersError:
        return False
    return True


@once
def test_a_dumb_terminal_gets_plain_lines(url: str, subject: str) -> None:
    done = on_a_terminal(["request", subject, "x", "-s", url], NO_COLOR="", TERM="dumb")
    assert done.status == exits.NOBODY
    assert b"\x1b" not in done.out


def test_a_message_cannot_command_the_terminal(
    conn: library.Connection, url: str, subject: str
) -> None:
    conn.subscribe(subject, cb=lambda msg: msg.respond(b"\x1b[2Jgone\x07\xff\tend"))
    conn.flush()
    shown = on_a_terminal(["request", subject, "x", "-s", url]).err
    assert "\\x1b[2Jgone\\x07\\xff\tend" in shown.replace("    ", "\t")
    assert "\x1b[2J" not in shown


# -- the program -------------------------------------------------------------------------------


@once
@once
def test_flags_between_other_arguments() -> None:
    for line in ("pub a -H 'x: y' payload", "pub a -s u payload", "request a --timeout 1 payload"):
        found = parser().parse_args(shlex.split(line))
        assert (found.subject, found.payload) == ("a", "payload")
    assert parser().parse_args(shlex.split("sub a --count 1 b")).subject == ["a", "b"]
    assert parser().parse_args(shlex.split("reply q --count 1 42")).payload == "42"
    assert parser().parse_args(shlex.split("server -p 0 -- -DV")).arguments == ["-DV"]


@once
def test_two_forms_at_once(url: str) -> None:
    assert "not allowed with" in gnats("sub", "a", "--raw", "--json", "-s", url, status=2).err


def test_version_and_help() -> None:
    version = gnats("--version").out.decode()
    mode = "compiled" if library.compiled else "pure Python"
    assert version == f"gnats {library.__version__} ({mode})\n"
    text = gnats("--help").out.decode()
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        assert f"\n    {name} " in text
        assert "-h, --help" in gnats(name, "--help").out.decode()
    assert "COMMAND" in gnats(status=2).err


@once
def test_the_exit_statuses_are_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    told = {int(number) for number in re.findall(r"`(\d+)`[,|` ]", page) if int(number) < 200}
    values = {value for name, value in vars(exits).items() if name.isupper() and name[0] != "_"}
    assert values <= told


@once
def test_the_flags_are_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    table = page[page.index("| flag |") : page.index("A password on the command line")]
    plain = argparse.ArgumentParser()
    flags.add_connection(plain)
    known = {text for action in plain._actions for text in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"`(--?[\w-]+)`", table)) == known
    variables = {row[1] for row in (*flags._WHO.values(), *flags._TLS.values())} | {"NATS_URL"}
    assert set(re.findall(r"`(NATS_\w+)`", table)) == variables


@once
@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", 0.5), ("250ms", 0.25), ("1.5s", 1.5), ("2m", 120), ("1h", 3600)],
)
def test_durations(text: str, value: float) -> None:
    assert flags.seconds(text) == pytest.approx(value)


@once
@pytest.mark.parametrize("text", ["", "s", "-1", "nan", "inf", "1 d", "1e99"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no duration"):
        flags.seconds(text)


@once
def test_templates() -> None:
    assert (
        payloads.fill_in("{{Count}}{{Request}}{{Count}}", 7, b"\xff{{Count}}") == b"7\xff{{Count}}7"
    )
    assert payloads.fill_in("{{Nothing}} {} {{", 1) == b"{{Nothing}} {} {{"


@once
def test_every_command_has_an_example_that_parses() -> None:
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        lines = re.findall(rf"^  (.*\bgnats {name}\b.*)$", module.__doc__ or "", re.MULTILINE)
        assert lines, name
        for line in lines:
            words = shlex.split(
                re.split(r"\s{3,}\(|\|", line.split("|")[-2 if "jq" in line else -1])[0]
            )
            parser().parse_args(words[1:])


@once
def test_without_rich_there_are_lines(url: str) -> None:
    program = "import sys; sys.modules['rich'] = None; from gnats.cli import main; sys.exit(main())"
    words = ["bench", "--sub", "0", "-n", "3,000,000", "-s", url]
    done = on_a_terminal(words, command=[sys.executable, "-c", program])
    assert done.status == 0
    assert re.search(r"publish: [\d,]+ of 3,000,000 \(\d+ %\)", done.err)
    assert "━" not in done.err


# -- the page ----------------------------------------------------------------------------------


def _lines_of_the_page() -> list[str]:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@once
@pytest.mark.parametrize("line", _lines_of_the_page())
def test_a_line_of_the_page(line: str, tmp_path: Path, nats_server: NatsServer) -> None:
    """As printed, in a shell. Who listens gets messages and questions until it ends, by itself or
    by a Ctrl-C behind the first one."""
    (tmp_path / "order.json").write_text("{}")
    (tmp_path / "app.log").write_text("one\ntwo\n")
    if line == "gnats server":
        # 4222 may be somebody's.
        line = shlex.join(["timeout", "--preserve-status", "5", *COMMAND, "server", "--port", "0"])
    if line == "gnats demo":
        line += " --pace 0.1"
    if "--plot" in line:
        pytest.importorskip("matplotlib")
    is_endless = line.startswith(("gnats sub ", "gnats reply ")) and "--count" not in line
    function = f'gnats() {{ {shlex.join(COMMAND)} "$@"; }}\n'
    with library.connect(nats_server.url) as conn:
        if "gnats request" in line:
            conn.subscribe("price", cb=lambda msg: msg.respond(b"42"))
        feeder = gevent.spawn(_feed, conn)
        process = Popen(
            ["bash", "-c", function + line],
            cwd=tmp_path,
            stdout=PIPE,
            stderr=PIPE,
            stdin=DEVNULL,
            env=environ(NATS_URL=nats_server.url),
            preexec_fn=_as_on_a_terminal,
        )
        try:
            if is_endless:
                with gevent.Timeout(PATIENCE):
                    assert process.stdout.read(1)
                os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            feeder.kill()
            if process.poll() is None:
                process.kill()
                process.wait()
    assert process.returncode == 0, (out, err)
    if "--plot" in line:
        assert (tmp_path / "outage.svg").stat().st_size > 10_000


def _as_on_a_terminal() -> None:
    """A group of its own, which a Ctrl-C reaches."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _feed(conn: library.Connection) -> None:
    while True:
        conn.publish("orders.new", b"fed")
        for question in ("price", "echo", "time"):
            conn.publish(question, b"fed", reply=conn.new_inbox())
        gevent.sleep(0.1)
