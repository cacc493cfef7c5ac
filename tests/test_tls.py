"""TLS: what is refused and by which name, that nothing goes in clear, that load harms nothing."""

from __future__ import annotations

import datetime
import resource
import shutil
import ssl as standard_ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import pytest
from authority import Authority
from cryptography.hazmat.primitives import serialization
from gevent import socket, ssl
from gevent.subprocess import Popen

import gnats
from gnats.errors import (
    CertificateError,
    NoServersError,
    ProtocolError,
    SecureConnWantedError,
    TLSError,
)
from gnats.testing import FakeClient, NatsCluster, NatsServer, free_port, serve, wait_until
from gnats.transport import make_context

FAST: dict[str, Any] = {
    "reconnect_wait": 0.02,
    "reconnect_jitter": 0.0,
    "reconnect_jitter_tls": 0.0,
    "max_reconnect": -1,
}
SECRET: dict[str, Any] = {"user": "ada", "password": "s3cret"}
RECORD = b"\x16\x03"  # how a TLS handshake begins


def failure(url: str, **options: Any) -> Exception:
    with pytest.raises(NoServersError) as caught:
        gnats.connect(url, connect_timeout=5, **SECRET, **options)
    (error,) = caught.value.failures.values()
    assert isinstance(error, Exception)
    return error


def assert_nothing_told(client: FakeClient) -> None:
    """A capture of the wire: nothing at all, or TLS, and no credential."""
    wait_until(lambda: client.is_closed)
    assert client.received == b"" or client.received.startswith(RECORD)
    for word in (b"CONNECT", b"ada", b"s3cret", b"PING"):
        assert word not in client.received


# -- refused, each by its name, and nothing sent in clear ---------------------------------------


def drain(client: FakeClient) -> None:
    """Take raw bytes until the client leaves."""
    while True:
        client.read_exactly(1)


@pytest.mark.parametrize(
    "behind", [b"-ERR 'Authorization Violation'\r\n", b"PING\r\n", b"INFO {}\r\n", b"x"]
)
def test_bytes_behind_info_before_tls(
    fake_server: Any, authority: Authority, behind: bytes
) -> None:
    """STARTTLS injection: what anybody puts there is not taken for the server's."""

    def injected(client: FakeClient) -> None:
        client.send(b'INFO {"tls_required":true,"max_payload":1000}\r\n' + behind)
        drain(client)

    server = fake_server(injected, strict=False)
    assert isinstance(failure(server.url, tls=authority.trusted), ProtocolError)
    assert isinstance(failure(server.url), ProtocolError)
    for client in server.clients:
        assert_nothing_told(client)


def test_bytes_that_come_late_before_tls(fake_server: Any, authority: Authority) -> None:
    def injected(client: FakeClient) -> None:
        client.send_info(tls_required=True)
        client.read_exactly(5)
        client.send(b"-ERR 'Authorization Violation'\r\n")
        drain(client)

    server = fake_server(injected, strict=False)
    assert isinstance(failure(server.url, tls=authority.trusted), TLSError)
    assert_nothing_told(server.clients[0])


@pytest.mark.parametrize("scheme", ["nats", "tls"])
def test_a_plain_server_where_tls_is_wanted(
    fake_server: Any, authority: Authority, scheme: str
) -> None:
    server = fake_server(strict=False)
    url = server.url.replace("nats://", f"{scheme}://")
    options = {"tls": authority.trusted} if scheme == "nats" else {}
    assert isinstance(failure(url, **options), SecureConnWantedError)
    assert_nothing_told(server.clients[0])


def secure(authority: Authority, *names: str, **options: Any) -> Any:
    context = authority.server_context(*names, **options)

    def handler(client: FakeClient) -> None:
        client.send_info(tls_required=True)
        client.start_tls(context)
        client.expect("CONNECT")
        client.expect("PING")
        client.send(b"PONG\r\n")
        client.serve()

    return handler


YESTERDAY = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        (("127.0.0.1",), {"not_after": YESTERDAY}, "expired"),
        (("other.example",), {}, "not valid for '127.0.0.1'"),
    ],
    ids=["expired", "another name"],
)
def test_a_certificate_that_is_not_accepted(
    fake_server: Any, authority: Authority, names: Any, options: Any, reason: str
) -> None:
    server = fake_server(secure(authority, *names, **options), strict=False)
    error = failure(server.url, tls=authority.trusted)
    assert isinstance(error, CertificateError)
    assert reason in error.reason
    assert error.host == "127.0.0.1"
    wait_until(lambda: server.clients[0].is_closed)
    assert b"CONNECT" not in server.clients[0].received


def test_the_name_that_a_certificate_must_be_for(fake_server: Any, authority: Authority) -> None:
    server = fake_server(secure(authority, "real.example"))
    options: dict[str, Any] = {"tls": authority.trusted, "tls_hostname": "real.example"}
    gnats.connect(server.url, **options).close()


@pytest.mark.parametrize("option", ["the URL", "tls_hostname"])
def test_a_name_in_full_is_the_name_of_its_certificate(authority: Authority, option: str) -> None:
    """A trailing dot is of the name system; certificates do not have it."""
    asked: list[str] = []

    def dialer(host: str, port: int, timeout: float) -> socket.socket:
        asked.append(host)
        return socket.create_connection(("127.0.0.1", port), timeout)

    host = "localhost." if option == "the URL" else "127.0.0.1"
    options: dict[str, Any] = {"tls": authority.trusted, "dialer": dialer}
    if option == "tls_hostname":
        options["tls_hostname"] = "localhost."
    with NatsServer(config=authority.config("localhost")) as server:
        with gnats.connect(f"tls://{host}:{server.port}", **options) as conn:
            assert conn.rtt() < 5
    assert asked == [host]  # as it was written: the dot tells a resolver not to search
    with NatsServer(config=authority.config("other.example")) as server:
        error = failure(f"tls://{host}:{server.port}", **options)
    assert isinstance(error, CertificateError)
    assert error.host == "localhost"


def test_once_it_was_tls_it_stays_tls(fake_server: Any, authority: Authority) -> None:
    """A server that offers none any more is not spoken to, though nobody asked for TLS by name:
    the first server had required it."""
    told: list[Exception] = []
    server = fake_server(
        [secure(authority, "127.0.0.1"), serve, serve, secure(authority, "127.0.0.1")]
    )
    context = ssl.create_default_context(cafile=str(authority.ca))
    conn = gnats.connect(
        server.url.replace("nats://", "tls://"),
        tls=context,
        error_cb=lambda _, exc: told.append(exc),
        **SECRET,
        **FAST,
    )
    conn.set_servers(server.url)  # no tls:// any more
    server.clients[0].reset()
    wait_until(lambda: len(server.clients) >= 4, 10)
    conn.wait_for_status("connected", 10)
    assert sum(isinstance(exc, SecureConnWantedError) for exc in told) == 2
    for client in server.clients[1:3]:
        assert client.received == b""
    conn.close()


def test_a_server_that_requires_tls_is_given_it_unasked(authority: Authority) -> None:
    """With the system's authorities: ours is not one of them, so it is refused, by name."""
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        assert isinstance(failure(server.url), CertificateError)


# -- servers that are announced -------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["connect", "reconnect"])
def test_a_server_that_is_announced_in_clear_does_not_join_the_pool(
    fake_server: Any, authority: Authority, first: bool
) -> None:
    """It was put in by somebody on the way: one with a certificate of its own would be told our
    credentials at the next loss."""
    context = authority.server_context("localhost")
    foreign = fake_server(strict=False)

    def forged(client: FakeClient) -> None:
        client.send_info(tls_required=True, connect_urls=[f"foreign.example:{foreign.port}"])
        client.start_tls(context)
        client.expect("CONNECT")
        client.expect("PING")
        client.send(b"PONG\r\n")
        client.send_info(tls_required=True)  # as a real one does
        client.serve()

    plain = secure(authority, "localhost")
    server = fake_server([forged] if first else [plain, forged])
    told: list[Any] = []
    conn = gnats.connect(
        f"tls://localhost:{server.port}",
        tls=authority.trusted,
        discovered_servers_cb=told.append,
        **SECRET,
        **FAST,
    )
    if not first:
        server.clients[0].reset()
        wait_until(lambda: conn.stats.reconnects == 1, 10)
    assert conn.flush(5)
    assert [url.host for url in conn.servers] == ["localhost"]
    # What the server says of others inside TLS is believed.
    server.clients[-1].send_info(connect_urls=["127.0.0.1:1", f"127.0.0.1:{server.port}"])
    wait_until(lambda: told == [conn])
    assert {url.address for url in conn.discovered_servers} == {
        "127.0.0.1:1",
        f"127.0.0.1:{server.port}",
    }
    conn.close()
    assert not foreign.clients


@pytest.mark.parametrize("cut", [False, True])
def test_an_older_server_names_them_in_clear_only(
    fake_server: Any, authority: Authority, cut: bool
) -> None:
    """They join when it has answered once more, and not before."""
    context = authority.server_context("localhost")
    answering: list[bool] = []

    def old(client: FakeClient) -> None:
        client.send_info(tls_required=True, connect_urls=["10.0.0.1:4222"])
        client.start_tls(context)
        client.expect("CONNECT")
        client.expect("PING")
        client.send(b"PONG\r\n")
        client.expect("PING")
        wait_until(lambda: bool(answering), 10)
        if cut:
            client.close()
            return
        client.send(b"PONG\r\n")
        client.serve()

    server = fake_server(old)
    told: list[Any] = []
    conn = gnats.connect(
        f"tls://localhost:{server.port}",
        tls=authority.trusted,
        discovered_servers_cb=told.append,
        allow_reconnect=False,
        **SECRET,
    )
    assert conn.discovered_servers == []
    answering.append(True)
    if cut:
        wait_until(lambda: conn.is_closed, 10)
        assert conn.discovered_servers == []
    else:
        wait_until(lambda: told == [conn], 10)
        assert [url.address for url in conn.discovered_servers] == ["10.0.0.1:4222"]
    conn.close()


@pytest.mark.parametrize("first", [False, True], ids=["INFO in clear", "handshake first"])
def test_a_cluster_over_tls_announces_its_servers(authority: Authority, first: bool) -> None:
    """A real server says them inside TLS, right behind its first PONG; and one is used."""
    config = authority.config("127.0.0.1", extra=", handshake_first: true" if first else "")
    with NatsCluster(2, config=config, expect_info=not first) as cluster:
        conn = gnats.connect(
            cluster.urls[0],
            tls=authority.trusted,
            tls_handshake_first=first,
            **FAST,
        )
        (other,) = wait_until(lambda: conn.discovered_servers)
        assert other.port == cluster[1].port
        cluster[0].kill()
        wait_until(lambda: conn.connected_url is not None and conn.connected_url == other, 10)
        assert conn.flush(5)
        conn.close()


# -- contexts, whoever made them ------------------------------------------------------------------


def test_a_context_of_the_standard_library(authority: Authority) -> None:
    context = standard_ssl.create_default_context(cafile=str(authority.ca))
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        with gnats.connect(server.url, tls=context, **FAST) as conn:
            assert conn.rtt() < 5


@pytest.mark.once
@pytest.mark.parametrize("patch", ["before", "after", "never"])
def test_a_context_made_before_or_after_a_monkey_patch(authority: Authority, patch: str) -> None:
    lines = ["import ssl", f"context = ssl.create_default_context(cafile={str(authority.ca)!r})"]
    monkey = "from gevent import monkey; monkey.patch_all()"
    if patch != "never":
        lines.insert(0 if patch == "before" else 2, monkey)
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        lines += [
            "import gnats",
            f"conn = gnats.connect({server.url!r}, tls=context)",
            "conn.publish('a', b'x')",
            "print(conn.flush())",
            "conn.close()",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=50
        )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("verify", [True, False])
def test_verification_is_on_unless_turned_off_loudly(
    authority: Authority, caplog: pytest.LogCaptureFixture, verify: bool
) -> None:
    with NatsServer(config=authority.config("other.example")) as server:
        if verify:
            assert isinstance(failure(server.url, tls=gnats.TLSOptions()), CertificateError)
        else:
            gnats.connect(server.url, tls=gnats.TLSOptions(verify=False)).close()
    assert ("without verification" in caplog.text) is not verify


def test_the_oldest_version_is_1_2_and_may_be_1_3() -> None:
    with pytest.raises(gnats.errors.OptionError):
        gnats.TLSOptions(minimum_version="1.1")
    assert gnats.transport.make_context(gnats.TLSOptions()).minimum_version == 0x0303
    newest = gnats.transport.make_context(gnats.TLSOptions(minimum_version="1.3"))
    assert newest.minimum_version == 0x0304


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("verify", [True, False])
def test_nothing_is_renegotiated(version: str, verify: bool) -> None:
    context = make_context(gnats.TLSOptions(minimum_version=version, verify=verify))
    assert context.options & ssl.OP_NO_RENEGOTIATION


class OpenSSLServer:
    """OpenSSL's own server, over TLS 1.2, typed to by the test: it can ask to renegotiate."""

    def __init__(self, authority: Authority) -> None:
        cert, key = authority.issue("127.0.0.1")
        self.port = free_port()
        self.output = b""
        self._process: Any = Popen(
            [
                *("openssl", "s_server", "-accept", f"127.0.0.1:{self.port}"),
                *("-cert", cert, "-key", key, "-tls1_2", "-state"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reading = gevent.spawn(self._read)

    def _read(self) -> None:
        while piece := self._process.stdout.read1(65536):
            self.output += piece

    def await_output(self, words: bytes) -> None:
        wait_until(lambda: words in self.output, 10)

    def type(self, text: bytes) -> None:
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.get(timeout=5)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_server_that_asks_to_renegotiate_is_refused(authority: Authority) -> None:
    server = OpenSSLServer(authority)
    try:
        server.await_output(b"ACCEPT")

        def talk() -> None:
            server.await_output(b"Secure Renegotiation IS supported")
            server.type(b'INFO {"max_payload":1000}\r\n')
            server.await_output(b"PING")
            server.type(b"+OK\r\nPONG\r\n")  # a leading P would be a command

        talking = gevent.spawn(talk)
        conn = gnats.connect(
            f"tls://127.0.0.1:{server.port}",
            tls=authority.trusted,
            tls_handshake_first=True,
            allow_reconnect=False,
        )
        talking.get(timeout=5)
        server.type(b"R\n")
        server.await_output(b"write hello request")

        def refused() -> bool:
            if conn.is_connected:
                conn.publish("a", b"x")  # what is refused is told with the next record
            return b"alert read:warning:no renegotiation" in server.output

        wait_until(refused, 10)
        assert conn.wait_for_status("closed", 10)
        assert isinstance(conn.last_error, TLSError)
    finally:
        server.close()


def test_files_are_read_anew_at_every_attempt(authority: Authority) -> None:
    ca = authority.folder / "late.pem"
    options = gnats.TLSOptions(ca=ca)
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        conn = gnats.connect(server.url, tls=options, retry_on_failed_connect=True, **FAST)
        wait_until(lambda: isinstance(conn.last_error, TLSError))
        assert "late.pem" in str(conn.last_error)
        ca.write_bytes(authority.ca.read_bytes())
        conn.wait_for_status("connected", 10)
        conn.close()


def test_a_key_that_needs_a_password(authority: Authority) -> None:
    cert, key = authority.issue("client")
    locked = authority.folder / "locked.key"
    plain = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pw"),
        )
    )
    extra = f', ca_file: "{authority.ca}", verify: true'
    with NatsServer(config=authority.config("127.0.0.1", extra=extra)) as server:
        tls = gnats.TLSOptions(ca=authority.ca, cert=cert, key=locked)
        error = failure(server.url, tls=tls)
        assert isinstance(error, TLSError)
        assert "key_password" in str(error)
        for password in ("pw", lambda: "pw"):
            tls = gnats.TLSOptions(ca=authority.ca, cert=cert, key=locked, key_password=password)
            gnats.connect(server.url, tls=tls).close()


# -- under load -----------------------------------------------------------------------------------


def test_500_publishers_and_a_flood_on_one_tls_link(authority: Authority) -> None:
    """One reader and one writer share the state of TLS; a torn record would end the link."""
    each, publishers = 60, 500
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        conn = gnats.connect(server.url, tls=authority.trusted, **FAST)
        got: dict[int, list[int]] = {number: [] for number in range(publishers)}

        def note(msg: gnats.Msg) -> None:
            publisher, number, padding = msg.data.split(b":")
            assert len(padding) == (int(publisher) * 37 + int(number) * 101) % 3000
            got[int(publisher)].append(int(number))

        conn.subscribe("load", cb=note)

        def publish(publisher: int) -> None:
            for number in range(each):
                padding = b"x" * ((publisher * 37 + number * 101) % 3000)
                conn.publish("load", b"%d:%d:%b" % (publisher, number, padding))
                if number % 7 == 0:
                    gevent.sleep(0)

        greenlets = [gevent.spawn(publish, number) for number in range(publishers)]
        gevent.joinall(greenlets, timeout=40, raise_error=True)
        assert conn.flush(20)
        wait_until(lambda: sum(map(len, got.values())) == each * publishers, 20)
        assert all(numbers == list(range(each)) for numbers in got.values())
        assert conn.stats.disconnects == 0
        conn.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_hours_of_messages_on_one_tls_link(authority: Authority, version: str) -> None:
    """Two hours of a thousand messages a second, both ways at once, as fast as it goes."""
    publishers, each, ahead = 500, 14_400, 30_000
    context = make_context(authority.trusted)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with NatsServer(config=authority.config("127.0.0.1")) as server:
        conn = gnats.connect(server.url, tls=context, **FAST)
        newest = [-1] * publishers
        count = [0]

        def note(msg: gnats.Msg) -> None:
            publisher, _, number = msg.data.partition(b":")
            assert int(number) == newest[int(publisher)] + 1
            newest[int(publisher)] += 1
            count[0] += 1

        conn.subscribe("load", cb=note)

        def publish(publisher: int) -> None:
            for number in range(each):
                conn.publish("load", b"%d:%d" % (publisher, number))
                if number % 20 == 0:
                    gevent.sleep(0)
                    while conn.stats.accepted - count[0] > ahead:
                        gevent.sleep(0.005)

        greenlets = [gevent.spawn(publish, number) for number in range(publishers)]
        wait_until(lambda: count[0] > publishers * each // 10, 120)
        early = resident()
        gevent.joinall(greenlets, timeout=240, raise_error=True)
        assert conn.flush(20)
        wait_until(lambda: count[0] == publishers * each, 20)
        assert newest == [each - 1] * publishers
        stats = conn.stats
        assert (stats.disconnects, stats.uncertain, stats.in_dropped) == (0, 0, 0)
        assert stats.sent == stats.in_msgs == publishers * each
        assert resident() - early < 16 * 2**20
        conn.close()


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
