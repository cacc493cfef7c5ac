"""What an -ERR means: one table, from the server's words to an error and to "is the link over?".

Pure. Words as nats-server 2.10 to 2.15 sends them, compared without regard to case.
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


# First match wins. The server closes the link on all of these.
_CLOSING: list[tuple[str, Callable[[str], Error]]] = [
    ("user authentication expired", AuthenticationExpiredError),
    ("user authentication revoked", AuthenticationExpiredError),
    ("account authentication expired", AuthenticationExpiredError),
    ("authentication expired", AuthenticationExpiredError),
    ("authentication revoked", AuthenticationExpiredError),
    ("authorization violation", AuthorizationError),
    ("authentication timeout", AuthorizationError),
    ("authorization", AuthorizationError),
    ("authentication", AuthorizationError),
    ("maximum connections exceeded", MaxConnectionsError),
    ("maximum account active connections exceeded", MaxConnectionsError),
    ("stale connection", lambda text: StaleConnectionError(f"the server says: {text}")),
    ("secure connection - tls required", lambda text: SecureConnRequiredError(text)),
    ("maximum payload", ServerError),
    ("maximum control line exceeded", ServerError),
    ("parser error", ServerError),
    ("unknown protocol operation", ServerError),
    ("slow consumer", ServerError),
    ("connection throttling", ServerError),
    ("cluster name", ServerError),
    ("attempted to connect to", ServerError),
    ("server shutdown", ServerError),
    ("no responders requires headers", ServerError),
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
    for words, make in _CLOSING:
        if lowered.startswith(words):
            return Refusal(make(text), closes=True)
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
