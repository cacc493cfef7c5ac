"""Numbered messages: a payload that says its number, and whether a byte was changed on its way.

It imports nothing of the rest: the application on nats-py has it, too, in its own process.
"""

from __future__ import annotations

import zlib


def numbered(number: int) -> bytes:
    """The payload of that number."""
    text = f"{number} {'x' * (number * 7 % 60)}"
    return f"{text} {zlib.crc32(text.encode()):08x}".encode()


def read_number(payload: bytes) -> int | None:
    """The number; None when this is not what was sent. What follows a line feed is padding."""
    text, _, check = payload.partition(b"\n")[0].rpartition(b" ")
    if f"{zlib.crc32(text):08x}".encode() != check:
        return None
    return int(text.split(b" ", 1)[0])
