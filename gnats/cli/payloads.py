"""Where payloads come from: an argument, a file, standard input, whole or line by line.

Reading waits in gevent's thread pool, so that the connection stays alive while a pipe is silent.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from io import FileIO

from gnats.cli import exits
from gnats.cli.flags import header
from gnats.cli.notices import is_terminal, say
from gnats.cli.threads import in_thread

_CHUNK = 64 * 1024  # bytes: what a pipe holds

#: The usual reason for a word too many.
SEVERAL_WORDS = "a payload of several words needs quotes"


def add_payload(parser: argparse.ArgumentParser, lines: bool = False) -> None:
    """The payload's arguments, and the headers'."""
    parser.add_argument(
        "payload",
        nargs="?",
        help="the payload; - or nothing: standard input. {{Count}}, {{Time}}, {{Unix}}, {{ID}} "
        "and {{UnixNano}} are filled in",
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="read the payload from FILE")
    if lines:
        parser.add_argument(
            "-l", "--lines", action="store_true", help="each line is a message of its own"
        )
    add_headers(parser)


def add_headers(parser: argparse.ArgumentParser) -> None:
    """``-H``, as often as wanted."""
    parser.add_argument(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        type=header,
        action="append",
        default=[],
        help="a header; may be repeated",
    )


def check_payload(arguments: argparse.Namespace, count: int) -> None:
    """Before anything is begun. Raises CommandError for two sources, and a file that cannot be
    opened."""
    given = arguments.payload not in (None, "-")
    if given and arguments.file is not None:
        raise exits.CommandError("either a payload or --file, not both", exits.USAGE)
    if getattr(arguments, "lines", False) and (given or count != 1):
        raise exits.CommandError(
            "--lines reads a file or standard input, and counts by itself", exits.USAGE
        )
    path = arguments.file
    if path not in (None, "-") and not stat.S_ISFIFO(_mode(path)):  # a pipe is opened only once
        with _opened(path):
            pass


def is_typed(arguments: argparse.Namespace) -> bool:
    """Whether a person types the payload."""
    piped = arguments.payload in (None, "-") and arguments.file in (None, "-")
    return piped and is_terminal(sys.stdin)


def payloads(arguments: argparse.Namespace, count: int, most: int) -> Iterator[bytes]:
    """Each payload to send: *count* times the same, or every line. Switches while it reads.

    Raises CommandError for a file that cannot be read, and one that is longer than *most*
    bytes: before all of it is here.
    """
    if getattr(arguments, "lines", False):
        yield from _lines(arguments.file, most)
    elif arguments.payload not in (None, "-"):
        for number in range(1, count + 1):
            yield fill_in(arguments.payload, number)
    else:
        yield from itertools.repeat(_whole(arguments.file, most), count)


def fill_in(template: str, number: int, request: bytes = b"") -> bytes:
    """The text of an argument with its placeholders filled in, as `nats pub` does."""
    if "{{" not in template:
        return template.encode("utf-8", "surrogateescape")
    values = {
        "Count": str(number),
        "Time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "Unix": str(int(time.time())),
        "UnixNano": str(time.time_ns()),
        "ID": uuid.uuid4().hex,
    }
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    before, *rest = (
        part.encode("utf-8", "surrogateescape") for part in template.split("{{Request}}")
    )
    return request.join([before, *rest])


def _whole(path: str | None, most: int) -> bytes:
    parts, size = [], 0
    for chunk in _chunks(path):
        parts.append(chunk)
        size += len(chunk)
        _check_size(size, most)
    return b"".join(parts)


def _lines(path: str | None, most: int) -> Iterator[bytes]:
    """Each line without its end; a last one without an end counts."""
    begun, size = [], 0  # of a line whose end has not come
    for chunk in _chunks(path):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        for line in others:
            whole = b"".join(begun)
            yield whole[:-1] if whole.endswith(b"\r") else whole
            begun, size = [line], len(line)
        _check_size(size, most)
    if size:
        yield b"".join(begun)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise exits.CommandError(f"a payload is over the {most} bytes that the server takes")


def _chunks(path: str | None) -> Iterator[bytes]:
    """What comes, as it comes."""
    if path not in (None, "-"):
        with _opened(str(path)) as file:
            yield from iter(lambda: in_thread(file.read, _CHUNK), b"")
        return
    if sys.stdin is None or sys.stdin.closed:
        return
    if is_terminal(sys.stdin):
        say("the payload, please; Ctrl-D ends it", "faint")
    descriptor = sys.stdin.fileno()
    yield from iter(lambda: in_thread(os.read, descriptor, _CHUNK), b"")


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as exc:
        raise exits.CommandError(f"--file {path}: {exc.strerror}") from exc


@contextlib.contextmanager
def _opened(path: str) -> Iterator[FileIO]:
    try:
        with in_thread(open, path, "rb", 0) as file:  # a pipe waits for its writer
            yield file
    except OSError as exc:
        raise exits.CommandError(f"--file {path}: {exc.strerror}") from exc
