"""What the client says: values to bytes. Pure; every name given here was checked before.

Source: client protocol page (PUB, HPUB, SUB, UNSUB, CONNECT, PING, PONG).
"""

from __future__ import annotations

import json
from typing import Any

CRLF = b"\r\n"
PING = b"PING\r\n"
PONG = b"PONG\r\n"

#: The largest number of messages behind which a server ends a subscription: it reads nine digits,
#: and takes a longer number for an order to end it now.
LARGEST_LIMIT = 999_999_999

_MESSAGE_STARTS = (b"PUB ", b"HPUB ")


class _Sizes(dict[int, bytes]):
    """The decimal form of a size with its line end, kept: formatting it costs 100 ns a message."""

    # Larger payloads cost more to copy than to format, and would fill memory with numbers.
    LARGEST_KEPT = 8192

    def __missing__(self, size: int) -> bytes:
        line = b"%d\r\n" % size
        if size <= self.LARGEST_KEPT:
            self[size] = line
        return line


SIZES = _Sizes()


def pub_head(subject: bytes) -> bytes:
    """The part of a PUB before the size: made once per subject, kept by the caller."""
    return b"PUB %b " % subject


def pub(head: bytes, reply: bytes, payload: bytes) -> bytes:
    """One PUB frame, from its head."""
    if reply:
        return b"".join((head, reply, b" ", SIZES[len(payload)], payload, CRLF))
    return b"".join((head, SIZES[len(payload)], payload, CRLF))


def hpub(head: bytes, reply: bytes, block: bytes, payload: bytes) -> bytes:
    """One HPUB frame, from the head of a PUB and an encoded header block."""
    if reply:
        head = b"%b%b " % (head, reply)
    sizes = b"%d %d\r\n" % (len(block), len(block) + len(payload))
    return b"".join((b"H", head, sizes, block, payload, CRLF))


def sub(sid: int, subject: bytes, queue: bytes = b"") -> bytes:
    if queue:
        return b"SUB %b %b %d\r\n" % (subject, queue, sid)
    return b"SUB %b %d\r\n" % (subject, sid)


def unsub(sid: int, limit: int = 0) -> bytes:
    """UNSUB now, or after *limit* more messages."""
    return b"UNSUB %d %d\r\n" % (sid, limit) if limit else b"UNSUB %d\r\n" % sid


def connect(fields: dict[str, Any]) -> bytes:
    return b"CONNECT %b\r\n" % json.dumps(fields, separators=(",", ":")).encode()


def is_message(frame: bytes) -> bool:
    """Whether a frame is a published message: the ones that outlive a link."""
    return frame.startswith(_MESSAGE_STARTS)


def message_size(frame: bytes) -> int:
    """Header and payload bytes of a message frame, read back from its first line."""
    line = frame[: frame.index(CRLF)]
    return int(line[line.rindex(b" ") + 1 :])


def is_larger(frame: bytes, max_payload: int) -> bool:
    """Whether a message frame is over what a server with *max_payload* takes."""
    return len(frame) > max_payload and message_size(frame) > max_payload


def message_subject(frame: bytes) -> str:
    """The subject of a message frame."""
    return frame.split(b" ", 2)[1].decode()


def read_message(frame: bytes) -> tuple[str, str, bytes | None, bytes]:
    """Subject, reply, header block and payload of a message frame."""
    end = frame.index(CRLF)
    words = frame[:end].decode().split(" ")
    body = frame[end + 2 : -2]
    size = int(words[-2]) if words[0] == "HPUB" else 0
    reply = words[2] if len(words) == (5 if words[0] == "HPUB" else 4) else ""
    return words[1], reply, body[:size] if words[0] == "HPUB" else None, body[size:]


def has_headers(frame: bytes) -> bool:
    """Whether a message frame carries headers."""
    return frame.startswith(b"HPUB ")
