"""Words for people, on standard error: in colour on a terminal, never a credential."""

from __future__ import annotations

import contextlib
import os
import sys

_COLOURS = {"error": "31", "lost": "33", "back": "32", "faint": "2"}


def say(text: str, kind: str = "") -> None:
    """One line to standard error. Never raises: it may be closed."""
    colour = _COLOURS.get(kind) if is_colourful() else None
    line = f"\x1b[{colour}m{text}\x1b[0m" if colour else text
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def is_colourful() -> bool:
    """Whether standard error is a terminal that takes colours (https://no-color.org)."""
    return is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")


def is_terminal(stream: object) -> bool:
    """Whether *stream* is an open terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(stream.isatty())  # type: ignore[attr-defined]
    return False


def plural(count: int, what: str) -> str:
    """``1 message``, ``2,000 messages``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
