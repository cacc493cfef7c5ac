"""How a link is dialled: a dialer of one's own, a local address, what the kernel is told, IPv6."""

from __future__ import annotations

import errno
import ipaddress
import os
import sys
from typing import Any

import gevent
import pytest
from gevent import socket

import gnats
from gnats.errors import NoServersError, TimeoutError, TransportError
from gnats.testing import NatsServer, free_port, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


def sockets_of(conn: gnats.Connection) -> Any:
    """The socket of the live link."""
    return conn._reconnector.session._opened.transport._sock  # type: ignore[union-attr]


def failure(**options: Any) -> Exception:
    with pytest.raises(NoServersError) as caught:
        gnats.connect(f"nats://127.0.0.1:{free_port()}", connect_timeout=0.5, **options)
    (error,) = caught.value.failures.values()
    assert isinstance(error, Exception)
    return error


# -- a dialer of one's own ------------------------------------------------------------------------


def test_a_dialer_is_asked_at_every_attempt(nats_server: NatsServer) -> None:
    """As one that goes through a proxy: it is given the name, and resolves nothing here."""
    asked = []

    def dialer(host: str, port: int, timeout: float) -> socket.socket:
        asked.append((host, port))
        assert 0 < timeout <= 5
        return socket.create_connection(("127.0.0.1", nats_server.port), timeout)

    conn = gnats.connect("nats://far.example:1", dialer=dialer, **FAST)
    nats_server.kill()
    conn.wait_for_status("reconnecting", 5)
    nats_server.restart()
    conn.wait_for_status("connected", 5)
    conn.publish("a", b"x")
    assert conn.flush(5)
    assert len(asked) >= 2
    assert set(asked) == {("far.example", 1)}
    conn.close()


def test_a_unix_socket_through_a_dialer(nats_server: NatsServer, tmp_path: Any) -> None:
    path = str(tmp_path / "nats.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)

    def relay() -> None:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", nats_server.port))
        with near, far:
            gevent.joinall([gevent.spawn(pump, near, far), gevent.spawn(pump, far, near)])

    def pump(source: Any, sink: Any) -> None:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def dialer(host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    relaying = gevent.spawn(relay)
    with gnats.connect("nats://unix:1", dialer=dialer) as conn:
        sub = conn.subscribe("a")
        conn.publish("a", b"x" * 500_000)
        assert len(sub.next_msg(5).data) == 500_000
    relaying.join(5)
    listener.close()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ConnectionRefusedError(111, "refused"), TransportError),
        (socket.timeout(), TimeoutError),
        (ValueError("mine"), ValueError),
    ],
)
def test_a_dialer_that_fails(raised: Exception, told: type[Exception]) -> None:
    def dialer(host: str, port: int, timeout: float) -> Any:
        raise raised

    assert isinstance(failure(dialer=dialer), told)


def test_a_dialer_that_returns_no_socket() -> None:
    error = failure(dialer=lambda *_: "nonsense")
    assert isinstance(error, TransportError)
    assert "str" in str(error)


def test_a_name_that_a_dialer_cannot_resolve_is_told_in_words() -> None:
    error = failure(dialer=lambda *_: socket.create_connection(("nowhere.invalid", 1)))
    assert isinstance(error, TransportError)
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.__cause__.strerror in str(error)
    assert "Unknown error" not in str(error)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, None], ids=["UDP", "closed"])
def test_a_dialers_socket_that_bears_no_options(kind: int | None) -> None:
    """Its OSError is translated like every other, and the socket is not left open."""
    returned = []

    def dialer(*_: Any) -> socket.socket:
        returned.append(socket.socket(socket.AF_INET, kind or socket.SOCK_STREAM))
        if kind is None:
            returned[-1].close()
        return returned[-1]

    error = failure(dialer=dialer)
    assert isinstance(error, TransportError)
    assert isinstance(error.__cause__, OSError)
    assert "the dialer's socket" in str(error)
    assert [sock.fileno() for sock in returned] == [-1]


def test_a_dialer_that_never_returns_is_bounded_by_connect_timeout() -> None:
    assert isinstance(failure(dialer=lambda *_: gevent.sleep(60)), TimeoutError)


# -- addresses and options of the kernel ---------------------------------------------------------


def test_a_local_address(nats_server: NatsServer) -> None:
    port = free_port()
    with gnats.connect(nats_server.url, local_addr=("127.0.0.1", port)) as conn:
        assert sockets_of(conn).getsockname() == ("127.0.0.1", port)
    with gnats.connect(nats_server.url, local_addr=("127.0.0.1", 0)) as conn:
        assert sockets_of(conn).getsockname()[0] == "127.0.0.1"


def test_a_local_address_by_its_name(nats_server: NatsServer) -> None:
    """It is resolved like a server's name, and never by a call that holds the whole process."""
    with gnats.connect(nats_server.url, local_addr=("localhost", 0)) as conn:
        assert sockets_of(conn).getsockname()[0] == "127.0.0.1"
    with gnats.connect(nats_server.url, local_addr=("", 0)) as conn:
        assert sockets_of(conn).getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.0.2.1", os.strerror(errno.EADDRNOTAVAIL)),
        ("nowhere.invalid", "cannot resolve"),
        ("a..b", "no host name"),
        ("ho\x00st", "cannot resolve"),
        ("::1", "IPv6"),
    ],
    ids=["not ours", "unknown", "no name", "NUL", "another family"],
)
def test_a_local_address_that_cannot_be_used(address: str, words: str) -> None:
    error = failure(local_addr=(address, 0))
    assert isinstance(error, TransportError)
    assert f"local_addr {address!r}" in str(error)
    assert words in str(error)
    assert "Unknown error" not in str(error)


def test_a_local_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        error = failure(local_addr=("127.0.0.1", port))
    assert isinstance(error, TransportError)
    assert f"local_addr '127.0.0.1', port {port}" in str(error)
    assert os.strerror(errno.EADDRINUSE) in str(error)


def test_only_addresses_that_the_local_one_can_reach_are_tried(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, *_: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr("gnats.transport.socket.getaddrinfo", resolve)
    monkeypatch.setattr("gnats.transport.random.shuffle", lambda addresses: None)
    local = ("127.0.0.1", 0)
    with gnats.connect(f"nats://both.example:{nats_server.port}", local_addr=local) as conn:
        assert sockets_of(conn).getpeername() == ("127.0.0.1", nats_server.port)
    nats_server.kill()
    with pytest.raises(NoServersError, match=os.strerror(errno.ECONNREFUSED)):
        gnats.connect(f"nats://both.example:{nats_server.port}", local_addr=local)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of Linux")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tcp_keepalive": 32_767}, ("TCP_KEEPIDLE", 32_767)),
        ({"tcp_keepalive": 0.01}, ("TCP_KEEPIDLE", 1)),
        ({"tcp_user_timeout": 2_147_483}, ("TCP_USER_TIMEOUT", 2_147_483_000)),
        ({"tcp_user_timeout": 0.0001}, ("TCP_USER_TIMEOUT", 1)),
    ],
    ids=str,
)
def test_the_kernel_takes_what_the_options_take(
    nats_server: NatsServer, options: dict[str, Any], told: tuple[str, int]
) -> None:
    with gnats.connect(nats_server.url, **options) as conn:
        name, value = told
        option = getattr(socket, name)
        assert sockets_of(conn).getsockopt(socket.IPPROTO_TCP, option) == value
        assert conn.flush(5)


def test_the_highest_local_port(nats_server: NatsServer) -> None:
    with gnats.connect(nats_server.url, local_addr=("127.0.0.1", 65_535)) as conn:
        assert sockets_of(conn).getsockname() == ("127.0.0.1", 65_535)
        assert conn.flush(5)


def test_what_the_kernel_is_told(nats_server: NatsServer) -> None:
    with gnats.connect(nats_server.url, tcp_keepalive=30, tcp_user_timeout=1.5) as conn:
        sock = sockets_of(conn)
        option = sock.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with gnats.connect(nats_server.url) as conn:
        option = sockets_of(conn).getsockopt
        assert not option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6() -> None:
    with NatsServer(host="::1") as server:
        conn = gnats.connect(f"nats://[::1]:{server.port}", **FAST)
        assert ipaddress.ip_address(sockets_of(conn).getpeername()[0]).version == 6
        server.kill()
        conn.wait_for_status("reconnecting", 5)
        server.restart()
        conn.wait_for_status("connected", 5)
        conn.close()


def test_the_addresses_of_a_name_are_shuffled_and_each_is_tried(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADR-11. One of three addresses has a server; the first to be tried differs."""
    dead = [f"127.0.0.{number}" for number in (2, 3)]
    tried: list[str] = []
    connect = socket.socket.connect

    def resolve(host: str, port: int, *_: Any) -> Any:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.1", *dead)
        ]

    def noting(sock: Any, address: Any) -> None:
        tried.append(address[0])
        connect(sock, address)

    monkeypatch.setattr("gnats.transport.socket.getaddrinfo", resolve)
    monkeypatch.setattr("gnats.transport.socket.socket.connect", noting)
    firsts = set()
    for _ in range(40):
        tried.clear()
        gnats.connect(f"nats://many.example:{nats_server.port}", connect_timeout=5).close()
        firsts.add(tried[0])
        assert tried[-1] == "127.0.0.1"
        assert len(set(tried)) == len(tried)
    assert firsts == {"127.0.0.1", *dead}


# -- servers behind servers -------------------------------------------------------------------


def test_through_a_leaf_node() -> None:
    leaf_port = free_port()
    hub_config = f'leafnodes {{ port: {leaf_port}, host: "127.0.0.1" }}'
    leaf_config = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{leaf_port}" }} ] }}'
    with NatsServer(config=hub_config) as hub, NatsServer(config=leaf_config) as leaf:
        assert there_and_back(hub.url, leaf.url)


def test_through_a_gateway() -> None:
    ports = [free_port(), free_port()]
    configs = [
        f"gateway {{ name: {name}, port: {port}, host: 127.0.0.1, gateways: ["
        f"{{ name: A, url: nats://127.0.0.1:{ports[0]} }}, "
        f"{{ name: B, url: nats://127.0.0.1:{ports[1]} }} ] }}"
        for name, port in zip("AB", ports)
    ]
    with NatsServer(config=configs[0]) as first, NatsServer(config=configs[1]) as second:
        assert there_and_back(first.url, second.url)


def there_and_back(here: str, there: str) -> bool:
    with gnats.connect(here) as near, gnats.connect(there) as far:
        far.subscribe("far", cb=lambda msg: msg.respond(msg.data))

        def answered() -> bool:
            try:
                return near.request("far", b"x", timeout=0.5).data == b"x"
            except gnats.errors.Error:
                return False

        return bool(wait_until(answered, 15))
