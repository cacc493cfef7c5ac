"""The chaos proxy: every fault to the byte, with bare sockets; then what gnats makes of them.

A wait is for a condition. Only that *nothing* happens is looked for during a fixed time (`QUIET`),
which can hide a defect on a slow machine and cannot invent one.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.subprocess import PIPE, STDOUT, Popen

import gnats
import gnats.testing.proxy as proxy_module
from gnats.errors import ProtocolError, StaleConnectionError
from gnats.testing import (
    ChaosLink,
    ChaosProxy,
    FakeServer,
    NatsServer,
    ReservedPort,
    hold,
    serve,
    wait_until,
)

LINUX = sys.platform.startswith("linux")

# The kit is tested once, as in test_testing.py; every cell uses it.
pytestmark = pytest.mark.once
QUIET = 0.05  # seconds
TIMEOUT = 20.0  # seconds; the bound of every wait
MB = 1024 * 1024

# Of the line that FakeServer sends; what a test compares is the same line, unproxied.
HELLO = b'CONNECT {"verbose":false}\r\nPING\r\n'

FAST: dict[str, Any] = {
    "reconnect_wait": 0.01,
    "reconnect_jitter": 0.0,
    "max_reconnect": -1,
    "connect_timeout": 10.0,
}


class Plug:
    """One end of a link, a bare socket. Everything is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = self.sock.recv(min(count - len(data), 65536))
            assert chunk, f"ended behind {bytes(data[:100])!r}"
            data += chunk
        return bytes(data)

    def rest(self) -> tuple[bytes, str]:
        """All that comes until the end, and which end it is: "fin" or "rst"."""
        data = bytearray()
        while True:
            try:
                chunk = self.sock.recv(65536)
            except ConnectionResetError:
                return bytes(data), "rst"
            if not chunk:
                return bytes(data), "fin"
            data += chunk

    def is_quiet(self) -> bool:
        """Whether nothing comes, no end either."""
        self.sock.settimeout(QUIET)
        try:
            self.sock.recv(1)
        except socket.timeout:
            return True
        else:
            return False
        finally:
            self.sock.settimeout(TIMEOUT)

    def fill(self, limit: int = 200 * MB) -> int:
        """Send until the kernel takes nothing for a while; return how many bytes it took."""
        sent = 0
        self.sock.settimeout(4 * QUIET)
        try:
            while sent < limit:
                sent += self.sock.send(bytes(65536))
        except socket.timeout:
            pass
        finally:
            self.sock.settimeout(TIMEOUT)
        return sent

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Joint:
    """A client, a server and the link between them. `way` gives (sender, receiver)."""

    def __init__(self, client: Plug, server: Plug, link: ChaosLink) -> None:
        self.client, self.server, self.link = client, server, link
        self.way = {"up": (client, server), "down": (server, client)}

    def count(self, direction: str) -> int:
        return self.link.up if direction == "up" else self.link.down


class Bench:
    """Makes bare sockets, and the proxies between them; closes them all."""

    def __init__(self) -> None:
        self.plugs: list[Plug] = []
        self.proxies: list[ChaosProxy] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.listener.settimeout(TIMEOUT)
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def proxy(self, target: str = "", **options: Any) -> ChaosProxy:
        proxy = ChaosProxy(target or self.target, **options).start()
        self.proxies.append(proxy)
        return proxy

    def dial(self, proxy: ChaosProxy, sndbuf: int | None = None) -> Plug:
        sock = socket.socket()
        if sndbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        sock.settimeout(TIMEOUT)
        sock.connect((proxy.host, proxy.port))
        return self.keep(sock)

    def answer(self) -> Plug:
        return self.keep(self.listener.accept()[0])

    def keep(self, sock: socket.socket) -> Plug:
        plug = Plug(sock)
        self.plugs.append(plug)
        return plug

    def join(self, proxy: ChaosProxy | None = None) -> Joint:
        proxy = proxy or self.proxy()
        client = self.dial(proxy)
        server = self.answer()
        return Joint(client, server, proxy.wait_for_link(proxy.accepted))

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.stop()
        for plug in self.plugs:
            plug.close()
        self.listener.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a descriptor of a proxy, or a greenlet that it started."""
    if not LINUX:
        yield
        return
    started: list[gevent.Greenlet[..., Any]] = []

    def remember(spawned: gevent.Greenlet[..., Any]) -> None:
        run = spawned._run  # type: ignore[attr-defined]
        if getattr(run, "__module__", "") == proxy_module.__name__:
            started.append(spawned)

    gevent.sleep(0)
    before = descriptors()
    gevent.Greenlet.add_spawn_callback(remember)
    try:
        yield
    finally:
        gevent.Greenlet.remove_spawn_callback(remember)
    assert [one for one in started if not one.dead] == []
    wait_until(lambda: descriptors() <= before, 2, lambda: f"{descriptors()} to be {before}")


@pytest.fixture(autouse=True)
def _nothing_fails_unseen() -> Iterator[None]:
    """What a callback raises, gevent only prints."""
    hub = gevent.get_hub()
    failures: list[object] = []
    handle = hub.handle_error

    def record(context: object, kind: Any, error: Any, trace: Any) -> None:
        if not issubclass(kind, hub.NOT_ERROR):
            failures.append((context, error))
        handle(context, kind, error, trace)

    hub.handle_error = record  # type: ignore[method-assign]
    try:
        yield
    finally:
        del hub.handle_error
    assert failures == []


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def joint(bench: Bench) -> Joint:
    return bench.join()


both_ways = pytest.mark.parametrize("direction", ["up", "down"])
both_ends = pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])


def is_refused(proxy: ChaosProxy) -> bool:
    try:
        socket.create_connection((proxy.host, proxy.port), timeout=TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    return False


# -- without a fault --------------------------------------------------------------------------


def test_bytes_pass_both_ways_and_are_counted(bench: Bench, rng: random.Random) -> None:
    proxy = bench.proxy()
    joint = bench.join(proxy)
    up, down = rng.randbytes(3 * MB + 1), rng.randbytes(5 * MB + 7)
    senders = [
        gevent.spawn(joint.client.send, up),
        gevent.spawn(joint.server.send, down),
    ]
    readers = [
        gevent.spawn(joint.server.exactly, len(up)),
        gevent.spawn(joint.client.exactly, len(down)),
    ]
    gevent.joinall(senders + readers, timeout=TIMEOUT)
    assert readers[0].get(block=False) == up
    assert readers[1].get(block=False) == down
    assert (joint.link.up, joint.link.down) == (len(up), len(down))
    assert (proxy.accepted, proxy.links, joint.link.number) == (1, [joint.link], 0)
    assert not joint.link.is_closed


def test_what_it_says_of_itself(bench: Bench) -> None:
    proxy = ChaosProxy(bench.target)
    assert "unstarted" in repr(proxy)
    port = proxy.port  # is chosen before it listens
    assert proxy.url == f"nats://127.0.0.1:{port}"
    assert proxy.address == f"127.0.0.1:{port}"
    assert not proxy.is_listening
    assert is_refused(proxy)
    assert proxy.start() is proxy
    bench.proxies.append(proxy)
    assert proxy.is_listening
    assert proxy.port == port
    joint = bench.join(proxy)
    joint.client.send(b"abc")
    joint.server.exactly(3)
    assert f"{port} -> {bench.target} listening, 1 links" in repr(proxy)
    assert repr(joint.link) == "<ChaosLink 0 open, 3 bytes up, 0 down>"
    proxy.stop()
    assert is_refused(proxy)
    assert joint.link.is_closed
    assert "closed" in repr(joint.link)


@both_ways
def test_fin_passes_behind_the_bytes_and_the_other_way_stays(joint: Joint, direction: str) -> None:
    sender, receiver = joint.way[direction]
    sender.send(b"x" * MB)
    sender.finish()
    assert receiver.rest() == (b"x" * MB, "fin")
    receiver.send(b"still here")
    assert sender.exactly(10) == b"still here"
    assert not joint.link.is_closed
    receiver.finish()
    assert sender.rest() == (b"", "fin")
    joint.link.wait_closed(TIMEOUT)


@both_ways
def test_rst_passes_as_rst_behind_the_bytes(bench: Bench, direction: str) -> None:
    proxy = bench.proxy()
    joint = bench.join(proxy)
    sender, receiver = joint.way[direction]
    sender.send(b"x" * 1000)
    wait_until(lambda: joint.count(direction) == 1000, TIMEOUT)
    sender.reset()
    assert receiver.rest() == (b"x" * 1000, "rst")
    joint.link.wait_closed(TIMEOUT)
    assert proxy.links == []


@both_ways
def test_rst_that_only_a_send_can_see(joint: Joint, direction: str) -> None:
    """The one who left is not read, and what he did travels his way: the hole holds it."""
    left, other = joint.way[direction]
    joint.link.blackhole(direction)  # type: ignore[arg-type]
    left.send(b"last words")
    left.reset()
    other.send(b"into the void")
    assert other.is_quiet()
    assert not joint.link.is_closed
    joint.link.heal()
    assert other.rest() == (b"last words", "rst")
    joint.link.wait_closed(TIMEOUT)


def test_a_late_reset_follows_a_fin(joint: Joint) -> None:
    """The client closed, the server goes on sending: a kernel answers with RST, so do we."""
    joint.client.close()
    assert joint.server.rest() == (b"", "fin")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            joint.server.send(b"x" * 1000)
            gevent.sleep(0)
    joint.link.wait_closed(TIMEOUT)


@both_ways
def test_both_sides_are_reset_and_only_sends_can_see_it(bench: Bench, direction: str) -> None:
    joint = bench.join(bench.proxy(rcvbuf=4096))
    sender, receiver = joint.way[direction]
    wait_until(lambda: sender.fill() == 0, TIMEOUT)  # so the proxy does not read it
    sender.reset()
    receiver.send(b"hello?")
    receiver.reset()
    joint.link.wait_closed(TIMEOUT)


@pytest.mark.parametrize("late", [False, True])
def test_a_target_that_cannot_be_reached(bench: Bench, late: bool) -> None:
    dead = ReservedPort()
    try:
        proxy = bench.proxy(bench.target if late else f"127.0.0.1:{dead.port}")
        proxy.retarget(f"127.0.0.1:{dead.port}")
        for count in (1, 2):
            client = bench.dial(proxy)
            assert client.rest() == (b"", "rst")
            assert proxy.wait_for_link(count).is_closed
            assert (proxy.failed_dials, proxy.accepted, proxy.links) == (count, count, [])
    finally:
        dead.release()


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "unknown"),
        UnicodeError("label empty or too long"),  # what is no host name at all
        None,
    ],
)
def test_a_host_that_has_no_address(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def look_up(*args: object) -> list[Any]:
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(proxy_module.socket, "getaddrinfo", look_up)
    proxy = bench.proxy("nobody.invalid:4222")
    assert bench.dial(proxy).rest() == (b"", "rst")
    assert proxy.failed_dials == 1


def test_every_address_of_a_host_is_tried(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ReservedPort()
    port = int(bench.target.rpartition(":")[2])
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", dead.port)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(proxy_module.socket, "getaddrinfo", lambda *args: found)
    joint = bench.join(bench.proxy(f"nats://two.invalid:{port}"))
    joint.client.send(b"hello")
    assert joint.server.exactly(5) == b"hello"
    dead.release()


def test_a_port_that_answers_itself_is_not_reached(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP lets a socket connect to its own port, should the kernel pick it: here it must."""
    dead = ReservedPort()
    proxy = bench.proxy(f"127.0.0.1:{dead.port}")
    dead.release()
    client = bench.keep(socket.socket())

    class OwnPort(socket.socket):
        def connect(self, address: Any) -> None:
            self.bind(address)
            super().connect(address)

    monkeypatch.setattr(proxy_module.socket, "socket", OwnPort)
    client.sock.connect((proxy.host, proxy.port))
    assert client.rest() == (b"", "rst")
    assert proxy.failed_dials == 1


def test_retarget_moves_new_links_only(bench: Bench) -> None:
    with FakeServer(hold) as other:
        proxy = bench.proxy()
        first = bench.join(proxy)
        proxy.retarget(other.url)
        second = bench.dial(proxy)
        other.wait_for_client().send(b"other")
        assert second.exactly(5) == b"other"
        first.client.send(b"same")
        assert first.server.exactly(4) == b"same"


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        server = FakeServer(hold, host="::1").start()
    except OSError:
        pytest.skip("no IPv6 loopback")
    with server, ChaosProxy(server.url, host="::1") as proxy:
        assert proxy.url == f"nats://[::1]:{proxy.port}"
        assert proxy.address == f"[::1]:{proxy.port}"
        plug = Plug(socket.create_connection(("::1", proxy.port), timeout=TIMEOUT))
        server.wait_for_client().send(b"six")
        assert plug.exactly(3) == b"six"
        plug.close()


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["nats://127.0.0.1:1234", "127.0.0.1:1234", "localhost:1"])
def test_targets(target: str) -> None:
    proxy = ChaosProxy(target)
    assert proxy.auth_url == proxy.url == f"nats://127.0.0.1:{proxy.port}"
    proxy.stop()


@pytest.mark.parametrize("who", ["", "user:pass%40word@", "token@", "user:p@ssword@"])
def test_credentials_are_in_auth_url_only(who: str) -> None:
    proxy = ChaosProxy(f"nats://{who}127.0.0.1:1234/")
    assert proxy.auth_url == f"nats://{who}{proxy.address}"
    assert proxy.url == f"nats://{proxy.address}"
    assert "127.0.0.1:1234" in repr(proxy)
    assert "pass" not in repr(proxy)
    assert "token" not in repr(proxy)
    proxy.retarget("127.0.0.1:1")
    assert proxy.auth_url == proxy.url
    proxy.stop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "nats://host",
        "nats://u:secret@host",
        "nats://u:secret@host:",
        "host:0",
        "host:65536",
        "host:12345678",
        "host:+1",
        "host: 1",
        "::1:4222",
        "nats://[::1]",
        "nats://a:1,nats://u:secret@b:2",
        "a:1,b:2",
        "tls://u:secret@host:1",
        "http://u:secret@host:1",
        "nats://host:1/path",
        "nats://u:secret@",
    ],
)
def test_bad_targets_are_named_and_no_password_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"^target: ") as failure:
        ChaosProxy(text)
    assert "secret" not in str(failure.value)
    proxy = ChaosProxy("host:1")
    with pytest.raises(ValueError, match=r"^url: ") as failure:
        proxy.retarget(text)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("kind", [None, 4222, b"host:1", ("host", 1)])
def test_targets_of_another_type(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^target: .*a str"):
        ChaosProxy(kind)
    with pytest.raises(TypeError, match=r"^url: .*a str"):
        ChaosProxy("host:1").retarget(kind)


BAD_CALLS: list[tuple[str, type[Exception], Callable[[Any], object]]] = [
    ("direction", ValueError, lambda f: f.blackhole("sideways")),
    ("direction", ValueError, lambda f: f.blackhole(None)),
    ("direction", ValueError, lambda f: f.swallow("UP")),
    ("direction", ValueError, lambda f: f.delay(1, "client")),
    ("direction", ValueError, lambda f: f.throttle(1, "client")),
    ("direction", ValueError, lambda f: f.cut_after(1, "client")),
    ("direction", ValueError, lambda f: f.corrupt(1, "client")),
    ("side", ValueError, lambda f: f.finish("up")),
    ("side", ValueError, lambda f: f.reset(0)),
    ("bytes_per_second", ValueError, lambda f: f.throttle(0)),
    ("bytes_per_second", ValueError, lambda f: f.throttle(float("nan"))),
    ("bytes_per_second", ValueError, lambda f: f.throttle(float("inf"))),
    ("bytes_per_second", TypeError, lambda f: f.throttle("1")),
    ("bytes_per_second", TypeError, lambda f: f.throttle(True)),
    ("seconds", ValueError, lambda f: f.delay(-1)),
    ("seconds", ValueError, lambda f: f.delay(float("nan"))),
    ("seconds", TypeError, lambda f: f.delay(None)),
    ("count", ValueError, lambda f: f.cut_after(-1)),
    ("count", TypeError, lambda f: f.cut_after(1.5)),
    ("count", TypeError, lambda f: f.cut_after(True)),
    ("after", ValueError, lambda f: f.corrupt(-1)),
    ("after", TypeError, lambda f: f.corrupt("1")),
    ("mask", ValueError, lambda f: f.corrupt(0, mask=0)),
    ("mask", ValueError, lambda f: f.corrupt(0, mask=256)),
    ("mask", TypeError, lambda f: f.corrupt(0, mask=None)),
    ("stage", ValueError, lambda f: f.stall_handshake("ping")),
    ("stage", ValueError, lambda f: f.cut_handshake(None)),
]


@pytest.mark.parametrize(("name", "kind", "call"), BAD_CALLS)
def test_bad_arguments_are_named_also_without_a_link(
    joint: Joint, name: str, kind: type[Exception], call: Callable[[Any], object]
) -> None:
    for faulty in (joint.link, ChaosProxy("host:1")):
        with pytest.raises(kind, match=f"^{name}: "):
            call(faulty)
    joint.client.send(b"unharmed")
    assert joint.server.exactly(8) == b"unharmed"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"host": ""}, ValueError),
        ({"host": None}, ValueError),
        ({"port": -1}, ValueError),
        ({"port": 65536}, ValueError),
        ({"port": "1"}, TypeError),
        ({"rcvbuf": 1.5}, TypeError),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(kind, match=f"^{name}: "):
        ChaosProxy("host:1", **options)


def test_a_port_that_is_taken(bench: Bench) -> None:
    taken = int(bench.target.rpartition(":")[2])
    proxy = ChaosProxy(bench.target, port=taken)
    with pytest.raises(OSError):
        proxy.start()
    assert not proxy.is_listening
    proxy.stop()


# -- ending a link ----------------------------------------------------------------------------


def test_finish_is_a_fin_for_both_and_no_reset_follows(bench: Bench) -> None:
    proxy = bench.proxy()
    joint = bench.join(proxy)
    # Bytes lie unread in both sockets of the proxy: a mere close would say RST.
    joint.link.blackhole()
    joint.client.send(b"x" * 1000)
    joint.server.send(b"y" * 1000)
    proxy.finish()
    assert joint.link.is_closed
    assert proxy.links == []
    assert joint.client.rest() == (b"", "fin")
    assert joint.server.rest() == (b"", "fin")
    for plug in (joint.client, joint.server):
        for _ in range(20):
            plug.send(b"z" * 100_000)
            gevent.sleep(0)
        plug.finish()


@pytest.mark.parametrize("command", ["finish", "reset"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_one_side_alone(joint: Joint, command: str, side: str) -> None:
    told, other = (joint.client, joint.server)[:: 1 if side == "client" else -1]
    other.send(b"under way?")
    getattr(joint.link, command)(side)
    data, how = told.rest()
    assert how == ("fin" if command == "finish" else "rst")
    assert data in (b"", b"under way?")
    assert other.is_quiet()
    assert not joint.link.is_closed
    joint.link.heal()
    assert other.rest() == (b"", "rst")
    assert joint.link.is_closed


def test_reset_of_both_sides(bench: Bench) -> None:
    proxy = bench.proxy()
    joints = [bench.join(proxy) for _ in range(3)]
    joints[1].link.reset()
    assert joints[1].link.is_closed
    assert proxy.links == [joints[0].link, joints[2].link]
    assert joints[1].client.rest() == joints[1].server.rest() == (b"", "rst")
    for joint in joints[::2]:
        joint.client.send(b"alive")
        assert joint.server.exactly(5) == b"alive"
    proxy.reset()
    for joint in joints[::2]:
        assert joint.client.rest() == joint.server.rest() == (b"", "rst")
    assert proxy.links == []
    proxy.reset()


def test_half_open(bench: Bench) -> None:
    proxy = bench.proxy(rcvbuf=4096)
    joint = bench.join(proxy)
    proxy.half_open()
    assert joint.server.rest() == (b"", "fin")
    assert 0 < joint.client.fill() < 50 * MB  # its kernel fills, as nobody acknowledges
    assert joint.client.is_quiet()
    assert proxy.links == [joint.link]
    proxy.heal()
    assert joint.client.rest() == (b"", "rst")
    assert proxy.links == []


def test_a_torn_link_can_still_be_ended(joint: Joint) -> None:
    joint.link.half_open()
    joint.link.blackhole()
    joint.link.cut_after(5)
    joint.link.finish()
    assert joint.link.is_closed
    assert joint.client.rest() == (b"", "fin")


def test_commands_to_a_link_that_has_ended(joint: Joint) -> None:
    joint.link.reset()
    link = joint.link
    for _ in range(2):
        link.finish()
        link.reset()
        link.half_open()
        link.blackhole()
        link.swallow()
        link.throttle(1)
        link.delay(1)
        link.corrupt(0)
        link.cut_after(0)
        link.heal()
        assert link.is_closed


# -- cutting after so many bytes --------------------------------------------------------------


@both_ways
@both_ends
@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 300_000])
def test_cut_after_exactly_so_many_bytes(
    joint: Joint, direction: str, reset: bool, count: int, rng: random.Random
) -> None:
    sender, receiver = joint.way[direction]
    sender.send(b"before" * 100)
    assert receiver.exactly(600)
    joint.link.cut_after(count, direction, reset=reset)  # type: ignore[arg-type]
    data = rng.randbytes(count + 1000)
    try:
        sender.send(data)
    except (ConnectionResetError, BrokenPipeError):
        assert reset  # the news comes once
    else:
        assert sender.rest() == (b"", "rst" if reset else "fin")
    assert receiver.rest() == (data[:count], "rst" if reset else "fin")
    joint.link.wait_closed(TIMEOUT)
    assert joint.count(direction) == 600 + count


@both_ways
@both_ends
def test_cut_after_does_not_wait_for_another_byte(
    joint: Joint, direction: str, reset: bool
) -> None:
    sender, receiver = joint.way[direction]
    joint.link.cut_after(4, direction, reset)  # type: ignore[arg-type]
    sender.send(b"four")
    assert receiver.rest() == (b"four", "rst" if reset else "fin")


@both_ends
def test_cut_after_reaches_a_receiver_that_reads_late(bench: Bench, reset: bool) -> None:
    """An RST would discard what the receiver's kernel has no room for: it waits."""
    proxy = bench.proxy()
    joint = bench.join(proxy)
    joint.client.fill()
    count = joint.link.up + 100_000
    assert count > 2 * MB  # more than the receiver's kernel has taken
    proxy.cut_after(100_000, reset=reset)
    reading = gevent.spawn(joint.server.rest)
    assert joint.client.rest() == (b"", "rst" if reset else "fin")
    data, how = reading.get(timeout=TIMEOUT)
    assert (len(data), how) == (count, "rst" if reset else "fin")


@both_ways
def test_an_end_that_waits_can_be_overtaken(bench: Bench, direction: str) -> None:
    """Nobody reads, so the cut by RST cannot be delivered; a command still ends the link."""
    proxy = bench.proxy(rcvbuf=4096)
    joint = bench.join(proxy)
    sender, receiver = joint.way[direction]
    wait_until(lambda: sender.fill() == 0, TIMEOUT)
    joint.link.cut_after(0, direction, reset=True)  # type: ignore[arg-type]
    assert sender.rest() == (b"", "rst")  # this side has nothing to wait for
    assert not joint.link.is_closed
    assert proxy.links == [joint.link]
    joint.link.heal()  # it is lost all the same
    joint.link.blackhole()
    assert not joint.link.is_closed
    joint.link.reset()
    assert joint.link.is_closed
    receiver.close()


# -- holes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", ["up", "down", "both"])
def test_a_blackhole_holds_and_heal_lets_go(joint: Joint, hole: str) -> None:
    joint.link.blackhole(hole)  # type: ignore[arg-type]
    counts = (joint.link.up, joint.link.down)
    for direction in ("up", "down"):
        sender, receiver = joint.way[direction]
        sender.send(direction.encode())
        if hole in (direction, "both"):
            assert receiver.is_quiet()
        else:
            assert receiver.exactly(len(direction)) == direction.encode()
    if hole == "both":
        assert (joint.link.up, joint.link.down) == counts
    joint.link.heal()
    for direction in ("up", "down"):
        sender, receiver = joint.way[direction]
        sender.send(b"!")
        expected = b"!" if hole not in (direction, "both") else direction.encode() + b"!"
        assert receiver.exactly(len(expected)) == expected


@both_ways
def test_a_blackhole_stops_at_once_also_with_bytes_at_hand(
    bench: Bench, direction: str, rng: random.Random
) -> None:
    """In the middle of a flood that backs up: not one byte is forwarded behind the command."""
    joint = bench.join(bench.proxy(rcvbuf=65536))
    sender, receiver = joint.way[direction]
    data = rng.randbytes(8 * MB)
    sending = gevent.spawn(sender.send, data)
    got = bytearray()
    for _ in range(20):
        got += receiver.exactly(100_000)
        joint.link.blackhole()
        forwarded = joint.count(direction)
        for _ in range(5):
            gevent.sleep(0)
        assert joint.count(direction) == forwarded
        assert not joint.link.is_closed
        joint.link.heal()
    got += receiver.exactly(len(data) - len(got))
    assert got == data
    sending.get(timeout=TIMEOUT)


def test_the_senders_kernel_fills(bench: Bench) -> None:
    proxy = bench.proxy(rcvbuf=4096)
    joint = bench.join(proxy)
    proxy.blackhole("up")
    client = joint.client
    sent = client.fill()
    assert 0 < sent < 50 * MB
    assert joint.link.up == 0
    proxy.heal()
    assert len(joint.server.exactly(sent)) == sent
    client.send(b"and on")
    assert joint.server.exactly(6) == b"and on"


@both_ways
@both_ends
def test_a_hole_hides_an_end(joint: Joint, direction: str, reset: bool) -> None:
    leaver, other = joint.way[direction]
    joint.link.blackhole()
    leaver.send(b"last words")
    if reset:
        leaver.reset()
    else:
        leaver.close()
    assert other.is_quiet()
    other.send(b"hello?")
    assert not joint.link.is_closed
    joint.link.heal()
    data, how = other.rest()
    assert data == b"last words"
    # A closed socket that is sent to says RST, as a kernel does.
    assert how in (["rst"] if reset else ["fin", "rst"])
    other.close()
    joint.link.wait_closed(TIMEOUT)


@pytest.mark.parametrize("side", ["up", "down"])
def test_a_hole_one_way_lets_the_other_end_pass(joint: Joint, side: str) -> None:
    sender, receiver = joint.way[side]
    joint.link.blackhole("down" if side == "up" else "up")
    sender.send(b"bye")
    sender.finish()
    assert receiver.rest() == (b"bye", "fin")
    receiver.send(b"held")
    receiver.close()
    assert sender.is_quiet()
    joint.link.heal()
    assert sender.rest() == (b"held", "fin")


@both_ways
def test_swallow_takes_everything_and_heal_resets(bench: Bench, direction: str) -> None:
    proxy = bench.proxy()
    joint = bench.join(proxy)
    sender, receiver = joint.way[direction]
    sender.send(b"seen")
    assert receiver.exactly(4) == b"seen"
    joint.link.swallow(direction)  # type: ignore[arg-type]
    sender.send(bytes(30 * MB))  # far more than kernels keep
    wait_until(lambda: joint.link.swallowed == 30 * MB, TIMEOUT)
    assert receiver.is_quiet()
    receiver.send(b"the other way")
    assert sender.exactly(13) == b"the other way"
    joint.link.blackhole()
    assert joint.count(direction) == 4
    joint.link.heal()
    assert joint.link.is_closed
    assert sender.rest() == receiver.rest() == (b"", "rst")


def test_swallow_throws_away_what_is_at_hand(joint: Joint) -> None:
    joint.link.delay(1000, "up")
    joint.client.send(b"at hand")
    wait_until(lambda: joint.link._flow["up"]._held == 7, TIMEOUT)
    joint.link.swallow("up")
    assert joint.link.swallowed == 7
    joint.link.heal()
    assert joint.server.rest() == (b"", "rst")


@both_ends
def test_nothing_swallowed_nothing_lost(joint: Joint, reset: bool) -> None:
    joint.link.swallow()
    joint.link.heal()
    joint.client.send(b"fine")
    assert joint.server.exactly(4) == b"fine"
    joint.link.swallow()
    if reset:
        joint.client.reset()
    else:
        joint.client.finish()
    assert joint.server.is_quiet()
    joint.link.heal()
    assert joint.server.rest() == (b"", "rst" if reset else "fin")


# -- slow links -------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(("rate", "size"), [(20, 10), (1000, 400), (1e6, 400_000)])
def test_throttle(joint: Joint, direction: str, rate: float, size: int) -> None:
    sender, receiver = joint.way[direction]
    joint.link.throttle(rate, direction)  # type: ignore[arg-type]
    began = monotonic()
    sending = gevent.spawn(sender.send, b"x" * size)
    assert receiver.exactly(size)
    took = monotonic() - began
    # The first step is free, and so is one that came late.
    assert took >= size / rate - 0.03 - 1 / rate
    assert took < size / rate + 5
    sending.get(timeout=TIMEOUT)
    receiver.send(b"y" * MB)  # the other way is as fast as ever
    assert sender.exactly(MB)
    joint.link.throttle(None, direction)  # type: ignore[arg-type]
    sender.send(b"x" * MB)
    assert receiver.exactly(MB)


def test_a_throttled_flow_advances_evenly(joint: Joint) -> None:
    joint.link.throttle(100_000, "up")
    joint.client.send(b"x" * 40_000)
    began = monotonic()
    while (forwarded := joint.link.up) < 40_000:
        # A step of 10 ms is 1000 bytes, and one more may be made good.
        assert forwarded <= (monotonic() - began) * 100_000 + 2500
        gevent.sleep(0.002)
    assert joint.server.exactly(40_000)


@both_ways
def test_delay_brings_bytes_and_the_end_later_in_order(joint: Joint, direction: str) -> None:
    sender, receiver = joint.way[direction]
    joint.link.delay(0.2, direction)  # type: ignore[arg-type]
    sent = []
    for index in range(10):
        sent.append(monotonic())
        sender.send(b"%d" % index)
        gevent.sleep(0.01)
    sender.finish()
    ended = monotonic()
    for index in range(10):
        assert receiver.exactly(1) == b"%d" % index
        assert monotonic() - sent[index] >= 0.2
    assert receiver.rest() == (b"", "fin")
    assert monotonic() - ended >= 0.19  # the FIN was sent before the clock was read


@both_ways
def test_delay_of_one_way(joint: Joint, direction: str) -> None:
    sender, receiver = joint.way[direction]
    joint.link.delay(1000, direction)  # type: ignore[arg-type]
    sender.send(b"in a while")
    receiver.send(b"at once")
    assert sender.exactly(7) == b"at once"
    assert receiver.is_quiet()
    joint.link.delay(0, direction)  # type: ignore[arg-type]
    assert receiver.exactly(10) == b"in a while"


def test_delay_of_a_reset(joint: Joint) -> None:
    joint.link.delay(0.2, "up")
    joint.client.send(b"bye")
    began = monotonic()
    joint.client.reset()
    assert joint.server.rest() == (b"bye", "rst")
    assert monotonic() - began >= 0.19


def test_delay_does_not_reduce_the_throughput(joint: Joint, rng: random.Random) -> None:
    joint.link.delay(0.3)
    data = rng.randbytes(8 * MB)
    began = monotonic()
    sending = gevent.spawn(joint.client.send, data)
    assert joint.server.exactly(1) == data[:1]
    assert monotonic() - began >= 0.3
    sending.get(timeout=TIMEOUT)
    assert joint.server.exactly(len(data) - 1) == data[1:]
    assert monotonic() - began < 10  # with one chunk per 0.3 s, it would take 19


def test_a_delay_keeps_so_much_and_then_presses_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "DELAY_LIMIT", 100_000)
    joint = bench.join(bench.proxy(rcvbuf=4096))
    joint.link.delay(1000, "up")
    sent = joint.client.fill()
    held = joint.link._flow["up"]._held
    assert 100_000 <= held < 100_000 + proxy_module._CHUNK
    assert sent < 50 * MB
    joint.link.delay(0, "up")  # a change counts for what is under way
    assert len(joint.server.exactly(sent)) == sent


def test_a_delay_keeps_so_many_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "_DELAY_PIECES", 5)
    joint = bench.join()
    joint.link.delay(1000, "down")
    for index in range(10):
        joint.server.send(b"%d" % index)
        gevent.sleep(0.001)
    wait_until(lambda: len(joint.link._flow["down"]._pieces) == 5, TIMEOUT)
    joint.link.heal()
    assert joint.client.exactly(10) == b"0123456789"


# -- wrong bytes ------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_corrupt_flips_exactly_that_byte(
    joint: Joint, direction: str, mask: int, rng: random.Random
) -> None:
    sender, receiver = joint.way[direction]
    data = bytearray(rng.randbytes(500_000))
    sender.send(b"before")
    receiver.exactly(6)
    spots = [0, 1, 7, 4095, 130_000, 131_071, 131_072, 499_999]
    for after in spots:
        joint.link.corrupt(after, direction, mask)  # type: ignore[arg-type]
    sending = gevent.spawn(sender.send, bytes(data))
    got = receiver.exactly(len(data))
    for after in spots:
        data[after] ^= mask
    assert got == data
    sending.get(timeout=TIMEOUT)
    sender.send(b"sound again")
    assert receiver.exactly(11) == b"sound again"


def test_faults_work_together(joint: Joint) -> None:
    joint.link.delay(0.1, "up")
    joint.link.throttle(10_000, "up")
    joint.link.corrupt(3, "up", 0x20)
    joint.link.cut_after(1000, "up", reset=True)
    began = monotonic()
    joint.client.send(b"abcdefghij" * 200)
    data, how = joint.server.rest()
    assert monotonic() - began >= 0.1 + 0.1 - 0.03
    assert (data, how) == (b"abcDefghij" + b"abcdefghij" * 99, "rst")


def test_heal_undoes_what_has_not_happened_yet(joint: Joint) -> None:
    joint.link.cut_after(10)
    joint.link.cut_after(10, "down", reset=True)
    joint.link.corrupt(5, "both")
    joint.link.throttle(1)
    joint.link.delay(1000)
    joint.link.heal()
    for sender, receiver in joint.way.values():
        sender.send(b"x" * MB)
        assert receiver.exactly(MB) == b"x" * MB


# -- new links --------------------------------------------------------------------------------


def test_refuse_and_heal(bench: Bench) -> None:
    proxy = bench.proxy()
    port = proxy.port
    joint = bench.join(proxy)
    for _ in range(3):
        proxy.refuse()
        proxy.refuse()
        assert not proxy.is_listening
        assert is_refused(proxy)
        assert proxy.port == port
        joint.client.send(b"alive")
        assert joint.server.exactly(5) == b"alive"
        proxy.heal()
        assert proxy.is_listening
        joint = bench.join(proxy)
        proxy.refuse()
        proxy.listen()
        proxy.listen()
        joint = bench.join(proxy)


@pytest.mark.skipif(not LINUX, reason="ports are held on Linux only")
def test_a_refusing_proxy_keeps_its_port(bench: Bench) -> None:
    proxy = bench.proxy()
    proxy.refuse()
    stranger = socket.socket()
    with pytest.raises(OSError):
        stranger.bind((proxy.host, proxy.port))
    stranger.close()


def test_heal_does_not_start_a_stopped_proxy(bench: Bench) -> None:
    proxy = bench.proxy()
    bench.join(proxy)
    proxy.stop()
    proxy.heal()
    assert not proxy.is_listening
    proxy.start()
    bench.join(proxy)
    assert proxy.accepted == 2


def test_on_link_comes_before_the_first_byte(bench: Bench) -> None:
    proxy = bench.proxy()
    seen: list[tuple[int, int, int]] = []

    @proxy.on_link
    def hurt(link: ChaosLink) -> None:
        seen.append((link.number, link.up, link.down))
        link.corrupt(0, "both", mask=0x20)
        link.cut_after(3, "up")

    for number in range(3):
        client = bench.dial(proxy)
        client.send(b"abcdef")
        server = bench.answer()
        assert server.rest() == (b"Abc", "fin")
        assert proxy.wait_for_link(number + 1).number == number
    assert seen == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert callable(hurt)
    assert proxy.on_link(None) is None
    joint = bench.join(proxy)
    joint.client.send(b"abcdef")
    assert joint.server.exactly(6) == b"abcdef"
    with pytest.raises(TypeError, match=r"^callback: "):
        proxy.on_link("x")  # type: ignore[arg-type]


def test_the_last_rule_counts(bench: Bench) -> None:
    proxy = bench.proxy()
    proxy.on_link(lambda link: link.reset())
    proxy.silent()
    proxy.cut_handshake("accept")
    client = bench.dial(proxy)
    assert client.rest() == (b"", "fin")
    proxy.heal()
    bench.join(proxy)


def test_a_rule_may_wait_and_others_do_not_wait_for_it(bench: Bench) -> None:
    proxy = bench.proxy()
    gate = gevent.event.Event()
    proxy.on_link(lambda link: gate.wait(TIMEOUT) if link.number == 0 else None)
    first = bench.dial(proxy)
    first.send(b"1")
    second = bench.dial(proxy)
    second.send(b"2")
    assert bench.answer().exactly(1) == b"2"
    with pytest.raises(AssertionError, match=r"link 1 through <ChaosProxy .*; 2 came"):
        proxy.wait_for_link(timeout=0.01)
    gate.set()
    assert bench.answer().exactly(1) == b"1"
    proxy.wait_for_link()


def test_a_rule_that_fails_is_not_lost(bench: Bench) -> None:
    def wrong(link: ChaosLink) -> None:
        raise KeyError("a slip")

    with pytest.raises(AssertionError, match="an on_link callback of the proxy failed: KeyError"):
        with ChaosProxy(bench.target) as proxy:
            proxy.on_link(wrong)
            assert bench.dial(proxy).rest() == (b"", "rst")
    assert [type(error) for error in proxy.errors] == [KeyError]
    with pytest.raises(ZeroDivisionError), ChaosProxy(bench.target) as proxy:
        proxy.on_link(wrong)
        bench.dial(proxy).rest()
        raise ZeroDivisionError


def test_a_link_can_be_ended_before_it_is_dialled(bench: Bench) -> None:
    proxy = bench.proxy()
    for fault, end in [
        (lambda link: link.finish(), "fin"),
        (lambda link: link.reset(), "rst"),
        (lambda link: link.cut_after(0), "fin"),
        (lambda link: link.cut_after(0, "down", reset=True), "rst"),
    ]:
        proxy.on_link(fault)
        assert bench.dial(proxy).rest() == (b"", end)
        assert proxy.wait_for_link(proxy.accepted).is_closed
    proxy.on_link(lambda link: link.half_open())
    client = bench.dial(proxy)
    link = proxy.wait_for_link(5)
    assert client.is_quiet()
    assert not link.is_closed
    proxy.heal()
    assert client.rest() == (b"", "rst")
    bench.listener.settimeout(QUIET)
    with pytest.raises(socket.timeout):
        bench.listener.accept()


def test_commands_while_the_target_is_dialled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gevent.event.Event()
    dialled = []
    connect = proxy_module._connect

    def slow(*args: Any) -> Any:
        sock = connect(*args)
        dialled.append(sock)
        gate.wait(TIMEOUT)
        return sock

    monkeypatch.setattr(proxy_module, "_connect", slow)
    proxy = bench.proxy()
    clients = [bench.dial(proxy) for _ in range(3)]
    wait_until(lambda: len(dialled) == 3, TIMEOUT)
    servers = [bench.answer() for _ in range(3)]
    ended, held, healed = proxy.links
    ended.reset()
    held.blackhole()
    healed.blackhole()
    healed.heal()
    for client in clients[1:]:
        client.send(b"x")
    gate.set()
    assert clients[0].rest() == (b"", "rst")
    assert servers[0].rest()[0] == b""
    assert servers[2].exactly(1) == b"x"
    assert servers[1].is_quiet()
    held.heal()
    assert servers[1].exactly(1) == b"x"


def test_silent(bench: Bench) -> None:
    proxy = bench.proxy()
    proxy.silent()
    client = bench.dial(proxy)
    client.send(b"anybody?")
    link = proxy.wait_for_link()
    assert client.is_quiet()
    bench.listener.settimeout(QUIET)
    with pytest.raises(socket.timeout):
        bench.listener.accept()
    bench.listener.settimeout(TIMEOUT)
    assert proxy.links == [link]
    gone = bench.dial(proxy)
    proxy.wait_for_link(2).finish()
    assert gone.rest() == (b"", "fin")
    proxy.heal()
    server = bench.answer()
    assert server.exactly(8) == b"anybody?"
    server.send(b"yes")
    assert client.exactly(3) == b"yes"


def test_silent_and_healed_in_the_same_rule(bench: Bench) -> None:
    proxy = bench.proxy()

    def hesitate(link: ChaosLink) -> None:
        link.silent()
        link.heal()

    proxy.on_link(hesitate)
    joint = bench.join(proxy)
    joint.client.send(b"x")
    assert joint.server.exactly(1) == b"x"


@pytest.mark.parametrize("call", ["silent", "stall_handshake", "cut_handshake"])
def test_a_handshake_cannot_be_hurt_later(joint: Joint, call: str) -> None:
    with pytest.raises(RuntimeError, match="on_link callback only"):
        getattr(joint.link, call)(*(["info"] if "_" in call else []))


# -- the stages of a handshake ----------------------------------------------------------------


def greeting(server: FakeServer) -> bytes:
    """The INFO line that *server* sends to its first client, whoever that is."""
    plug = Plug(socket.create_connection((server.host, server.port), timeout=TIMEOUT))
    line = bytearray()
    while not line.endswith(b"\n"):
        line += plug.exactly(1)
    plug.close()
    return bytes(line)


STAGES = ["accept", "info", "connect", "pong"]


def seen_at(stage: str, info: bytes) -> tuple[bytes, bytes]:
    """What the client and the server see of a handshake that stops at *stage*."""
    half = info[: (len(info) + 1) // 2]
    return {
        "accept": (b"", b""),
        "info": (half, HELLO),  # this client does not wait for INFO
        "connect": (info, b""),
        "pong": (info, HELLO),
    }[stage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pieces", [False, True])
def test_stall_handshake(bench: Bench, stage: Any, pieces: bool) -> None:
    info = b'INFO {"server_id":"X","max_payload":1048576}\r\n'
    proxy = bench.proxy()
    proxy.stall_handshake(stage)
    joint = bench.join(proxy)
    if pieces and stage != "info":
        for index in range(len(info)):
            joint.server.send(info[index : index + 1])
            gevent.sleep(0)
    else:
        joint.server.send(info)
    for_client, for_server = seen_at(stage, info)
    assert joint.client.exactly(len(for_client)) == for_client
    joint.client.send(HELLO)
    assert joint.server.exactly(len(for_server)) == for_server
    joint.server.send(b"PONG\r\n")
    assert joint.client.is_quiet()
    assert joint.server.is_quiet()
    assert (joint.link.down, joint.link.up) == (len(for_client), len(for_server))
    proxy.heal()
    rest = (info + b"PONG\r\n")[len(for_client) :]
    assert joint.client.exactly(len(rest)) == rest
    rest = HELLO[len(for_server) :]
    assert joint.server.exactly(len(rest)) == rest
    bench.join(proxy)


def test_half_an_info_that_comes_in_pieces(bench: Bench) -> None:
    """Half of the first piece then: less than the line, and not nothing."""
    proxy = bench.proxy()
    proxy.stall_handshake("info")
    joint = bench.join(proxy)
    joint.server.send(b"INFO {")
    assert joint.client.exactly(3) == b"INF"
    joint.server.send(b"}\r\n")
    assert joint.client.is_quiet()


@pytest.mark.parametrize("stage", STAGES)
@both_ends
def test_cut_handshake(bench: Bench, stage: Any, reset: bool) -> None:
    how = "rst" if reset else "fin"
    with FakeServer(strict=False) as server:
        info = greeting(server)
        proxy = bench.proxy(server.url)
        proxy.cut_handshake(stage, reset=reset)
        client = bench.dial(proxy)
        if stage in ("connect", "pong"):
            # Who speaks in the middle of a handshake has read INFO.
            got = client.exactly(len(info))
            client.send(HELLO)
        else:
            got = b""
        data, end = client.rest()
        got = re.sub(rb'"client_id": \d+', b'"client_id": 1', got + data)
        assert (got, end) == (seen_at(stage, info)[0], how)
        link = proxy.wait_for_link()
        link.wait_closed(TIMEOUT)
        if stage == "accept":
            assert len(server.clients) == 1  # our own greeting
        else:
            fake = server.wait_for_client(2)
            fake.wait_closed(TIMEOUT)
            assert fake.received == (HELLO if stage == "pong" else b"")
        proxy.heal()
        client = bench.dial(proxy)
        client.exactly(len(info))
        client.send(HELLO)
        assert client.exactly(6) == b"PONG\r\n"


def test_each_link_its_own_stage(bench: Bench) -> None:
    """As a test author would say it: the first three fail, each in its own way, then it works."""
    with FakeServer(strict=False) as server:
        proxy = bench.proxy(server.url)

        @proxy.on_link
        def hurt(link: ChaosLink) -> None:
            if link.number < 3:
                link.cut_handshake(["info", "connect", "pong"][link.number])  # type: ignore[arg-type]

        with gnats.connect(proxy.url, retry_on_failed_connect=True, **FAST) as conn:
            assert conn.wait_for_status("connected", TIMEOUT)
            assert proxy.accepted == 4
            assert conn.stats.attempts == 4


# -- its own life -----------------------------------------------------------------------------


def test_no_command_switches(bench: Bench) -> None:
    """In the hub nothing can switch: gevent would raise there."""
    proxy = bench.proxy()
    joints = [bench.join(proxy) for _ in range(16)]
    done: list[object] = []

    def all_commands() -> None:
        try:
            links = iter([joint.link for joint in joints])
            next(links).finish()
            next(links).reset()
            next(links).finish("client")
            next(links).reset("server")
            next(links).half_open()
            next(links).blackhole()
            next(links).swallow()
            next(links).throttle(10)
            next(links).delay(1)
            next(links).cut_after(0)
            next(links).cut_after(0, reset=True)
            next(links).corrupt(0)
            next(links).heal()
            proxy.silent()
            proxy.stall_handshake("info")
            proxy.cut_handshake("info")
            proxy.on_link(None)
            proxy.retarget(bench.target)
            proxy.refuse()
            proxy.listen()
            proxy.refuse()
            proxy.heal()
            proxy.check()
            done.append(proxy.links)
        except BaseException as exc:
            done.append(exc)

    gevent.get_hub().loop.run_callback(all_commands)
    wait_until(lambda: done, TIMEOUT)
    assert isinstance(done[0], list), done[0]
    bench.join(proxy)


def test_stop_leaves_nothing_whatever_the_links_were_doing(bench: Bench) -> None:
    proxy = bench.proxy()
    before = descriptors() if LINUX else 0
    joints = [bench.join(proxy) for _ in range(12)]
    links = [joint.link for joint in joints]
    links[0].finish()
    links[1].reset()
    links[2].half_open()
    links[3].blackhole()
    links[4].swallow()
    links[5].throttle(1)
    links[6].delay(100)
    links[7].reset("client")
    for joint in joints:
        if joint.link not in (links[0], links[1], links[2], links[7]):
            joint.client.fill(MB)
            joint.server.fill(MB)
    links[8].cut_after(0, "up", reset=True)
    joints[9].client.close()
    proxy.silent()
    silent = bench.dial(proxy)
    gate = gevent.event.Event()
    proxy.on_link(lambda link: gate.wait())
    waiting = bench.dial(proxy)
    wait_until(lambda: proxy.accepted == 14, TIMEOUT)
    proxy.stop()
    assert proxy.links == []
    assert all(link.is_closed for link in links)
    for plug in (silent, waiting, *(joint.client for joint in joints[:9])):
        plug.close()
    for joint in joints:
        joint.client.close()
        joint.server.close()
    if LINUX:
        wait_until(lambda: descriptors() < before, 2, "its listener and port, too")
    proxy.stop()


@pytest.mark.parametrize("leave", ["stay", "half", "close", "reset"])
def test_an_idle_proxy_costs_nothing(bench: Bench, leave: str) -> None:
    """A callback that comes again and again is not seen in the bytes, only in the time it takes."""
    proxy = bench.proxy(rcvbuf=4096)
    faults: list[Callable[[Any], object]] = [
        lambda link: None,
        lambda link: link.blackhole("up"),
        lambda link: link.blackhole("down"),
        lambda link: link.swallow(),
        lambda link: link.half_open(),
        lambda link: link.finish("client"),
        lambda link: link.finish(),
        lambda link: link.delay(1000),
        lambda link: link.throttle(1),
    ]
    for fault in faults:
        for direction in ("up", "down"):
            joint = bench.join(proxy)
            sender, receiver = joint.way[direction]
            fault(joint.link)
            with contextlib.suppress(ConnectionError):
                sender.send(b"x" * 1000)
                receiver.send(b"y" * 1000)
                if leave == "half":
                    sender.finish()
            if leave == "close":
                sender.close()
            elif leave == "reset":
                sender.reset()
    full = bench.join(proxy)
    full.client.fill()
    full.link.cut_after(0, reset=True)
    began = time.process_time()
    gevent.sleep(0.2)
    assert time.process_time() - began < 0.1


def test_stop_closes_links_that_are_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have ended by FIN, and their clients have not closed: the sockets are still there."""
    monkeypatch.setattr(proxy_module, "_REMEMBERED", 2)
    proxy = bench.proxy()
    joints = [bench.join(proxy) for _ in range(8)]
    for joint in joints:
        joint.link.finish()
    before = descriptors() if LINUX else 0
    assert len(proxy._parting) == 8
    joints[0].client.close()
    joints[0].server.close()
    wait_until(lambda: not joints[0].link._has_sockets, TIMEOUT)
    bench.join(proxy).link.reset()
    assert len(proxy._parting) == 7
    proxy.stop()
    for joint in joints:
        joint.client.close()
        joint.server.close()
    if LINUX:
        # 16 ends of the test's, 16 of the links, its listener and its port; two ends came later.
        wait_until(lambda: descriptors() <= before + 2 - 34, 2, "all sockets to go")


def test_a_rule_may_stop_the_proxy(bench: Bench) -> None:
    proxy = bench.proxy()
    proxy.on_link(lambda link: proxy.stop())
    assert bench.dial(proxy).rest()[0] == b""
    wait_until(lambda: not proxy._openers, TIMEOUT)
    assert not proxy.is_listening


def test_without_descriptors_it_waits_for_one(bench: Bench) -> None:
    proxy = bench.proxy()
    sock = proxy._listener._sock  # type: ignore[union-attr]
    fails = [OSError(24, "Too many open files")] * 2

    class Poor:
        def accept(self) -> Any:
            if fails:
                raise fails.pop()
            return sock.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

    proxy._listener._sock = Poor()  # type: ignore[union-attr, assignment]
    joint = bench.join(proxy)
    assert not fails
    joint.client.send(b"x")
    assert joint.server.exactly(1) == b"x"


def test_waits_are_bounded(bench: Bench) -> None:
    proxy = bench.proxy()
    with pytest.raises(AssertionError, match=r"link 1 through .*; 0 came"):
        proxy.wait_for_link(timeout=0.01)
    joint = bench.join(proxy)
    with pytest.raises(AssertionError, match="the end of <ChaosLink 0"):
        joint.link.wait_closed(timeout=0.01)


def test_many_links_with_faults_that_lose_nothing(bench: Bench, rng: random.Random) -> None:
    """Holes, brakes and delays come and go at random; every byte arrives, in order."""
    proxy = bench.proxy(rcvbuf=65536)
    joints = [bench.join(proxy) for _ in range(8)]
    data = {
        (joint, way): rng.randbytes(rng.randrange(MB)) for joint in joints for way in ("up", "down")
    }

    def send(sender: Plug, text: bytes) -> None:
        sender.send(text)
        sender.finish()

    gots = {}
    sending = []
    for (joint, way), text in data.items():
        sender, receiver = joint.way[way]
        sending.append(gevent.spawn(send, sender, text))
        gots[joint, way] = gevent.spawn(receiver.rest)
    calm = monotonic() + 1.0
    while monotonic() < calm:
        link = rng.choice(joints).link
        way: Any = rng.choice(["up", "down", "both"])
        faults: list[tuple[Callable[..., object], list[Any]]] = [
            (link.blackhole, [way]),
            (link.throttle, [rng.uniform(1, 1e6), way]),
            (link.throttle, [None, way]),
            (link.delay, [rng.choice([0, 0.001, 0.1]), way]),
            (link.heal, []),
            (proxy.blackhole, [way]),
            (proxy.heal, []),
        ]
        fault, arguments = rng.choice(faults)
        fault(*arguments)
        gevent.sleep(rng.choice([0, 0, 0.001]))
    proxy.heal()
    gevent.joinall(sending + list(gots.values()), timeout=TIMEOUT)
    for key, text in data.items():
        assert gots[key].get(block=False) == (text, "fin")
    for joint in joints:
        joint.link.wait_closed(TIMEOUT)
        assert joint.link.up == len(data[joint, "up"])
        assert joint.link.down == len(data[joint, "down"])
    assert proxy.links == []


# -- gnats and a real server ------------------------------------------------------------------


class Line:
    """gnats connections through the proxy and past it, to one real server."""

    def __init__(self, server: NatsServer, **options: Any) -> None:
        self.server = server
        self.proxy = ChaosProxy(server.url)
        self.told: list[Exception] = []
        self.options: dict[str, Any] = {
            **FAST,
            "error_cb": lambda _, exc: self.told.append(exc),
            **options,
        }

    def __enter__(self) -> Line:
        self.proxy.start()
        self.direct = gnats.connect(self.server.url)
        self.heard = self.direct.subscribe("up.>")
        self.direct.flush()
        # The collector alone can take longer than a connect_timeout that suits a test.
        self.conn = gnats.connect(self.proxy.url, retry_on_failed_connect=True, **self.options)
        assert self.conn.wait_for_status("connected", TIMEOUT)
        self.inbox = self.conn.subscribe("down.>")
        self.conn.flush()
        return self

    def __exit__(self, *error: object) -> None:
        self.conn.close()
        self.direct.close()
        self.proxy.stop()

    def wait_for_loss(self, count: int = 1) -> None:
        wait_until(lambda: self.conn.stats.disconnects >= count, TIMEOUT, "a loss")

    def check(self, word: bytes = b"well") -> None:
        """The connection is back, and a message passes both ways."""
        assert self.conn.wait_for_status("connected", TIMEOUT)
        self.conn.flush(TIMEOUT)
        self.conn.publish("up.check", word)
        while self.heard.next_msg(TIMEOUT).data != word:
            pass
        self.direct.publish("down.check", word)
        while self.inbox.next_msg(TIMEOUT).data != word:
            pass
        stats = self.conn.stats
        assert stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered


@pytest.mark.parametrize("command", ["finish", "reset"])
def test_gnats_comes_back_from_a_cut_link(shared_nats_server: NatsServer, command: str) -> None:
    with Line(shared_nats_server) as line:
        for count in (1, 2, 3):
            getattr(line.proxy, command)()
            line.conn.publish("up.x", b"while it is away")
            line.wait_for_loss(count)
            line.check()
            assert line.proxy.accepted == count + 1
        heard = line.conn.stats
        assert heard.accepted == heard.sent + heard.uncertain


@both_ends
@pytest.mark.parametrize("count", [5, 17, 20, 1000])
def test_gnats_sends_a_message_again_whole_that_was_cut(
    shared_nats_server: NatsServer, count: int, reset: bool
) -> None:
    """No piece of it is left in the server, and nothing follows it in the wrong place."""
    with Line(shared_nats_server, replay_unconfirmed=True) as line:
        line.proxy.cut_after(count, "up", reset=reset)
        payload = bytes(range(256)) * 8
        for number in range(20):
            line.conn.publish(f"up.{number}", payload)
        line.wait_for_loss()
        line.check()
        assert line.proxy.accepted == 2
        assert line.conn.flush(TIMEOUT)
        assert line.conn.stats.uncertain == 0


def test_gnats_and_a_message_that_arrives_half(shared_nats_server: NatsServer) -> None:
    with Line(shared_nats_server) as line:
        line.proxy.cut_after(30, "down", reset=True)
        line.direct.publish("down.x", b"x" * 1000)
        line.direct.flush()
        line.wait_for_loss()
        line.check()


def test_gnats_and_a_corrupt_byte(shared_nats_server: NatsServer) -> None:
    with Line(shared_nats_server) as line:
        line.proxy.corrupt(0, "down")
        line.direct.publish("down.x", b"x")
        line.direct.flush()
        line.wait_for_loss()
        line.check()
        assert any(isinstance(error, ProtocolError) for error in line.told)


@pytest.mark.parametrize("fault", ["blackhole", "swallow", "half_open", "up", "down"])
def test_gnats_notices_silence_by_its_pings(shared_nats_server: NatsServer, fault: str) -> None:
    with Line(shared_nats_server, ping_interval=0.1, max_pings_out=1) as line:
        line.check()
        if fault in ("up", "down"):
            line.proxy.blackhole(fault)  # type: ignore[arg-type]
        else:
            getattr(line.proxy, fault)()
        began = monotonic()
        line.conn.publish("up.x", b"into the hole")
        line.wait_for_loss()
        assert monotonic() - began < 10
        wait_until(
            lambda: any(isinstance(error, StaleConnectionError) for error in line.told), TIMEOUT
        )
        line.check()  # new links pass
        line.proxy.heal()
        wait_until(lambda: len(line.proxy.links) == 1, TIMEOUT, "the end of the old link")
        line.check(b"healed")


def test_gnats_rides_out_a_hole_shorter_than_its_patience(shared_nats_server: NatsServer) -> None:
    with Line(shared_nats_server, ping_interval=30) as line:
        line.proxy.blackhole()
        for number in range(100):
            line.conn.publish("up.n", b"%d" % number)
        with pytest.raises(gnats.errors.TimeoutError):
            line.conn.flush(QUIET)
        line.proxy.heal()
        assert line.conn.flush(TIMEOUT)
        assert [line.heard.next_msg(TIMEOUT).data for _ in range(100)] == [
            b"%d" % number for number in range(100)
        ]
        assert line.conn.stats.disconnects == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_stalled_handshake_is_ended_by_connect_timeout(
    shared_nats_server: NatsServer, stage: Any
) -> None:
    with Line(shared_nats_server, connect_timeout=0.3) as line:
        line.proxy.stall_handshake(stage)
        line.proxy.reset()
        line.wait_for_loss()
        # One attempt has ended, so another came.
        line.proxy.wait_for_link(line.proxy.accepted + 2, TIMEOUT)
        assert line.conn.is_reconnecting
        assert any(isinstance(error, gnats.errors.TimeoutError) for error in line.told)
        line.proxy.heal()
        line.check()


@pytest.mark.parametrize("stage", STAGES)
def test_a_first_connect_that_stalls_or_is_cut(shared_nats_server: NatsServer, stage: Any) -> None:
    with ChaosProxy(shared_nats_server.url) as proxy:
        for reset in (False, True):
            proxy.cut_handshake(stage, reset)
            began = monotonic()
            with pytest.raises(gnats.errors.Error):
                gnats.connect(proxy.url, max_reconnect=0, connect_timeout=20)
            assert monotonic() - began < 10
        proxy.stall_handshake(stage)
        with pytest.raises(
            gnats.errors.NoServersError, match=r"connect_timeout \(0\.2 s\) ran out"
        ):
            gnats.connect(proxy.url, max_reconnect=0, connect_timeout=0.2)
        proxy.heal()
        gnats.connect(proxy.url).close()


@pytest.mark.parametrize("stage", STAGES)
@both_ends
def test_a_handshake_that_is_cut_is_tried_again(
    shared_nats_server: NatsServer, stage: Any, reset: bool
) -> None:
    with Line(shared_nats_server) as line:
        line.proxy.cut_handshake(stage, reset)
        line.proxy.reset()
        line.proxy.wait_for_link(5, TIMEOUT)
        assert line.conn.is_reconnecting
        line.proxy.heal()
        line.check()


@pytest.mark.parametrize("rule", ["refuse", "silent"])
def test_gnats_and_a_proxy_that_refuses(shared_nats_server: NatsServer, rule: str) -> None:
    with Line(shared_nats_server, connect_timeout=0.2) as line:
        getattr(line.proxy, rule)()
        line.proxy.reset()
        line.wait_for_loss()
        line.conn.publish("up.x", b"kept")
        before = line.conn.stats.attempts
        wait_until(lambda: line.conn.stats.attempts >= before + 3, TIMEOUT)
        assert line.conn.is_reconnecting
        line.proxy.heal()
        assert line.heard.next_msg(TIMEOUT).data == b"kept"
        line.check()


def test_gnats_follows_the_proxy_to_another_server(shared_nats_server: NatsServer) -> None:
    with Line(shared_nats_server) as line, NatsServer() as other:
        line.proxy.retarget(other.url)
        line.proxy.reset()
        line.wait_for_loss()
        assert line.conn.wait_for_status("connected", TIMEOUT)
        assert line.conn.server_info is not None
        assert line.conn.server_info.server_name == other.name


def test_gnats_measures_the_delay(shared_nats_server: NatsServer) -> None:
    with Line(shared_nats_server) as line:
        line.proxy.delay(0.05)
        assert 0.1 <= line.conn.rtt(TIMEOUT) < 5
        line.proxy.on_link(lambda link: link.delay(0.05))
        line.conn.force_reconnect()
        line.wait_for_loss()
        assert line.conn.wait_for_status("connected", TIMEOUT)
        assert 0.1 <= line.conn.rtt(TIMEOUT) < 5


def test_nothing_is_lost_over_many_cuts(shared_nats_server: NatsServer, rng: random.Random) -> None:
    """At least once: every message arrives, however often and wherever its link is cut."""
    with Line(shared_nats_server, replay_unconfirmed=True) as line:
        line.proxy.on_link(
            lambda link: link.cut_after(rng.randrange(500, 20_000), "up", rng.random() < 0.5)
        )
        line.proxy.reset()
        missing = set(range(2000))
        for number in range(2000):
            line.conn.publish("up.n", b"%d" % number + b" " * 40)
            if number % 100 == 0:
                gevent.sleep(0.005)
        line.proxy.on_link(None)
        line.proxy.heal()
        while missing:
            missing.discard(int(line.heard.next_msg(TIMEOUT).data))
        assert line.conn.stats.disconnects >= 3
        line.check()


# -- the fixture and the page -----------------------------------------------------------------


def test_the_fixture_makes_and_stops(
    chaos_proxy: Callable[..., ChaosProxy], shared_nats_server: NatsServer
) -> None:
    one = chaos_proxy(shared_nats_server.url)
    other = chaos_proxy(one.url, rcvbuf=65536)
    with gnats.connect(other.url) as conn:
        assert conn.flush(TIMEOUT)
    assert one.accepted == other.accepted == 1


PAGE = Path(__file__).parent.parent / "docs" / "testing.md"


@pytest.mark.once
def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    """tests/test_readme.py runs every block as a program; those that are tests must pass, too."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    tests = [block for block in blocks if "def test_" in block]
    assert tests
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["gnats.testing.fixtures"]\n')
    for number, block in enumerate(tests):
        (tmp_path / f"test_block{number}.py").write_text(block, encoding="utf-8")
    process = Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        stdout=PIPE,
        stderr=STDOUT,
        cwd=tmp_path,
    )
    output = process.communicate(timeout=50)[0].decode()
    assert process.returncode == 0, output
    assert f"{sum(block.count('def test_') for block in tests)} passed" in output


@pytest.mark.once
def test_the_page_names_what_there_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(?:proxy|link)\.(\w+)", text)):
        assert name in {*dir(ChaosProxy("host:1")), *dir(ChaosLink), "number"}, name
    public = {
        name
        for kind in (ChaosProxy, ChaosLink)
        for name in vars(kind)
        if not name.startswith("_") and callable(getattr(kind, name))
    } | {name for name in vars(proxy_module.Faults) if not name.startswith("_")}
    for name in public - {"start", "stop", "check"}:
        assert f"`{name}" in text or f".{name}" in text, f"{name} is not on the page"


def test_a_served_fake_behind_the_proxy(bench: Bench) -> None:
    with FakeServer(serve) as server:
        proxy = bench.proxy(server.url)
        with gnats.connect(proxy.url, **FAST) as conn:
            conn.publish("a", b"1")
            conn.flush()
            proxy.reset()
            wait_until(lambda: conn.stats.reconnects == 1, TIMEOUT)
            conn.publish("a", b"2")
            conn.flush()
        first, second = server.clients
        assert first.payloads("a") == [b"1"]
        assert second.payloads("a") == [b"2"]


def test_old_links_are_forgotten(
    nats_server: NatsServer, chaos_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnats.testing.proxy._REMEMBERED", 3)
    proxy = chaos_proxy(nats_server.url)
    for number in range(1, 6):
        gnats.connect(proxy.url).close()
        assert proxy.wait_for_link(number).is_closed or proxy.accepted == number
    with pytest.raises(ValueError, match="count"):
        proxy.wait_for_link(1)
    assert proxy.wait_for_link(3) is not proxy.wait_for_link(5)
    assert len(proxy._recent) == 3
