"""The opening talk, as a machine: every order of words that a server may or may not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wire_cases import msg, plain

from gnats.errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    Error,
    MaxConnectionsError,
    ProtocolError,
    SecureConnRequiredError,
    SecureConnWantedError,
    ServerError,
)
from gnats.handshake import Handshake
from gnats.info import ServerInfo
from gnats.parser import Info, Parser

pytestmark = pytest.mark.sansio

INFO = b'INFO {"server_id":"s1","headers":true,"nonce":"n"}\r\n'
HELLO = b'CONNECT {"name":"me"}\r\nPING\r\n'
MSG = b"MSG a 1 2\r\nhi\r\n"


def fields(info: ServerInfo) -> dict[str, Any]:
    return {"name": "me"}


def machine(connect_fields: Callable[[ServerInfo], dict[str, Any]] = fields) -> Handshake:
    return Handshake(Parser(), connect_fields)


def greeted() -> Handshake:
    handshake = machine()
    assert handshake.feed(INFO) == HELLO
    return handshake


# -- the good road -----------------------------------------------------------------------


def test_info_connect_pong() -> None:
    handshake = machine()
    assert (handshake.stage, handshake.done, handshake.info) == ("INFO", False, None)
    assert handshake.feed(INFO) == HELLO
    assert (handshake.stage, handshake.done) == ("PONG", False)
    assert handshake.info is not None
    assert handshake.info.server_id == "s1"
    assert handshake.feed(b"PONG\r\n") == b""
    assert handshake.done
    assert handshake.early == []


def test_byte_by_byte() -> None:
    handshake = machine()
    out = [handshake.feed(bytes([byte])) for byte in INFO]
    assert b"".join(out[:-1]) == b""
    assert out[-1] == HELLO
    for byte in b"PONG\r":
        assert handshake.feed(bytes([byte])) == b""
        assert not handshake.done
    assert handshake.feed(b"\n") == b""
    assert handshake.done


def test_connect_fields_are_asked_once_with_the_servers_info() -> None:
    asked: list[ServerInfo] = []

    def ask(info: ServerInfo) -> dict[str, Any]:
        asked.append(info)
        return {"headers": info.headers, "nonce": info.nonce}

    handshake = machine(ask)
    assert handshake.feed(INFO) == b'CONNECT {"headers":true,"nonce":"n"}\r\nPING\r\n'
    assert len(asked) == 1
    assert asked[0] is handshake.info


def test_verbose_oks_are_passed_over() -> None:
    handshake = greeted()
    assert handshake.feed(b"+OK\r\n") == b""
    assert not handshake.done
    assert handshake.feed(b"+OK\r\nPONG\r\n") == b""
    assert handshake.done


def test_a_ping_in_between_is_answered() -> None:
    handshake = greeted()
    assert handshake.feed(b"PING\r\n") == b"PONG\r\n"
    assert handshake.feed(b"PING\r\n+OK\r\nPING\r\n") == b"PONG\r\nPONG\r\n"
    assert not handshake.done
    assert handshake.feed(b"PING\r\nPONG\r\n") == b"PONG\r\n"
    assert handshake.done


def test_a_second_info_is_the_newer_word_and_asks_for_nothing() -> None:
    handshake = greeted()
    assert handshake.feed(b'INFO {"server_id":"s2"}\r\n') == b""
    assert handshake.info is not None
    assert handshake.info.server_id == "s2"
    assert not handshake.done
    handshake.feed(b"PONG\r\n")
    assert handshake.done


# -- what comes behind the PONG ----------------------------------------------------------


def test_early_events_are_kept_for_the_reader() -> None:
    handshake = greeted()
    handshake.feed(b"PONG\r\n" + MSG + b"PING\r\nPONG\r\n" + MSG[:5])
    assert handshake.done
    assert list(map(plain, handshake.early)) == [msg("a", 1, b"hi"), ("PING",), ("PONG",)]


def test_bytes_of_an_unfinished_frame_stay_in_the_parser() -> None:
    parser = Parser()
    handshake = Handshake(parser, fields)
    handshake.feed(INFO)
    handshake.feed(b"PONG\r\n" + MSG[:5])
    assert handshake.done
    assert list(map(plain, parser.feed(MSG[5:]))) == [msg("a", 1, b"hi")]


def test_an_err_behind_the_pong_is_for_the_reader() -> None:
    handshake = greeted()
    handshake.feed(b"PONG\r\n-ERR 'Stale Connection'\r\n")
    assert handshake.done
    assert list(map(plain, handshake.early)) == [("ERR", "Stale Connection")]


# -- refusals ----------------------------------------------------------------------------

REFUSALS: list[tuple[bytes, type[Error]]] = [
    (b"-ERR 'Authorization Violation'\r\n", AuthorizationError),
    (b"-err 'authorization violation'\r\n", AuthorizationError),
    (b"-ERR 'Authentication Timeout'\r\n", AuthorizationError),
    (b"-ERR 'User Authentication Expired'\r\n", AuthenticationExpiredError),
    (b"-ERR 'maximum connections exceeded'\r\n", MaxConnectionsError),
    (b"-ERR 'Secure Connection - TLS Required'\r\n", SecureConnRequiredError),
    (b"-ERR 'Parser Error'\r\n", ServerError),
    (b"-ERR 'unknown words'\r\n", ServerError),
]

each_refusal = pytest.mark.parametrize(("wire", "kind"), REFUSALS)


@each_refusal
def test_err_before_info(wire: bytes, kind: type[Error]) -> None:
    handshake = machine()
    with pytest.raises(kind) as caught:
        handshake.feed(wire)
    assert type(caught.value) is kind
    assert not handshake.done


@each_refusal
def test_err_after_connect(wire: bytes, kind: type[Error]) -> None:
    handshake = greeted()
    handshake.feed(b"+OK\r\n")
    with pytest.raises(kind) as caught:
        handshake.feed(wire)
    assert type(caught.value) is kind
    assert not handshake.done


@each_refusal
def test_err_in_the_same_bytes_as_info(wire: bytes, kind: type[Error]) -> None:
    with pytest.raises(kind):
        machine().feed(INFO + wire)


@each_refusal
def test_err_before_a_pong_in_the_same_bytes(wire: bytes, kind: type[Error]) -> None:
    handshake = greeted()
    with pytest.raises(kind):
        handshake.feed(wire + b"PONG\r\n")
    assert not handshake.done


@each_refusal
def test_the_words_count_more_than_the_garbage_behind_them(wire: bytes, kind: type[Error]) -> None:
    with pytest.raises(kind) as caught:
        greeted().feed(wire + b"garbage\r\n")
    assert type(caught.value) is kind


# -- TLS ---------------------------------------------------------------------------------


def never(info: ServerInfo) -> dict[str, Any]:
    pytest.fail("credentials were asked for")


TLS_INFO = b'INFO {"tls_required":true}\r\n'
TLS_OFFER = b'INFO {"tls_available":true}\r\n'


@pytest.mark.parametrize(("info", "tls"), [(TLS_INFO, False), (TLS_INFO, True), (TLS_OFFER, True)])
def test_tls_comes_before_connect(info: bytes, tls: bool) -> None:
    handshake = Handshake(Parser(), lambda _: {"a": 1}, tls=tls)
    for byte in info[:-1]:
        assert handshake.feed(bytes([byte])) == b""
        assert not handshake.awaits_tls
    assert handshake.feed(info[-1:]) == b""
    assert handshake.awaits_tls
    assert handshake.stage == "TLS handshake"
    assert handshake.secured() == b'CONNECT {"a":1}\r\nPING\r\n'
    assert not handshake.awaits_tls
    assert handshake.feed(b"PONG\r\n") == b""
    assert handshake.done


@pytest.mark.parametrize(
    "behind",
    [
        b"PONG\r\n",
        b"PING\r\n",
        b"+OK\r\n",
        b"P",
        b"-ERR 'Authorization Violation'\r\n",
        b"-ERR 'Authorization Violation'\r\ngarbage\r\n",
        b"INFO {}\r\n",
        b"\x16\x03\x03",
    ],
)
@pytest.mark.parametrize(("info", "tls"), [(TLS_INFO, False), (TLS_INFO, True), (TLS_OFFER, True)])
def test_nothing_in_clear_stands_behind_the_info_of_tls(
    info: bytes, tls: bool, behind: bytes
) -> None:
    handshake = Handshake(Parser(), never, tls=tls)
    with pytest.raises(ProtocolError):
        handshake.feed(info + behind)
    assert not handshake.done


def test_servers_that_are_named_in_clear_are_not_believed_once_it_is_tls() -> None:
    named = b'"connect_urls":["10.0.0.1:4222"]}\r\n'
    handshake = Handshake(Parser(), lambda _: {})
    handshake.feed(b'INFO {"tls_required":true,"max_payload":7,' + named)
    handshake.secured()
    assert handshake.info is not None
    assert (handshake.info.connect_urls, handshake.info.max_payload) == ((), 7)
    assert handshake.unproven == ("10.0.0.1:4222",)
    handshake.feed(b"PONG\r\nINFO {" + named)
    (again,) = handshake.early
    assert isinstance(again, Info)
    assert again.info.connect_urls == ("10.0.0.1:4222",)
    handshake = Handshake(Parser(), lambda _: {})
    handshake.feed(b'INFO {"tls_required":true,' + named)
    handshake.secured()
    handshake.feed(b"INFO {}\r\nPONG\r\n")  # inside: this is what holds
    assert (handshake.done, handshake.unproven) == (True, ())
    for secured in (False, True):  # where nothing better comes, and where all is TLS
        handshake = Handshake(Parser(), lambda _: {}, secured=secured)
        handshake.feed(b"INFO {" + named)
        assert handshake.info is not None
        assert handshake.info.connect_urls == ("10.0.0.1:4222",)


def test_a_server_without_tls_is_refused_where_tls_is_wanted() -> None:
    with pytest.raises(SecureConnWantedError):
        Handshake(Parser(), never, tls=True).feed(INFO)


def test_a_link_that_is_tls_from_the_first_byte_may_say_more_behind_info() -> None:
    handshake = Handshake(Parser(), lambda _: {}, tls=True, secured=True)
    assert handshake.feed(TLS_INFO + b"PING\r\n") == b"CONNECT {}\r\nPING\r\nPONG\r\n"
    with pytest.raises(AuthorizationError):
        handshake.feed(b"-ERR 'Authorization Violation'\r\n")


def test_refused_credentials_in_clear_are_not_believed_where_tls_is_wanted() -> None:
    """Believed twice they would end the connection for good, and anybody can send them."""
    with pytest.raises(ProtocolError):
        Handshake(Parser(), never, tls=True).feed(b"-ERR 'Authorization Violation'\r\n")
    with pytest.raises(MaxConnectionsError):
        Handshake(Parser(), never, tls=True).feed(b"-ERR 'maximum connections exceeded'\r\n")


def test_a_server_that_offers_tls_is_spoken_to() -> None:
    assert machine().feed(b'INFO {"tls_available":true,"tls_required":false}\r\n') == HELLO


# -- a server that breaks the protocol ---------------------------------------------------


@pytest.mark.parametrize("wire", [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", MSG])
def test_nothing_comes_before_info(wire: bytes) -> None:
    for later in (b"", INFO):
        handshake = machine()
        with pytest.raises(ProtocolError):
            handshake.feed(wire + later)
        assert not handshake.done


@pytest.mark.parametrize(
    "wire",
    [
        b"garbage\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"INFO []\r\n",
        b"INFO {\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail ESMTP\r\n",
    ],
)
def test_no_nats_server(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        machine().feed(wire)


def test_a_message_before_the_pong() -> None:
    for wire in (MSG, b"+OK\r\n" + MSG + b"PONG\r\n"):
        handshake = greeted()
        with pytest.raises(ProtocolError, match="message"):
            handshake.feed(wire)
        assert not handshake.done


@pytest.mark.parametrize("wire", [b"PONG\r\n", b"+OK\r\nPONG\r\n", b"PONG\r\n" + MSG])
def test_a_pong_that_came_with_info_answers_no_ping_of_ours(wire: bytes) -> None:
    # Nothing was sent yet. Taken for an answer it would end the handshake before the server has
    # seen the credentials, and the real PONG would then confirm messages that never arrived.
    handshake = machine()
    with pytest.raises(ProtocolError):
        handshake.feed(INFO + wire)
    assert not handshake.done


def test_garbage_behind_the_pong_ends_the_link() -> None:
    with pytest.raises(ProtocolError):
        greeted().feed(b"PONG\r\ngarbage\r\n")


def test_garbage_behind_info_sends_nothing() -> None:
    with pytest.raises(ProtocolError):
        machine().feed(INFO + b"garbage\r\n")


# -- the user's callables ----------------------------------------------------------------


def test_connect_fields_that_raise_are_heard_and_nothing_is_done() -> None:
    class Vault(Exception):
        pass

    def ask(info: ServerInfo) -> dict[str, Any]:
        raise Vault

    handshake = machine(ask)
    with pytest.raises(Vault):
        handshake.feed(INFO)
    assert not handshake.done


def test_connect_fields_are_not_asked_of_a_server_that_talks_garbage() -> None:
    asked: list[ServerInfo] = []

    def ask(info: ServerInfo) -> dict[str, Any]:
        asked.append(info)
        return {}

    with pytest.raises(ProtocolError):
        machine(ask).feed(INFO + b"garbage\r\n")
    assert asked == []
