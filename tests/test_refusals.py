"""What an -ERR means: the server's words, the error, and whether the link is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats.errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    Error,
    MaxConnectionsError,
    PermissionsError,
    SecureConnRequiredError,
    ServerError,
    StaleConnectionError,
)
from gnats.refusals import blames_a_frame, read_refusal

pytestmark = pytest.mark.sansio

# As nats-server 2.10 to 2.12 spells them (server/errors.go, and the texts sent by client.go).
CLOSING: list[tuple[str, type[Error]]] = [
    ("User Authentication Expired", AuthenticationExpiredError),
    ("User Authentication Revoked", AuthenticationExpiredError),
    ("Account Authentication Expired", AuthenticationExpiredError),
    ("Authorization Violation", AuthorizationError),
    ("Authentication Timeout", AuthorizationError),
    ("maximum connections exceeded", MaxConnectionsError),
    ("maximum account active connections exceeded", MaxConnectionsError),
    ("Stale Connection", StaleConnectionError),
    ("Secure Connection - TLS Required", SecureConnRequiredError),
    ("Maximum Payload Violation", ServerError),
    ("maximum control line exceeded", ServerError),
    ("Unknown Protocol Operation", ServerError),
    ("Parser Error", ServerError),
    ("Slow Consumer", ServerError),
    ("Connection throttling is active. Please try again later.", ServerError),
    ("attempted to connect to route port", ServerError),
    ("Server Shutdown", ServerError),
    ("no responders requires headers support", ServerError),
]

OPEN: list[tuple[str, type[Error]]] = [
    ("maximum subscriptions exceeded", ServerError),
    ("Invalid Publish Subject", ServerError),
    ("Invalid Subject", ServerError),
    ("words that no table knows", ServerError),
    ("", ServerError),
]


@pytest.mark.parametrize("spell", [str, str.lower, str.upper, str.title], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("text", "kind", "closes"),
    [(text, kind, True) for text, kind in CLOSING] + [(text, kind, False) for text, kind in OPEN],
)
def test_table(text: str, kind: type[Error], closes: bool, spell: object) -> None:
    words = spell(text)  # type: ignore[operator]
    refusal = read_refusal(words)
    assert type(refusal.error) is kind
    assert refusal.closes is closes
    assert words in str(refusal.error)
    if isinstance(refusal.error, ServerError):
        assert refusal.error.text == words


@pytest.mark.parametrize(
    ("text", "operation", "subject", "queue"),
    [
        ('Permissions Violation for Publish to "a.b"', "publish", "a.b", ""),
        ('Permissions Violation for Publish with Reply of "r.1"', "publish", "r.1", ""),
        ('Permissions Violation for Subscription to "a.>"', "subscription", "a.>", ""),
        (
            'Permissions Violation for Subscription to "A.b" using queue "Q.1"',
            "subscription",
            "A.b",
            "Q.1",
        ),
        ('permissions violation for subscription to "A"', "subscription", "A", ""),
        ('PERMISSIONS VIOLATION FOR PUBLISH TO "A"', "publish", "A", ""),
        ('Permissions Violation for Publish to ""', "publish", "", ""),
        ('Permissions Violation for Publish to "it\'s"', "publish", "it's", ""),
        ('Permissions Violation for Subscription to "grüße"', "subscription", "grüße", ""),
        ("Permissions Violation", "", "", ""),
        ("permissions violation for something new", "", "", ""),
    ],
)
def test_permissions(text: str, operation: str, subject: str, queue: str) -> None:
    error, closes = read_refusal(text)
    assert not closes
    assert type(error) is PermissionsError
    assert (error.operation, error.subject, error.queue) == (operation, subject, queue)
    assert error.text == text


@pytest.mark.parametrize(
    ("quoted", "subject"),
    [
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', "a\\b"),
        (r'"\"\\\""', '"\\"'),
        (r'"a\u200bb"', "a\u200bb"),
        (r'"a\u00ad\u00AD"', "a\xadu00AD"),  # Go writes small hexadecimal digits
        (r'"\U000e0001\ufeff"', "\U000e0001\ufeff"),
        (r'"\x01\x7f\a\b\f\n\r\t\v"', "\x01\x7f\a\b\f\n\r\t\v"),
        (r'"\Uffffffff\u12\xg\q"', "Uffffffffu12xgq"),
    ],
)
def test_a_subject_that_the_server_quotes_as_go_does(quoted: str, subject: str) -> None:
    # A permission error ends the subscription that it names: the name must be the right one.
    text = f'Permissions Violation for Subscription to {quoted} using queue "q"'
    error, _ = read_refusal(text)
    assert isinstance(error, PermissionsError)
    assert (error.subject, error.queue) == (subject, "q")


@pytest.mark.parametrize(
    "text",
    [
        'Permissions Violation for publi\u017fh to "a"',
        'Permissions Violation for Subscr\u0131ption to "a"',
    ],
)
def test_letters_that_are_the_same_but_for_their_case_in_unicode_only(text: str) -> None:
    error, _ = read_refusal(text)
    assert isinstance(error, PermissionsError)
    assert error.operation == ""


def test_a_subject_that_looks_like_other_words() -> None:
    error, closes = read_refusal(
        'Permissions Violation for Publish to "Authorization.Violation.using.queue"'
    )
    assert isinstance(error, PermissionsError)
    assert error.subject == "Authorization.Violation.using.queue"
    assert not closes


def test_each_error_is_a_new_one() -> None:
    assert read_refusal("Stale Connection").error is not read_refusal("Stale Connection").error


@given(st.text(max_size=60))
def test_any_words(text: str) -> None:
    error, closes = read_refusal(text)
    assert isinstance(error, Error)
    assert isinstance(closes, bool)


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("Maximum Payload Violation", True),
        ("maximum control line exceeded", True),
        ("Unknown Protocol Operation", True),
        ("Parser Error", True),
        ("message headers not supported", True),
        ("Slow Consumer", False),
        ("Server Shutdown", False),
        ("Connection throttling is active. Please try again later.", False),
        ("Authorization Violation", False),
        ("maximum connections exceeded", False),
        ('Permissions Violation for Publish to "a"', False),
        ("Stale Connection", False),
    ],
)
def test_which_refusals_blame_a_frame(text: str, blamed: bool) -> None:
    assert blames_a_frame(read_refusal(text).error) is blamed


def test_a_broken_socket_blames_no_frame() -> None:
    assert not blames_a_frame(OSError())
