"""What a server refuses while a link is up: subjects, credentials, connections, and bare -ERRs."""

from __future__ import annotations

import contextlib
from typing import Any

import gevent
import pytest
from gevent import socket

import gnats
from gnats.errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    BadSubjectError,
    BadSubscriptionError,
    ConnectionClosedError,
    MaxConnectionsError,
    NoServersError,
    PermissionsError,
    ServerError,
    StaleConnectionError,
    TransportError,
    UnexpectedEOF,
)
from gnats.refusals import CLOSING, read_refusal
from gnats.testing import FakeClient, NatsServer, free_port, serve, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}

PERMISSIONS = """
authorization {
  users: [
    { user: "limited", password: "pw", permissions: {
        publish: { deny: ["no.pub.>"] }, subscribe: { deny: ["no.sub.>", "queued q"] } } }
    { user: "mute", password: "pw", permissions: {
        publish: ["ok"], subscribe: ["ok"] } }
  ]
}
"""


def limited(server: NatsServer, told: list[Exception], **fields: Any) -> gnats.Connection:
    return gnats.connect(
        server.url,
        user="limited",
        password="pw",
        error_cb=lambda _, exc: told.append(exc),
        **{**FAST, **fields},
    )


# -- permissions ---------------------------------------------------------------------------------


def test_a_refused_subscription_ends_and_no_other() -> None:
    told: list[Exception] = []
    with NatsServer(config=PERMISSIONS) as server:
        conn = limited(server, told)
        before = conn.subscribe("yes.before")
        refused = conn.subscribe("no.sub.x")
        handled = conn.subscribe("no.sub.y", cb=print)
        after = conn.subscribe("yes.after")
        waiting = gevent.spawn(refused.next_msg, 5)
        conn.flush()
        wait_until(lambda: len(told) == 2)
        assert [type(exc) for exc in told] == [PermissionsError] * 2
        assert [(exc.operation, exc.subject) for exc in told] == [  # type: ignore[attr-defined]
            ("subscription", "no.sub.x"),
            ("subscription", "no.sub.y"),
        ]
        assert conn.last_error is told[-1]
        waiting.join(5)
        assert isinstance(waiting.exception, BadSubscriptionError)
        assert waiting.exception.__cause__ is told[0]
        assert refused.is_closed
        assert handled.is_closed
        with pytest.raises(BadSubscriptionError):
            refused.next_msg(1)
        with pytest.raises(BadSubscriptionError):
            refused.unsubscribe()
        for sub in (before, after):
            conn.publish(sub.subject, b"alive")
            assert sub.next_msg(5).data == b"alive"
        assert conn.stats.disconnects == 0
        assert conn.stats.errors_received == 2

        # It is not asked for again on the next link.
        server.restart()
        wait_until(lambda: conn.stats.reconnects == 1)
        conn.flush()
        assert conn.stats.errors_received == 2
        conn.publish("yes.after", b"again")
        assert after.next_msg(5).data == b"again"
        conn.close()


def test_a_refused_queue_subscription_is_told_from_its_sisters() -> None:
    told: list[Exception] = []
    with NatsServer(config=PERMISSIONS) as server:
        conn = limited(server, told)
        plain = conn.subscribe("queued")
        refused = conn.subscribe("queued", queue="q")
        other = conn.subscribe("queued", queue="r")
        conn.flush()
        wait_until(lambda: len(told) == 1)
        error = told[0]
        assert isinstance(error, PermissionsError)
        assert (error.subject, error.queue) == ("queued", "q")
        assert [plain.is_closed, refused.is_closed, other.is_closed] == [False, True, False]
        conn.publish("queued", b"1")
        assert plain.next_msg(5).data == other.next_msg(5).data == b"1"
        conn.close()


def test_a_refused_publish_is_told_once_and_ends_nothing() -> None:
    told: list[Exception] = []
    with NatsServer(config=PERMISSIONS) as server:
        conn = limited(server, told)
        sub = conn.subscribe("no.pub.>")  # subscribing is allowed
        conn.publish("no.pub.x", b"")
        conn.flush()
        wait_until(lambda: len(told) == 1)
        error = told[0]
        assert isinstance(error, PermissionsError)
        assert (error.operation, error.subject) == ("publish", "no.pub.x")
        assert not sub.is_closed
        assert conn.is_connected
        conn.publish("yes", b"")
        conn.flush()
        assert len(told) == 1
        conn.close()


def test_a_refused_inbox_fails_the_requests_that_wait() -> None:
    told: list[Exception] = []
    with NatsServer(config=PERMISSIONS) as server:
        conn = gnats.connect(
            server.url,
            user="mute",
            password="pw",
            error_cb=lambda _, exc: told.append(exc),
            **FAST,
        )
        for _ in range(2):  # the second one makes an inbox of its own, and hears the same
            with pytest.raises(PermissionsError):
                conn.request("ok", b"", timeout=5)
        sub = conn.subscribe("ok")
        conn.publish("ok", b"1")
        assert sub.next_msg(5).data == b"1"
        conn.close()


def test_permissions_that_shrink_at_runtime() -> None:
    told: list[Exception] = []
    wide = 'authorization { user: "limited", password: "pw" }'
    with NatsServer(config=wide) as server:
        conn = limited(server, told)
        shut = conn.subscribe("no.sub.x")
        open_ = conn.subscribe("yes")
        conn.flush()
        server.reload(PERMISSIONS)
        # The server may keep the link and refuse, or put us out and refuse at the restore.
        wait_until(lambda: shut.is_closed, 10)
        conn.wait_for_status("connected", 10)
        wait_until(lambda: any(isinstance(exc, PermissionsError) for exc in told))
        conn.publish("yes", b"1")
        conn.flush(10)
        assert open_.next_msg(5).data == b"1"
        conn.close()


def test_an_old_permission_error_is_not_the_cause_of_a_later_loss() -> None:
    told: list[Exception] = []
    with NatsServer(config=PERMISSIONS) as server:
        conn = limited(server, told)
        conn.publish("no.pub.x")
        conn.flush()
        wait_until(lambda: len(told) == 1)
        lost_by: list[Exception | None] = []
        server.kill()
        conn.wait_for_status("reconnecting", 5)
        wait_until(lambda: len(told) >= 2)
        lost_by = [exc for exc in told if isinstance(exc, PermissionsError)]
        assert lost_by == told[:1]  # reported once
        assert isinstance(told[1], TransportError)
        conn.close()


# -- -ERRs of a fake server ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Stale Connection", StaleConnectionError),
        ("stale connection", StaleConnectionError),
        ("User Authentication Expired", AuthenticationExpiredError),
        ("User Authentication Revoked", AuthenticationExpiredError),
        ("Account Authentication Expired", AuthenticationExpiredError),
        ("Authorization Violation", AuthorizationError),
        ("Authentication Timeout", AuthorizationError),
        ("maximum connections exceeded", MaxConnectionsError),
        ("maximum account active connections exceeded", MaxConnectionsError),
        ("Maximum Payload Violation", ServerError),
        ("Maximum Control Line Exceeded", ServerError),
        ("Parser Error", ServerError),
        ("Unknown Protocol Operation", ServerError),
        ("Slow Consumer", ServerError),
        ("Server Shutdown", ServerError),
    ],
)
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
def test_an_err_that_ends_the_link(
    fake_server: Any, text: str, kind: type[Exception], closes: bool
) -> None:
    """Whether or not the server closes by itself: the words are the cause, we come back."""

    def refuse(client: FakeClient) -> None:
        client.handshake()
        client.send_err(text)
        if not closes:
            client.serve()

    server = fake_server([refuse, serve])
    told: list[Exception] = []
    conn = gnats.connect(server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
    second = server.wait_for_client(2)
    wait_until(lambda: conn.stats.reconnects == 1)
    assert [type(exc) for exc in told] == [kind]
    assert conn.last_error is told[0]
    assert conn.stats.errors_received == 1
    conn.flush()
    second.assert_whole()
    conn.close()


@pytest.mark.parametrize(
    "text", ["Invalid Client Protocol", "Invalid Subject", "Something Entirely New", ""]
)
def test_an_err_of_unknown_words_closes_nothing_by_itself(fake_server: Any, text: str) -> None:
    def refuse(client: FakeClient) -> None:
        client.handshake()
        client.send_err(text)
        client.serve()

    server = fake_server(refuse)
    told: list[Exception] = []
    conn = gnats.connect(server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
    wait_until(lambda: len(told) == 1)
    assert isinstance(told[0], ServerError)
    assert told[0].text == text
    conn.flush()
    assert conn.stats.disconnects == 0
    conn.close()


def test_unknown_words_right_before_the_end_are_its_cause(fake_server: Any) -> None:
    def refuse(client: FakeClient) -> None:
        client.handshake()
        client.send(b"-ERR 'A New Reason To Go'\r\n")

    server = fake_server([refuse, serve])
    causes: list[Exception | None] = []
    conn = gnats.connect(server.url, disconnected_cb=lambda c: causes.append(c.last_error), **FAST)
    wait_until(lambda: conn.stats.reconnects == 1)
    assert isinstance(causes[0], ServerError)
    assert causes[0].text == "A New Reason To Go"
    conn.close()


def test_unknown_words_of_long_ago_are_not_the_cause(fake_server: Any) -> None:
    def refuse(client: FakeClient) -> None:
        client.handshake()
        client.send(b"-ERR 'A Mere Remark'\r\n")
        while client.read_frame().op != "PING":
            pass
        client.send(b"PONG\r\n")
        go.wait(5)

    go = gevent.event.Event()
    server = fake_server([refuse, serve])
    causes: list[Exception | None] = []
    conn = gnats.connect(server.url, disconnected_cb=lambda c: causes.append(c.last_error), **FAST)
    conn.flush()
    go.set()
    wait_until(lambda: conn.stats.reconnects == 1)
    assert isinstance(causes[0], UnexpectedEOF)
    conn.close()


def test_names_that_do_not_fit_together_are_refused_here(nats_server: NatsServer) -> None:
    """The server would close the link for the line, and for each restore of it, for ever."""
    conn = gnats.connect(nats_server.url, **FAST)
    sub = conn.subscribe("good")
    with pytest.raises(BadSubjectError):
        conn.subscribe("a" * 3000, queue="q" * 3000)
    with pytest.raises(BadSubjectError):
        conn.publish("a" * 3000, reply="r" * 3000)
    longest = conn.subscribe("a" * 3990, queue="q" * 10)
    conn.publish("a" * 3990, b"1")
    conn.publish("good", b"2")
    assert longest.next_msg(5).data == b"1"
    assert sub.next_msg(5).data == b"2"
    assert conn.stats.disconnects == 0
    conn.close()


# -- authentication --------------------------------------------------------------------------


def change_password(server: NatsServer, password: str) -> None:
    server.kill()
    server.password = password
    server.start()


def test_the_same_auth_error_twice_gives_up() -> None:
    told: list[Exception] = []
    closed: list[gnats.Connection] = []
    with NatsServer(user="u", password="old") as server:
        conn = gnats.connect(
            server.auth_url,
            error_cb=lambda _, exc: told.append(exc),
            closed_cb=closed.append,
            **FAST,
        )
        sub = conn.subscribe("x")
        waiting = gevent.spawn(sub.next_msg, 10)
        change_password(server, "new")
        conn.wait_for_status("closed", 10)
        refusals = [exc for exc in told if isinstance(exc, AuthorizationError)]
        assert len(refusals) == 2
        assert conn.last_error is refusals[1]
        waiting.join(5)
        assert isinstance(waiting.exception, ConnectionClosedError)
        wait_until(lambda: closed == [conn])
        with pytest.raises(ConnectionClosedError):
            conn.publish("x")
        conn.close()


def test_the_same_auth_error_is_borne_when_asked_to() -> None:
    told: list[Exception] = []
    with NatsServer(user="u", password="old") as server:
        conn = gnats.connect(
            server.auth_url,
            ignore_auth_error_abort=True,
            error_cb=lambda _, exc: told.append(exc),
            **FAST,
        )
        change_password(server, "new")
        wait_until(lambda: sum(isinstance(exc, AuthorizationError) for exc in told) >= 4, 10)
        assert conn.is_reconnecting
        change_password(server, "old")
        assert conn.wait_for_status("connected", 10)
        conn.flush()
        conn.close()


def test_a_rotated_password_is_asked_for_anew() -> None:
    password = ["old"]
    with NatsServer(user="u", password="old") as server:
        conn = gnats.connect(server.url, user="u", password=lambda: password[0], **FAST)
        password[0] = "new"
        change_password(server, "new")
        wait_until(lambda: conn.stats.reconnects == 1, 10)
        conn.flush()
        conn.close()


def test_credentials_callables_that_fail_are_failed_attempts(fake_server: Any) -> None:
    answers: list[Any] = ["good", ZeroDivisionError("vault is down"), 7, gevent.Timeout(), "good"]
    told: list[Exception] = []

    def password() -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    server = fake_server()
    conn = gnats.connect(
        server.url, user="u", password=password, error_cb=lambda _, exc: told.append(exc), **FAST
    )
    server.clients[0].reset()
    wait_until(lambda: conn.stats.reconnects == 1)
    assert answers == []
    assert [type(exc).__name__ for exc in told[1:3]] == ["ZeroDivisionError", "OptionError"]
    assert len(told) == 4
    assert conn.stats.attempts == 5
    conn.close()


def test_auth_refused_at_first_connect_is_told_to_the_caller() -> None:
    with NatsServer(user="u", password="pw") as server:
        with pytest.raises(NoServersError) as caught:
            gnats.connect(server.url, user="u", password="wrong", **FAST)
        (failure,) = caught.value.failures.values()
        assert isinstance(failure, AuthorizationError)
        assert "wrong" not in str(caught.value)


def test_a_user_removed_at_runtime() -> None:
    """The server puts the user out, with words; twice refused after that, we give up."""
    told: list[Exception] = []
    with NatsServer(config='authorization { user: "u", password: "pw" }') as server:
        conn = gnats.connect(
            server.url, user="u", password="pw", error_cb=lambda _, e: told.append(e), **FAST
        )
        server.reload('authorization { user: "v", password: "pw" }')
        conn.wait_for_status("closed", 10)
        assert any(isinstance(exc, AuthorizationError) for exc in told)
        assert isinstance(conn.last_error, AuthorizationError)
        conn.close()


# -- too many connections ---------------------------------------------------------------------


def test_max_connections_at_runtime_and_back() -> None:
    told: list[Exception] = []
    with NatsServer(config="max_connections: 10") as server:
        conns = [
            gnats.connect(server.url, error_cb=lambda _, exc: told.append(exc), **FAST)
            for _ in range(3)
        ]
        server.reload("max_connections: 1")
        wait_until(lambda: sum(conn.is_connected for conn in conns) <= 1, 10)
        wait_until(lambda: any(isinstance(exc, MaxConnectionsError) for exc in told), 10)
        with pytest.raises(NoServersError) as caught:
            gnats.connect(server.url, **FAST)
        (failure,) = caught.value.failures.values()
        assert isinstance(failure, MaxConnectionsError)
        server.reload("max_connections: 10")
        wait_until(lambda: all(conn.is_connected for conn in conns), 10)
        for conn in conns:
            conn.flush()
            conn.close()


class _Counted(dict[Any, Any]):
    """A registry that counts how often somebody walks through all of it."""

    walks = 0

    def values(self) -> Any:
        self.walks += 1
        return super().values()


def test_a_thousand_refusals_do_not_walk_a_thousand_times_through_all(nats_server: Any) -> None:
    with gnats.connect(nats_server.url, **FAST) as conn:
        registry = conn._subscriptions
        registry.by_sid = counted = _Counted()
        subs = [
            conn.subscribe(f"s.{number % 500}", queue="ab"[number % 2]) for number in range(999)
        ]
        refusal = PermissionsError("no", "subscription", "s.1", "b")
        registry.refused("s.1", "b", refusal)
        assert [sub.is_closed for sub in subs].count(True) == 2
        assert subs[1].is_closed
        assert subs[501].is_closed
        again = conn.subscribe("s.1", queue="b")
        subs[0].unsubscribe()
        for number in range(500):
            registry.refused(f"s.{number}", "ab"[number % 2], refusal)
        assert all(sub.is_closed for sub in [again, *subs])
        assert counted.walks == 1
        assert registry._by_name == {}


# -- the words themselves, from a real server ----------------------------------------------------

TIGHT = """
max_payload: 100
ping_interval: "1s"
ping_max: 1
gateway { name: g, listen: "127.0.0.1:%d" }
"""
GREETING = b'CONNECT {"verbose":false}\r\n'


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (GREETING + b"PUB a 200\r\n", "maximum payload"),
        (GREETING + b"SUB " + b"a" * 5000 + b" 1\r\n", "maximum control line exceeded"),
        (GREETING + b"GARBAGE\r\n", "unknown protocol operation"),
        (GREETING, "stale connection"),
        (b'CONNECT {"headers":false,"no_responders":true}\r\n', "no responders requires headers"),
        (None, "attempted to connect to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_real_server_says_these_words(sent: bytes | None, words: str) -> None:
    gateway = free_port()
    with NatsServer(config=TIGHT % gateway) as server:
        port = server.port if sent else gateway
        sock = socket.create_connection((server.host, port))
        sock.settimeout(10)
        sock.sendall(sent or GREETING)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(4096):
                heard += chunk
        sock.close()
    text = heard.partition(b"-ERR '")[2].partition(b"'")[0].decode()
    refusal = read_refusal(text)
    assert refusal.closes
    row = next(row for row in CLOSING if text.lower().startswith(row.words))
    assert (row.words, row.seen) == (words, "2.10-2.15")
