"""Connecting: every way to name a server and oneself, and every way in which it can fail.

A real nats-server answers wherever one would; the fake one only stalls, lies and drips.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from finish import check_books
from gevent import socket

import gnats
from gnats import errors
from gnats.testing import FakeClient, FakeServer, NatsServer, free_port, hold, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
LINUX = sys.platform.startswith("linux")
SLACK = 0.7  # seconds that a busy machine may add to a deadline


def dead_url() -> str:
    """A server that refuses."""
    return f"nats://127.0.0.1:{free_port()}"


def finish(conn: gnats.Connection) -> None:
    conn.close()
    assert conn.is_closed
    check_books(conn)


def only_failure(info: pytest.ExceptionInfo[errors.NoServersError]) -> BaseException:
    (failure,) = info.value.failures.values()
    return failure


def open_sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.add(target)
    return found


@pytest.fixture
def connect(shared_nats_server: NatsServer) -> Iterator[Callable[..., gnats.Connection]]:
    """gnats.connect, to the shared server unless told otherwise; closed after the test."""
    with contextlib.ExitStack() as opened:

        def make(servers: Any = None, **fields: Any) -> gnats.Connection:
            conn = gnats.connect(servers or shared_nats_server.url, **fields)
            opened.callback(finish, conn)
            return conn

        yield make


@pytest.fixture(scope="module")
def password_server() -> Iterator[NatsServer]:
    with NatsServer(user="alice", password="s3cr:t/@%") as server:
        yield server


@pytest.fixture(scope="module")
def token_server() -> Iterator[NatsServer]:
    with NatsServer(token="t0k%n") as server:
        yield server


# -- naming the server ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda s: s.url, id="url"),
        pytest.param(lambda s: f"127.0.0.1:{s.port}", id="bare"),
        pytest.param(lambda s: f"localhost:{s.port}", id="name"),
        pytest.param(lambda s: f"nats://127.0.0.1:{s.port}/", id="slash"),
        pytest.param(lambda s: f"{s.url},{dead_url()}", id="commas"),
        pytest.param(lambda s: f" {dead_url()} , {s.url} ", id="commas-and-spaces"),
        pytest.param(lambda s: [s.url], id="list"),
        pytest.param(lambda s: (dead_url(), s.url), id="tuple"),
        pytest.param(lambda s: (url for url in [dead_url(), dead_url(), s.url]), id="iterator"),
    ],
)
def test_ways_to_name_a_server(connect: Any, shared_nats_server: NatsServer, form: Any) -> None:
    conn = connect(form(shared_nats_server))
    assert conn.is_connected
    assert conn.connected_url.port == shared_nats_server.port
    assert conn.flush(5)


def test_the_servers_of_the_options(shared_nats_server: NatsServer) -> None:
    dead = dead_url()
    options = gnats.ConnectionOptions(servers=[dead, shared_nats_server.url])
    for conn in (gnats.connect(options=options), gnats.Connection(options).connect()):
        assert [str(url) for url in conn.servers] == [shared_nats_server.url, dead]
        finish(conn)


def test_servers_of_the_call_come_before_those_added(shared_nats_server: NatsServer) -> None:
    conn = gnats.Connection()
    second = dead_url()
    conn.add_server(second)
    conn.connect(shared_nats_server.url)
    assert [str(url) for url in conn.servers] == [shared_nats_server.url, second]
    finish(conn)


def test_the_first_that_answers_wins(shared_nats_server: NatsServer, fake_server: Any) -> None:
    other = fake_server()
    conn = gnats.connect([shared_nats_server.url, other.url])
    assert str(conn.connected_url) == shared_nats_server.url
    assert other.clients == []
    finish(conn)


def test_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    with NatsServer(host="::1") as server:
        for url in (f"nats://[::1]:{server.port}", f"[::1]:{server.port}"):
            conn = gnats.connect(url)
            assert conn.connected_url is not None
            assert str(conn.connected_url) == f"nats://[::1]:{server.port}"
            assert conn.flush(5)
            finish(conn)


def test_what_is_known_once_connected(connect: Any, shared_nats_server: NatsServer) -> None:
    conn = connect()
    assert conn.status == "connected"
    assert conn.is_connected
    assert not any([conn.is_reconnecting, conn.is_draining, conn.is_closed])
    assert conn.server_info.server_name == shared_nats_server.name
    assert conn.server_info["version"] == conn.server_info.version
    clients = shared_nats_server.connz()["connections"]
    assert conn.client_id in [client["cid"] for client in clients]
    assert conn.max_payload == 1024 * 1024
    assert conn.last_error is None
    assert conn.stats.attempts == conn.stats.connects == 1
    assert conn.stats.reconnects == conn.stats.disconnects == 0


def test_nothing_is_known_before() -> None:
    conn = gnats.Connection()
    assert conn.status == "disconnected"
    assert conn.server_info is conn.client_id is conn.connected_url is conn.last_error is None
    assert not any([conn.is_connected, conn.is_closed])


# -- options --------------------------------------------------------------------------------------


def test_flat_and_grouped_options_are_the_same() -> None:
    def told(*_: Any) -> None:
        raise AssertionError

    grouped = gnats.ConnectionOptions(
        reconnect=gnats.ReconnectOptions(max_reconnect=-1, reconnect_wait=1.0),
        callbacks=gnats.Callbacks(disconnected_cb=told),
        name="worker",
    )
    flat = {"max_reconnect": -1, "reconnect_wait": 1.0, "disconnected_cb": told, "name": "worker"}
    assert gnats.Connection(**flat).options == grouped
    over = gnats.Connection(gnats.ConnectionOptions(name="x", verbose=True), name="worker").options
    assert (over.name, over.verbose) == ("worker", True)


def test_the_fields_of_connect(fake_server: Any) -> None:
    server = fake_server()
    conn = gnats.connect(server.url, name="näme", pedantic=True, no_echo=True)
    fields = server.wait_for_client().connect_options
    assert fields["name"] == "näme"
    assert fields["pedantic"] is True
    assert fields["echo"] is False
    assert fields["verbose"] is False
    assert fields["protocol"] == 1
    assert fields["headers"] is fields["no_responders"] is True
    assert fields["version"] == gnats.__version__
    assert not {"user", "pass", "auth_token", "jwt", "nkey", "sig"} & set(fields)
    finish(conn)


def test_the_name_is_visible_in_monitoring(connect: Any, shared_nats_server: NatsServer) -> None:
    connect(name="a worker, and its näme")
    names = [client.get("name") for client in shared_nats_server.connz()["connections"]]
    assert "a worker, and its näme" in names


def test_no_headers_are_promised_to_a_server_without_them(fake_server: Any) -> None:
    server = fake_server(lambda c: (c.handshake(headers=False), c.serve()))
    conn = gnats.connect(server.url)
    fields = server.wait_for_client().connect_options
    assert fields["headers"] is fields["no_responders"] is False
    finish(conn)


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "nats://",
        "nats://:4222",
        "http://127.0.0.1:4222",
        "nats://127.0.0.1:",
        "nats://127.0.0.1:0",
        "nats://127.0.0.1:65536",
        "nats://127.0.0.1:-1",
        "nats://127.0.0.1:port",
        "nats://[::1",
        "nats://ho st:4222",
        "nats://ho\r\nst:4222",
        "nats://127.0.0.1:4222/path",
        "nats://127.0.0.1:4222?a=b",
        "nats://127.0.0.1:4222,",
        ["nats://127.0.0.1:4222", ""],
        ["nats://127.0.0.1:4222", None],
        [4222],
        [],
        b"nats://127.0.0.1:4222",
    ],
)
def test_a_bad_url_is_refused_before_anything(url: Any) -> None:
    conn = gnats.Connection()
    with pytest.raises(errors.BadURLError):
        conn.connect(url)
    assert conn.status == "disconnected"
    assert conn.stats.attempts == 0
    with pytest.raises(errors.BadURLError):
        gnats.connect(url)
    with pytest.raises(errors.BadURLError):
        gnats.Connection(servers=url)
    with pytest.raises(errors.BadURLError):
        conn.set_servers(url)


@pytest.mark.parametrize("servers", [4222, 1.5, object()])
def test_servers_of_a_wrong_type_get_a_named_error(servers: Any) -> None:
    for refuse in (gnats.connect, lambda s: gnats.Connection(servers=s)):
        with pytest.raises(errors.Error):
            refuse(servers)
    with pytest.raises(errors.Error):
        gnats.Connection().add_server(servers)


def test_no_secret_is_shown(password_server: NatsServer) -> None:
    secret = "hunter2"
    for bad in (f"nats://bob:{secret}@h:99999", f"http://bob:{secret}@h", f"nats://{secret}@h/x"):
        with pytest.raises(errors.BadURLError) as info:
            gnats.connect(bad)
        assert secret not in str(info.value) + repr(info.value)
    port = password_server.port
    conn = gnats.Connection(servers=f"bob:{secret}@127.0.0.1:{port}", user="u", password=secret)
    with pytest.raises(errors.NoServersError) as refused:
        conn.connect()
    shown = [refused.value, refused.value.failures, conn, conn.options, conn.servers]
    shown += [conn.last_error, gnats.Connection(token=secret).options]
    assert secret not in "".join(f"{one} {one!r}" for one in shown)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"max_reconect.*did you mean 'max_reconnect'"):
        gnats.connect("127.0.0.1:1", max_reconect=3)


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "5", None, True])
def test_a_connect_timeout_that_is_no_time(value: Any) -> None:
    with pytest.raises(errors.OptionError, match="connect_timeout"):
        gnats.connect("127.0.0.1:1", connect_timeout=value)


# -- who we are -----------------------------------------------------------------------------------


def test_user_and_password(password_server: NatsServer, token_server: NatsServer) -> None:
    url, port = password_server.url, password_server.port
    quoted = "s3cr%3At%2F%40%25"
    conns = [
        gnats.connect(password_server.auth_url),
        gnats.connect(f"alice:{quoted}@127.0.0.1:{port}"),
        gnats.connect(url, user="alice", password="s3cr:t/@%"),
        gnats.connect(url, user=lambda: "alice", password=lambda: "s3cr:t/@%"),
        # What the URL says is for its server alone, and wins there.
        gnats.connect(password_server.auth_url, user="nobody", password="nothing"),
        gnats.connect(
            f"nats://alice:wrong@127.0.0.1:{token_server.port},{password_server.auth_url}"
        ),
    ]
    for conn in conns:
        assert conn.flush(5)
        finish(conn)


def test_token(token_server: NatsServer) -> None:
    conns = [
        gnats.connect(token_server.auth_url),
        gnats.connect(f"t0k%25n@127.0.0.1:{token_server.port}"),
        gnats.connect(token_server.url, token="t0k%n"),
        gnats.connect(token_server.url, token=lambda: "t0k%n"),
    ]
    for conn in conns:
        assert conn.flush(5)
        finish(conn)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"user": "alice", "password": "wrong"},
        {"user": "alice"},
        {"user": "mallory", "password": "s3cr:t/@%"},
        {"token": "s3cr:t/@%"},
        {"user": "", "password": ""},
    ],
)
def test_wrong_credentials(password_server: NatsServer, fields: Any) -> None:
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(password_server.url, **fields)
    assert isinstance(only_failure(info), errors.AuthorizationError)
    assert list(info.value.failures) == [password_server.url]


def test_credentials_are_read_anew_at_each_attempt(password_server: NatsServer) -> None:
    asked: list[str] = []

    def password() -> str:
        asked.append("password")
        return "wrong" if len(asked) == 1 else "s3cr:t/@%"

    conn = gnats.Connection(user=lambda: "alice", password=password)
    with pytest.raises(errors.NoServersError):
        conn.connect(password_server.url)
    conn.connect(password_server.url)
    assert len(asked) == 2
    conn.force_reconnect()
    wait_until(lambda: conn.stats.connects == 2)
    assert len(asked) == 3
    finish(conn)


class VaultSealedError(Exception):
    pass


def raises() -> str:
    raise VaultSealedError("the vault is sealed")


@pytest.mark.parametrize(
    ("secret", "failure"),
    [(raises, VaultSealedError), (lambda: None, errors.OptionError), (lambda: b"x", TypeError)],
)
def test_a_credential_that_cannot_be_had(
    shared_nats_server: NatsServer, secret: Any, failure: type[Exception]
) -> None:
    expected = (failure, errors.OptionError)
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(shared_nats_server.url, token=secret)
    assert isinstance(only_failure(info), expected)


def test_a_credential_that_takes_for_ever(shared_nats_server: NatsServer) -> None:
    began = monotonic()
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(shared_nats_server.url, token=lambda: gevent.sleep(30), connect_timeout=0.1)
    assert isinstance(only_failure(info), errors.TimeoutError)
    assert monotonic() - began < 0.1 + SLACK


# -- failing --------------------------------------------------------------------------------------


def test_all_dead_names_each_failure(fake_server: Any) -> None:
    rude = fake_server(lambda client: client.send_err("Maximum Connections Exceeded"))
    dead, other = dead_url(), dead_url()
    told: list[Any] = []
    conn = gnats.Connection(error_cb=lambda _, exc: told.append(exc), closed_cb=told.append)
    with pytest.raises(errors.NoServersError) as info:
        conn.connect([dead, rude.url, other])
    failures = info.value.failures
    assert list(failures) == [dead, rude.url, other]
    assert isinstance(failures[dead], errors.TransportError)
    assert isinstance(failures[dead].__cause__, ConnectionRefusedError)
    assert isinstance(failures[rude.url], errors.MaxConnectionsError)
    for url in (dead, rude.url, other):
        assert url in str(info.value)
    assert "refused" in str(info.value)
    assert conn.status == "disconnected"
    assert conn.stats.attempts == 3
    gevent.sleep(0)
    assert told == []  # the caller has it


def test_connect_again_after_a_failure(nats_server: NatsServer) -> None:
    nats_server.stop()
    conn = gnats.Connection()
    for _ in range(3):
        with pytest.raises(errors.NoServersError):
            conn.connect(nats_server.url)
        assert conn.status == "disconnected"
        with pytest.raises(errors.ConnectionClosedError):
            conn.publish("a", b"")
    nats_server.start()
    assert conn.connect() is conn  # the server is known by now
    assert len(conn.servers) == 1
    conn.publish("a", b"")
    assert conn.flush(5)
    assert conn.stats.attempts == 4
    assert conn.stats.reconnects == 0
    finish(conn)


def test_a_host_that_is_none() -> None:
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect("nats://a..b:4222")
    assert isinstance(only_failure(info), errors.TransportError)
    assert "resolve" in str(info.value)


def test_connecting_twice_is_an_error(connect: Any, shared_nats_server: NatsServer) -> None:
    conn = connect()
    with pytest.raises(errors.Error, match="connected already"):
        conn.connect(shared_nats_server.url)
    assert conn.flush(5)
    assert conn.stats.connects == 1


def test_connecting_while_another_greenlet_connects(fake_server: Any) -> None:
    server = fake_server(hold)
    conn = gnats.Connection(connect_timeout=10)
    first = gevent.spawn(conn.connect, server.url)
    server.wait_for_client()
    with pytest.raises(errors.Error, match="connecting already"):
        conn.connect(server.url)
    conn.close()
    # close() wakes everyone who waits with this.
    with pytest.raises(errors.ConnectionClosedError):
        first.get(timeout=5)


def test_a_closed_connection_stays_closed(shared_nats_server: NatsServer) -> None:
    conn = gnats.connect(shared_nats_server.url)
    conn.close()
    with pytest.raises(errors.ConnectionClosedError):
        conn.connect(shared_nats_server.url)


@pytest.mark.parametrize("run", range(5))
def test_a_full_server_says_so(run: int) -> None:
    with NatsServer(config="max_connections: 1") as server:
        # It may still count, for a moment, the one that looked whether it is ready.
        conn = gnats.connect(server.url, retry_on_failed_connect=True, reconnect_wait=0.05)
        conn.wait_for_status("connected", 10)
        with pytest.raises(errors.NoServersError) as info:
            gnats.connect(server.url)
        assert isinstance(only_failure(info), errors.MaxConnectionsError)
        finish(conn)


# -- one deadline over an attempt -----------------------------------------------------------------


def drip_info(client: FakeClient) -> None:
    client.send(b"INFO {")
    while True:
        client.send(b" ")
        gevent.sleep(0.01)


def stall_after_info(client: FakeClient) -> None:
    client.send_info()
    client.stall()


def half_an_info(client: FakeClient) -> None:
    client.send(b'INFO {"server_id":"x"')
    client.stall()


def no_pong(client: FakeClient) -> None:
    client.send_info()
    client.expect("CONNECT")
    client.expect("PING")
    client.stall()


def anything_but_pong(client: FakeClient) -> None:
    client.send_info()
    while True:
        client.send(b"PING\r\n+OK\r\n")
        client.send_info()
        gevent.sleep(0.01)


@pytest.mark.parametrize(
    ("handler", "stage"),
    [
        (hold, "INFO"),
        (drip_info, "INFO"),
        (half_an_info, "INFO"),
        (stall_after_info, "PONG"),
        (no_pong, "PONG"),
        (anything_but_pong, "PONG"),
    ],
)
def test_one_deadline_over_an_attempt(fake_server: Any, handler: Any, stage: str) -> None:
    server = fake_server(handler)
    began = monotonic()
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, connect_timeout=0.2)
    took = monotonic() - began
    failure = only_failure(info)
    assert isinstance(failure, errors.TimeoutError)
    assert failure.timeout == 0.2
    assert stage in str(failure)
    assert 0.15 < took < 0.2 + SLACK


def test_the_deadline_is_for_each_attempt(fake_server: Any, shared_nats_server: NatsServer) -> None:
    silent = [fake_server(hold), fake_server(hold)]
    began = monotonic()
    conn = gnats.connect([*(s.url for s in silent), shared_nats_server.url], connect_timeout=0.2)
    assert 0.35 < monotonic() - began < 0.4 + SLACK
    assert str(conn.connected_url) == shared_nats_server.url
    finish(conn)


def test_a_paused_server_is_given_up(nats_server: NatsServer) -> None:
    nats_server.pause()
    began = monotonic()
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(nats_server.url, connect_timeout=0.2)
    assert monotonic() - began < 0.2 + SLACK
    assert isinstance(only_failure(info), errors.TimeoutError)
    nats_server.resume()
    finish(gnats.connect(nats_server.url))


# -- a server that refuses, or is none ------------------------------------------------------------


def err_first(client: FakeClient, text: str) -> None:
    client.send_err(text)


def err_after_info(client: FakeClient, text: str) -> None:
    client.send_info()
    client.send_err(text)
    client.serve(1)


def err_after_connect(client: FakeClient, text: str) -> None:
    client.send_info()
    client.expect("CONNECT")
    client.send_err(text)


def err_after_ping(client: FakeClient, text: str) -> None:
    client.send_info()
    client.expect("CONNECT")
    client.expect("PING")
    client.send_err(text)
    client.stall()


@pytest.mark.parametrize("handler", [err_first, err_after_info, err_after_connect, err_after_ping])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Authorization Violation", errors.AuthorizationError),
        ("Authentication Timeout", errors.AuthorizationError),
        ("User Authentication Expired", errors.AuthenticationExpiredError),
        ("maximum connections exceeded", errors.MaxConnectionsError),
        ("Secure Connection - TLS Required", errors.SecureConnRequiredError),
        ("Something New", errors.ServerError),
    ],
)
def test_an_err_at_every_stage(fake_server: Any, handler: Any, text: str, kind: Any) -> None:
    server = fake_server(lambda client: handler(client, text))
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, connect_timeout=2)
    failure = only_failure(info)
    assert type(failure) is kind
    assert text.lower() in str(failure).lower()


def handshake_then(data: bytes) -> Any:
    def handler(client: FakeClient) -> None:
        client.send_info()
        client.expect("CONNECT")
        client.send(data)
        client.serve(1)

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(lambda c: c.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), id="http"),
        pytest.param(lambda c: c.send(b"SSH-2.0-OpenSSH_9.2\r\n"), id="ssh"),
        pytest.param(lambda c: c.send(b"\x15\x03\x01\x00\x02\x02\x50\r\n"), id="tls-alert"),
        pytest.param(lambda c: c.send(b"\r\n"), id="empty-line"),
        pytest.param(lambda c: c.send(b"PING\r\n"), id="ping-first"),
        pytest.param(lambda c: c.send(b"PONG\r\n"), id="pong-first"),
        pytest.param(lambda c: c.send(b"+OK\r\n"), id="ok-first"),
        pytest.param(lambda c: c.send(b"MSG a 1 0\r\n\r\n"), id="msg-first"),
        pytest.param(lambda c: c.send(b"INFO\r\n"), id="no-info"),
        pytest.param(lambda c: c.send(b"INFO {\r\n"), id="half-json"),
        pytest.param(lambda c: c.send(b"INFO not json\r\n"), id="no-json"),
        pytest.param(lambda c: c.send(b"INFO []\r\n"), id="json-list"),
        pytest.param(lambda c: c.send(b"INFO \xff\xfe\r\n"), id="no-utf8"),
        pytest.param(lambda c: c.send(b"INFO " + b"[" * 100_000 + b"\r\n"), id="deep-json"),
        pytest.param(lambda c: c.send_info(max_payload="many"), id="wrong-type"),
        pytest.param(lambda c: c.send_info(max_payload=0), id="no-max-payload"),
        pytest.param(lambda c: c.send_info(max_payload=-1), id="negative-max-payload"),
        pytest.param(lambda c: c.send_info(connect_urls=[1]), id="wrong-connect-urls"),
        pytest.param(lambda c: c.send(b'INFO {"max_payload":' + b"9" * 9999 + b"}\r\n"), id="9s"),
        pytest.param(handshake_then(b"MSG a 1 0\r\n\r\n"), id="msg-before-pong"),
        pytest.param(handshake_then(b"garbage\r\n"), id="garbage-before-pong"),
        pytest.param(handshake_then(b"INFO nothing\r\n"), id="second-info-bad"),
        pytest.param(handshake_then(b"PONG\n"), id="lone-line-feed"),
    ],
)
def test_what_is_no_nats_server(fake_server: Any, handler: Any) -> None:
    server = fake_server(handler)
    began = monotonic()
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, connect_timeout=2)
    assert type(only_failure(info)) is errors.ProtocolError
    assert monotonic() - began < 1.5


@pytest.mark.parametrize("start", [b"INFO {", b"MSG ", b"", b"\xff"])
def test_a_line_without_end_is_bounded(fake_server: Any, start: bytes) -> None:
    sent = [0]

    def endless(client: FakeClient) -> None:
        client.send(start)
        while True:
            client.send(b"x" * 65536)
            sent[0] += 65536

    server = fake_server(endless)
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, connect_timeout=5)
    assert isinstance(only_failure(info), errors.ProtocolError)
    wait_until(lambda: server.clients[0].is_closed)
    assert sent[0] < 16 * 1024 * 1024  # what two kernels hold, and a megabyte or two


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(lambda c: None, id="at-once"),
        pytest.param(lambda c: c.send(b"INFO {"), id="in-info"),
        pytest.param(lambda c: c.send_info(), id="after-info"),
        pytest.param(lambda c: (c.send_info(), c.expect("CONNECT")), id="after-connect"),
        pytest.param(
            lambda c: (c.send_info(), c.expect("CONNECT"), c.expect("PING")), id="after-ping"
        ),
        pytest.param(lambda c: c.reset(), id="reset"),
    ],
)
def test_a_server_that_hangs_up(fake_server: Any, handler: Any) -> None:
    server = fake_server(handler)
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, connect_timeout=2)
    assert isinstance(only_failure(info), errors.TransportError)


def test_a_server_that_requires_tls_hears_nothing_in_clear(fake_server: Any) -> None:
    def tls(client: FakeClient) -> None:
        client.send_info(tls_required=True)
        client.read_exactly(5)
        client.close()

    server = fake_server(tls, strict=False)
    with pytest.raises(errors.NoServersError) as info:
        gnats.connect(server.url, user="alice", password="secret", connect_timeout=2)
    assert isinstance(only_failure(info), errors.TransportError)
    client = server.clients[0]
    wait_until(lambda: client.is_closed)
    assert client.received[:2] == b"\x16\x03"  # a TLS handshake
    assert b"CONNECT" not in client.received
    assert b"alice" not in client.received


# -- retry_on_failed_connect ----------------------------------------------------------------------


def test_retry_returns_at_once_and_connects_later(nats_server: NatsServer) -> None:
    nats_server.stop()
    told: list[Any] = []
    conn = gnats.Connection(
        **FAST,
        retry_on_failed_connect=True,
        connected_cb=lambda c: told.append("connected"),
        disconnected_cb=lambda c: told.append("disconnected"),
        reconnected_cb=lambda c: told.append("reconnected"),
        error_cb=lambda c, exc: told.append(exc),
    )
    began = monotonic()
    conn.connect(nats_server.url)
    assert monotonic() - began < 0.1 + SLACK
    assert conn.status == "connecting"
    got: list[bytes] = []
    conn.subscribe("early", cb=lambda msg: got.append(msg.data))
    for number in range(100):
        conn.publish("early", str(number))
    assert conn.stats.buffered == 100
    wait_until(lambda: conn.stats.attempts > 2)
    assert conn.status == "connecting"
    assert all(isinstance(one, errors.TransportError) for one in told)
    assert told
    nats_server.start()
    assert conn.wait_for_status("connected", 5)
    assert conn.flush(5)
    wait_until(lambda: len(got) == 100)
    assert got == [str(number).encode() for number in range(100)]
    wait_until(lambda: "connected" in told)
    assert [one for one in told if isinstance(one, str)] == ["connected"]
    assert conn.stats.sent == 100
    finish(conn)
    assert told.count("connected") == 1


def test_retry_has_a_buffer_limit() -> None:
    conn = gnats.connect(dead_url(), **FAST, retry_on_failed_connect=True, reconnect_buf_size=100)
    conn.publish("a", b"x" * 50)
    with pytest.raises(errors.OutboundBufferLimitError):
        conn.publish("a", b"x" * 50)
    assert conn.stats.accepted == conn.stats.buffered == 1
    finish(conn)
    assert conn.stats.dropped == 1


def test_retry_can_be_closed_while_it_tries() -> None:
    told: list[str] = []
    conn = gnats.connect(
        dead_url(),
        retry_on_failed_connect=True,
        reconnect_wait=100,
        max_reconnect=-1,
        connected_cb=lambda c: told.append("connected"),
        closed_cb=lambda c: told.append("closed"),
    )
    waiting = gevent.spawn(conn.wait_for_status, "connected")
    wait_until(lambda: conn.stats.attempts == 1)
    began = monotonic()
    finish(conn)
    assert monotonic() - began < SLACK
    with pytest.raises(errors.ConnectionClosedError):
        waiting.get(timeout=5)
    assert told == ["closed"]


def test_retry_gives_up_at_its_limit() -> None:
    told: list[Any] = []
    conn = gnats.connect(
        dead_url(),
        retry_on_failed_connect=True,
        reconnect_wait=0.01,
        reconnect_jitter=0.0,
        max_reconnect=3,
        error_cb=lambda c, exc: told.append(type(exc)),
        closed_cb=lambda c: told.append("closed"),
    )
    assert conn.wait_for_status("closed", 5)
    wait_until(lambda: "closed" in told)
    assert conn.stats.attempts == 3
    assert told == [*[errors.TransportError] * 3, errors.NoServersError, "closed"]


# -- wait_for_status ------------------------------------------------------------------------------


def test_wait_for_status(connect: Any) -> None:
    conn = connect()
    assert conn.wait_for_status("connected") is True
    assert conn.wait_for_status(gnats.ConnectionStatus.connected, timeout=0) is True
    for timeout in (0, 0.05):
        began = monotonic()
        with pytest.raises(errors.TimeoutError) as info:
            conn.wait_for_status("reconnecting", timeout)
        assert monotonic() - began < timeout + SLACK
        assert info.value.timeout == timeout
    with pytest.raises(ValueError):
        conn.wait_for_status("conected", 1)
    waiters = [gevent.spawn(conn.wait_for_status, "closed", 5) for _ in range(3)]
    others = [gevent.spawn(conn.wait_for_status, "reconnecting", 5) for _ in range(3)]
    gevent.sleep(0)
    conn.close()
    assert [waiter.get(timeout=5) for waiter in waiters] == [True] * 3
    for other in others:
        with pytest.raises(errors.ConnectionClosedError):
            other.get(timeout=5)
    assert conn.wait_for_status("closed", 0) is True


def test_wait_for_status_sees_a_status_that_passed(connect: Any) -> None:
    conn = connect(**FAST)
    waiter = gevent.spawn(conn.wait_for_status, "reconnecting", 5)
    gevent.sleep(0)
    conn.force_reconnect()
    assert waiter.get(timeout=5) is True
    assert conn.wait_for_status("connected", 5)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_wait_of_no_time_is_refused(connect: Any, timeout: Any) -> None:
    with pytest.raises(errors.OptionError, match="timeout"):
        connect().wait_for_status("connected", timeout)


# -- a caller that is struck ----------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="counts sockets in /proc")
@pytest.mark.parametrize("handler", [hold, stall_after_info, no_pong])
@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_connect_that_is_struck_leaves_nothing(handler: Any, how: str) -> None:
    before = open_sockets()
    told: list[str] = []
    conn = gnats.Connection(connect_timeout=30, closed_cb=lambda c: told.append("closed"))
    with FakeServer(handler) as server:
        if how == "kill":
            caller = gevent.spawn(conn.connect, server.url)
            server.wait_for_client()
            caller.kill(timeout=5)
            assert caller.dead
        else:
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
                conn.connect(server.url)
        assert conn.wait_for_status("closed", 5)
        client = server.wait_for_client()
        with pytest.raises((ConnectionError, OSError)):
            # The client has hung up: nothing more comes, and soon nothing more goes.
            while True:
                client.read_exactly(1, timeout=5)
    wait_until(lambda: open_sockets() <= before)
    wait_until(lambda: told == ["closed"])
    with pytest.raises(errors.ConnectionClosedError):
        conn.publish("a", b"")


@pytest.mark.skipif(not LINUX, reason="counts sockets in /proc")
def test_failed_connects_leave_nothing(shared_nats_server: NatsServer) -> None:
    before = open_sockets()
    for _ in range(20):
        with pytest.raises(errors.NoServersError):
            gnats.connect(dead_url())
        gnats.connect(shared_nats_server.url).close()
    wait_until(lambda: open_sockets() <= before)


# -- before connect() -----------------------------------------------------------------------------


def test_calls_before_connect_say_so() -> None:
    conn = gnats.Connection()
    calls: list[Callable[[], Any]] = [
        lambda: conn.publish("a", b""),
        lambda: conn.subscribe("a"),
        lambda: conn.request("a", b""),
        lambda: conn.request_many("a", b""),
        conn.flush,
        conn.rtt,
        conn.force_reconnect,
    ]
    for call in calls:
        with pytest.raises(errors.ConnectionClosedError):
            call()
    assert conn.stats.accepted == 0
    assert conn.status == "disconnected"
    conn.drain()
    assert conn.is_closed
