"""Words for people, on standard error: in colour on a terminal, never a credential."""

from __future__ import annotations

import contextlib
import os
import sys

_COLOURS = {"error": "31", "lost": "33", "back": "32", "faint": "2"}


def say(text: str, kind: str = "") -> None:
    """A line or more to standard error. Never raises: it may be closed. What others have said, a
    server or a command, cannot command the terminal."""
    if sys.stderr is None:  # print would take standard output instead
        return
    text = harmless(text)
    colour = _COLOURS.get(kind) if is_colourful() else None
    line = f"\x1b[{colour}m{text}\x1b[0m" if colour else text
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def is_colourful() -> bool:
    """Whether standard error is a terminal that takes colours (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or is_dumb()
    return is_terminal(sys.stderr) and not plain


def is_dumb() -> bool:
    """Whether the terminal only writes on."""
    return os.environ.get("TERM") == "dumb"


def harmless(text: str) -> str:
    """*text* without control characters but tabs and ends of lines: they are shown, not obeyed."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def is_terminal(stream: object) -> bool:
    """Whether *stream* is an open terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(stream.isatty())  # type: ignore[attr-defined]
    return False


def plural(count: int, what: str) -> str:
    """``1 message``, ``2,000 messages``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
