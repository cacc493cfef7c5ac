"""What an -ERR means: one table, from the server's words to an error and to "is the link over?".

Pure. The words are compared without regard to case. Each row tells from which versions of
nats-server we have had them, in a test or by provoking them: 2.10.25, 2.11.11, 2.12.8, 2.14.6 and
2.15.1 were asked. The other rows are words of its documentation and of other clients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    Error,
    MaxConnectionsError,
    PermissionsError,
    SecureConnRequiredError,
    ServerError,
    StaleConnectionError,
)


class Refusal(NamedTuple):
    """An -ERR, read: the error it means, and whether the server closes the link with it."""

    error: Error
    closes: bool


class Row(NamedTuple):
    """Words at the beginning of an -ERR, and the error that they mean."""

    words: str
    make: Callable[[str], Error]
    seen: str  # the versions of nats-server that we have had them from


_SEEN = "2.10-2.15"
_UNSEEN = ""

# First match wins. The server closes the link on all of these.
CLOSING = [
    Row("user authentication expired", AuthenticationExpiredError, _SEEN),
    Row("user authentication revoked", AuthenticationExpiredError, _SEEN),
    Row("account authentication expired", AuthenticationExpiredError, _SEEN),
    Row("authentication expired", AuthenticationExpiredError, _UNSEEN),
    Row("authentication revoked", AuthenticationExpiredError, _UNSEEN),
    Row("authorization violation", AuthorizationError, _SEEN),
    Row("authentication timeout", AuthorizationError, _SEEN),
    Row("authorization", AuthorizationError, _UNSEEN),
    Row("authentication", AuthorizationError, _UNSEEN),
    Row("maximum connections exceeded", MaxConnectionsError, _SEEN),
    Row("maximum account active connections exceeded", MaxConnectionsError, _SEEN),
    Row("stale connection", lambda text: StaleConnectionError(f"the server says: {text}"), _SEEN),
    Row("secure connection - tls required", SecureConnRequiredError, _UNSEEN),
    Row("maximum payload", ServerError, _SEEN),
    Row("maximum control line exceeded", ServerError, _SEEN),
    Row("parser error", ServerError, _UNSEEN),
    Row("unknown protocol operation", ServerError, _SEEN),
    Row("slow consumer", ServerError, _UNSEEN),
    Row("connection throttling", ServerError, _UNSEEN),
    Row("cluster name", ServerError, _UNSEEN),
    Row("attempted to connect to", ServerError, _SEEN),
    Row("server shutdown", ServerError, _UNSEEN),
    Row("no responders requires headers", ServerError, _SEEN),
]

# Of the words that become a plain ServerError, those that no frame of ours has caused.
_NOT_OUR_FRAME = (
    "slow consumer",
    "connection throttling",
    "cluster name",
    "attempted to connect to",
    "server shutdown",
)

_PERMISSION = re.compile(
    r"permissions violation for (?P<operation>publish|subscription)"
    r"(?: with reply of)? (?:to )?\"(?P<subject>(?:[^\"\\]|\\.)*)\""
    r"(?: using queue \"(?P<queue>(?:[^\"\\]|\\.)*)\")?",
    re.IGNORECASE | re.ASCII,
)
# A name is quoted as Go's %q does it. The last is a backslash or a quote, or what %q never writes.
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4})|(.))")
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def read_refusal(text: str) -> Refusal:
    """Read the words of an -ERR. Words that the table does not know close nothing by
    themselves: if the server then closes the link, they are the cause.
    """
    permission = _PERMISSION.search(text)
    if permission:
        operation = permission["operation"].lower()
        return Refusal(
            PermissionsError(
                text,
                operation,
                _unquote(permission["subject"]),
                _unquote(permission["queue"] or ""),
            ),
            closes=False,
        )
    lowered = text.lower()
    if lowered.startswith("permissions violation"):
        return Refusal(PermissionsError(text, "", ""), closes=False)
    for row in CLOSING:
        if lowered.startswith(row.words):
            return Refusal(row.make(text), closes=True)
    return Refusal(ServerError(text), closes=False)


def blames_a_frame(cause: Exception) -> bool:
    """Whether a link ended over something that we sent, and would end over it again."""
    if type(cause) is not ServerError:
        return False
    return not cause.text.lower().startswith(_NOT_OUR_FRAME)


def _unquote(quoted: str) -> str:
    """The name that the server has quoted: it must be the one that we know it by."""
    return _ESCAPED.sub(_unescape, quoted)


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else _CONTROLS.get(match[4], match[4])
