"""Unique ids for inboxes and requests. Words only: no I/O but the system's randomness.

The NUID scheme of the NATS clients: 12 random characters from the system, then 10 that count
up by a random step, 22 base-62 characters in all; a new random part when the count runs out.
"""

from __future__ import annotations

import secrets

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE = len(_DIGITS)
_PREFIX_LENGTH = 12
_COUNT_LENGTH = 10
_COUNT_END = _BASE**_COUNT_LENGTH
# Steps of at least 33 leave no two ids that differ in their last character alone; the same
# bounds as the other clients, so that ids look alike in logs.
_MIN_STEP, _MAX_STEP = 33, 333


class NUID:
    """A generator of ids, unique across processes with overwhelming odds. Never switches."""

    __slots__ = ("_count", "_prefix", "_step")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Take a new random part, as a forked child must."""
        self._prefix = "".join(secrets.choice(_DIGITS) for _ in range(_PREFIX_LENGTH))
        self._step = _MIN_STEP + secrets.randbelow(_MAX_STEP - _MIN_STEP)
        self._count = secrets.randbelow(_COUNT_END)

    def next(self) -> str:
        """The next id: 22 characters, letters and digits only."""
        self._count += self._step
        if self._count >= _COUNT_END:
            self.reset()
        return self._prefix + _base62(self._count, _COUNT_LENGTH)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, _BASE)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
