"""How a link is dialled: a dialer of one's own, a local address, what the kernel is told, IPv6."""

from __future__ import annotations

import ipaddress
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
        gevent.joinall([gevent.spawn(pump, near, far), gevent.spawn(pump, far, near)])

    def pump(source: Any, sink: Any) -> None:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.close()

    def dialer(host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    relaying = gevent.spawn(relay)
    with gnats.connect("nats://unix:1", dialer=dialer) as conn:
        sub = conn.subscribe("a")
        conn.publish("a", b"x" * 500_000)
        assert len(sub.next_msg(5).data) == 500_000
    relaying.kill()
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


def test_a_dialer_that_never_returns_is_bounded_by_connect_timeout() -> None:
    assert isinstance(failure(dialer=lambda *_: gevent.sleep(60)), TimeoutError)


# -- addresses and options of the kernel ---------------------------------------------------------


def test_a_local_address(nats_server: NatsServer) -> None:
    port = free_port()
    with gnats.connect(nats_server.url, local_addr=("127.0.0.1", port)) as conn:
        assert sockets_of(conn).getsockname() == ("127.0.0.1", port)
    with gnats.connect(nats_server.url, local_addr=("127.0.0.1", 0)) as conn:
        assert sockets_of(conn).getsockname()[0] == "127.0.0.1"


def test_a_local_address_that_is_not_ours() -> None:
    assert isinstance(failure(local_addr=("192.0.2.1", 0)), TransportError)


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
