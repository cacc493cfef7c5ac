"""The only file that touches a socket: dialling, bytes both ways, errors translated."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket

from gnats import errors, transport
from gnats.backoff import Deadline
from gnats.options import ConnectionOptions
from gnats.testing import FakeClient, FakeServer, free_port, hold, wait_until
from gnats.transport import Transport, dial

SLACK = 0.7
LINUX = sys.platform.startswith("linux")


def open_to(port: int, host: str = "127.0.0.1", write_timeout: float = 5.0) -> Transport:
    return dial(host, port, ConnectionOptions(write_timeout=write_timeout), Deadline(5))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(hold) as started:
        yield started


@pytest.fixture
def link(server: FakeServer) -> Iterator[tuple[Transport, FakeClient]]:
    opened = open_to(server.port)
    yield opened, server.wait_for_client()
    opened.close()


def read(link: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += link.recv()
    return data


# -- bytes ----------------------------------------------------------------------------------------


def test_bytes_both_ways(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    client.send(b"hello")
    assert opened.recv() == b"hello"
    assert opened.send(memoryview(b"PING\r\n")) == 6
    assert client.read_exactly(6) == b"PING\r\n"
    for number in range(100):
        client.send(b"%d" % number)
        assert read(opened, len(str(number))) == b"%d" % number


def test_many_bytes(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    data = os.urandom(5_000_000)
    sending = gevent.spawn(client.send, data)
    assert read(opened, len(data)) == data
    sending.get(timeout=5)
    line = b"PUB a 4999000\r\n" + b"x" * 4_999_000 + b"\r\n"
    taking = gevent.spawn(client.read_exactly, len(line), 10)
    opened.send_all(line)
    assert taking.get(timeout=10) == line


def test_recv_lets_others_run(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    reading = gevent.spawn(opened.recv)
    gevent.sleep(0.01)
    assert not reading.ready()
    client.send(b"x")
    assert reading.get(timeout=5) == b"x"


def test_what_was_sent_while_nobody_read_is_there(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    client.send(b"a")
    assert opened.recv() == b"a"
    client.send(b"b")
    gevent.sleep(0.01)  # the loop sees it; nobody waits
    client.send(b"c")
    gevent.sleep(0.01)
    assert read(opened, 2) == b"bc"


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_reader_that_is_struck_loses_nothing(
    link: tuple[Transport, FakeClient], how: str
) -> None:
    opened, client = link
    for _ in range(3):
        if how == "kill":
            reading = gevent.spawn(opened.recv)
            gevent.sleep(0)
            reading.kill(timeout=5)
        else:
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
                opened.recv()
    client.send(b"still here")
    assert read(opened, 10) == b"still here"


def test_a_watcher_without_a_reader_does_not_spin(link: tuple[Transport, FakeClient]) -> None:
    """Bytes that nobody reads must not make the loop turn for ever at full speed."""
    opened, client = link
    client.send(b"a")
    opened.recv()
    client.send(b"b")
    gevent.sleep(0.02)
    began = os.times()
    gevent.sleep(0.3)
    ended = os.times()
    assert (ended.user + ended.system) - (began.user + began.system) < 0.15
    assert opened.recv() == b"b"


# -- the end of a link ----------------------------------------------------------------------------


def test_the_server_closes(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    client.send(b"last words")
    client.close()
    assert read(opened, 10) == b"last words"
    for _ in range(2):
        with pytest.raises(errors.UnexpectedEOF):
            opened.recv()


def test_the_server_half_closes(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    reading = gevent.spawn(opened.recv)
    gevent.sleep(0)
    client.half_close()
    with pytest.raises(errors.UnexpectedEOF):
        reading.get(timeout=5)
    opened.send_all(b"PING\r\n")
    assert client.read_exactly(6) == b"PING\r\n"


def test_the_server_resets(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    reading = gevent.spawn(opened.recv)
    gevent.sleep(0)
    client.reset()
    with pytest.raises(errors.TransportError, match="receive") as info:
        reading.get(timeout=5)
    assert isinstance(info.value.__cause__, ConnectionResetError)
    with pytest.raises(errors.TransportError, match="send"):
        for _ in range(100):
            opened.send_all(b"x" * 1000)
            gevent.sleep(0.001)


def test_close_is_at_once_and_may_come_twice(link: tuple[Transport, FakeClient]) -> None:
    opened, client = link
    switched: list[int] = []
    gevent.spawn(switched.append, 1)
    opened.close()
    opened.close()
    assert switched == []
    with pytest.raises(ConnectionError):
        client.read_exactly(1)
    for call in (opened.recv, lambda: opened.send(memoryview(b"x"))):
        with pytest.raises(errors.Error), gevent.Timeout(2, AssertionError("it hangs")):
            call()


def test_close_under_a_reader_does_not_hang_it(link: tuple[Transport, FakeClient]) -> None:
    opened, _ = link
    reading = gevent.spawn(opened.recv)
    gevent.sleep(0)
    opened.close()
    reading.kill(timeout=2)
    assert reading.dead


@pytest.mark.skipif(not LINUX, reason="counts sockets in /proc")
def test_no_socket_is_left(server: FakeServer) -> None:
    def sockets() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return {one for one in found if one.startswith("socket:")}

    before = sockets()
    for _ in range(10):
        opened = open_to(server.port)
        opened.close()
        with pytest.raises(errors.TransportError):
            open_to(free_port())
    server.close_clients()
    wait_until(lambda: sockets() <= before)


# -- a server that takes nothing ------------------------------------------------------------------


def fill(opened: Transport) -> None:
    view = memoryview(b"x" * 1_000_000)
    while True:
        opened.send(view)


def test_a_stalled_write() -> None:
    with FakeServer(hold, rcvbuf=4096) as server:
        opened = open_to(server.port, write_timeout=0.2)
        began = monotonic()
        with pytest.raises(errors.WriteStalledError) as info:
            fill(opened)
        assert 0.197 <= monotonic() - began < 0.2 + SLACK
        assert info.value.timeout == 0.2
        assert isinstance(info.value, errors.TransportError)
        opened.close()


def test_others_run_while_a_write_waits() -> None:
    with FakeServer(hold, rcvbuf=4096) as server:
        opened = open_to(server.port, write_timeout=30)
        filling = gevent.spawn(fill, opened)
        gevent.sleep(0.05)
        assert not filling.ready()
        server.wait_for_client().reset()
        with pytest.raises(errors.TransportError):
            filling.get(timeout=5)
        opened.close()


def test_a_writer_that_is_struck() -> None:
    with FakeServer(hold, rcvbuf=4096) as server:
        opened = open_to(server.port, write_timeout=30)
        filling = gevent.spawn(fill, opened)
        gevent.sleep(0.02)
        filling.kill(timeout=5)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            fill(opened)
        opened.close()


# -- dialling -------------------------------------------------------------------------------------


def test_a_refusal_is_translated() -> None:
    port = free_port()
    with pytest.raises(errors.TransportError, match=f"127.0.0.1:{port}.*refused") as info:
        open_to(port)
    assert isinstance(info.value.__cause__, ConnectionRefusedError)


def test_names_are_resolved(server: FakeServer) -> None:
    opened = open_to(server.port, "localhost")
    server.wait_for_client().send(b"x")
    assert opened.recv() == b"x"
    opened.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "\udcff", "ho\x00st"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(errors.TransportError, match="resolve"):
        open_to(1, host)


def resolve_to(monkeypatch: Any, *addresses: tuple[Any, ...]) -> list[Any]:
    asked: list[Any] = []

    def getaddrinfo(host: str, port: int, *args: Any) -> list[Any]:
        asked.append((host, port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(transport.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(transport.random, "shuffle", lambda addresses: None)  # in this order
    return asked


def test_each_address_is_tried(monkeypatch: Any, server: FakeServer) -> None:
    dead = ("127.0.0.1", free_port())
    asked = resolve_to(monkeypatch, dead, dead, ("127.0.0.1", server.port))
    open_to(4222, "cluster.example").close()
    assert asked == [("cluster.example", 4222)]
    assert len(server.clients) <= 1
    server.wait_for_client()


def test_a_name_is_resolved_anew_each_time(monkeypatch: Any, server: FakeServer) -> None:
    asked = resolve_to(monkeypatch, ("127.0.0.1", server.port))
    for _ in range(3):
        open_to(4222, "cluster.example").close()
    assert len(asked) == 3


def test_the_reason_of_the_last_address(monkeypatch: Any) -> None:
    resolve_to(monkeypatch, ("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
    with pytest.raises(errors.TransportError, match=r"cluster\.example:4222.*refused"):
        open_to(4222, "cluster.example")


def test_a_name_without_an_address(monkeypatch: Any) -> None:
    resolve_to(monkeypatch)
    with pytest.raises(errors.TransportError, match="no address"):
        open_to(4222, "cluster.example")


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose backlog is full: on Linux further connects are neither taken nor refused."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(("127.0.0.1", port))
        waiting.append(one)
    yield port
    for one in [*waiting, listener]:
        one.close()


@pytest.mark.skipif(not LINUX, reason="needs a backlog that can be filled")
def test_a_connect_that_takes_too_long(full_port: int) -> None:
    began = monotonic()
    with pytest.raises(errors.TimeoutError, match="timed out"):
        dial("127.0.0.1", full_port, ConnectionOptions(), Deadline(0.2))
    assert 0.15 < monotonic() - began < 0.2 + SLACK


@pytest.mark.skipif(not LINUX, reason="needs a backlog that can be filled")
def test_a_silent_address_leaves_time_for_the_next(
    monkeypatch: Any, full_port: int, server: FakeServer
) -> None:
    resolve_to(monkeypatch, ("127.0.0.1", full_port), ("127.0.0.1", server.port))
    began = monotonic()
    dial("cluster.example", 4222, ConnectionOptions(), Deadline(0.6)).close()
    assert 0.25 < monotonic() - began < 0.3 + SLACK


def test_a_deadline_that_is_over() -> None:
    with pytest.raises((errors.TimeoutError, errors.TransportError)):
        dial("127.0.0.1", free_port(), ConnectionOptions(), Deadline(0))


def test_errors_of_the_system_keep_their_words() -> None:
    translated = transport._translate(OSError(errno.EHOSTUNREACH, "x"), "connect to h:1")
    assert isinstance(translated, errors.TransportError)
    assert os.strerror(errno.EHOSTUNREACH) in str(translated)
    assert isinstance(transport._translate(socket.timeout(), "connect"), errors.TimeoutError)


def test_a_link_is_without_delay(link: tuple[Transport, FakeClient]) -> None:
    opened, _ = link
    assert opened._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
