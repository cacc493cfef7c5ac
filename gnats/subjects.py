"""What a subject, reply subject or queue name may be. Words only: text in, bytes out.

The rules of the protocol page (docs.nats.io, client protocol) and ADR-6: tokens joined by
dots, none empty, no whitespace or control characters; ``*`` and a last ``>`` are wildcards
of subscriptions. Whatever passes here can be put into a control line as it is.
"""

from __future__ import annotations

import re

from .errors import BadSubjectError

# Anything that could end or split a control line, and what Unicode calls a space: it would
# be legal bytes for the server and a trap for whoever reads the log.
_FORBIDDEN = re.compile(r"[\s\x00-\x20\x7f]")

#: Longest name in bytes. The server closes the link on a control line over 4096 bytes
#: (max_control_line); a subject, a reply and two sizes must fit in it together.
MAX_NAME = 4000


def encode_subject(subject: str) -> bytes:
    """The wire form of a subject to publish to. Raises BadSubjectError; wildcards are refused."""
    wire = _encode(subject, "subject")
    _check_tokens(subject, "subject")
    if "*" in subject or ">" in subject:
        _refuse_wildcards(subject)
    return wire


def encode_reply(reply: str) -> bytes:
    """The wire form of a reply subject. Raises BadSubjectError."""
    wire = _encode(reply, "reply subject")
    _check_tokens(reply, "reply subject")
    return wire


def encode_filter(subject: str) -> bytes:
    """The wire form of a subject to subscribe to, wildcards allowed. Raises BadSubjectError."""
    wire = _encode(subject, "subject")
    tokens = _check_tokens(subject, "subject")
    if ">" in tokens[:-1]:
        raise BadSubjectError(subject, "the wildcard '>' may only be the last token")
    return wire


def encode_queue(queue: str) -> bytes:
    """The wire form of a queue group's name. Raises BadSubjectError."""
    return _encode(queue, "queue name")


def check_control_line(*names: bytes) -> None:
    """Refuse names that fit one by one but not together in one control line."""
    if sum(map(len, names)) > MAX_NAME:
        raise BadSubjectError(
            names[0].decode(), f"with the name beside it, it is over {MAX_NAME} bytes: shorten them"
        )


def _encode(name: str, what: str) -> bytes:
    if not isinstance(name, str):
        raise BadSubjectError(name, f"a str is needed, not {type(name).__name__}", what=what)
    if not name:
        raise BadSubjectError(name, "it is empty", what=what)
    if _FORBIDDEN.search(name):
        raise BadSubjectError(name, "whitespace and control characters are forbidden", what=what)
    try:
        wire = name.encode()
    except UnicodeEncodeError:
        raise BadSubjectError(name, "it cannot be encoded as UTF-8", what=what) from None
    if len(wire) > MAX_NAME:
        raise BadSubjectError(name, f"it is over {MAX_NAME} bytes: shorten it", what=what)
    return wire


def _check_tokens(subject: str, what: str) -> list[str]:
    tokens = subject.split(".")
    if "" in tokens:
        raise BadSubjectError(subject, "a token between dots is empty", what=what)
    return tokens


def _refuse_wildcards(subject: str) -> None:
    # "a*b" is a plain token to the server; only a whole token "*" or ">" is a wildcard.
    if any(token in ("*", ">") for token in subject.split(".")):
        raise BadSubjectError(subject, "wildcards are for subscriptions; publish to one subject")
