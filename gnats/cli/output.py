"""Standard output for results: in order, in batches, and never in the way of the connection.

Writing waits in gevent's thread pool: while whoever reads us is slow, PINGs are still answered.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from datetime import datetime, timezone
from typing import Any

import gevent
from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.notices import harmless, is_terminal
from gnats.cli.threads import in_thread

_MOST = 4 * 1024 * 1024  # bytes that wait; then who writes more waits, too
_PATIENCE = 2.0  # seconds at the end for a reader that takes nothing


class Output:
    """Bytes to standard output. One greenlet writes what has come together, then ends."""

    def __init__(self) -> None:
        if sys.stdout is None:  # `>&-`
            raise exits.CommandError("standard output is closed: there is nowhere to write to")
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()
        self._chunks: list[bytes] = []
        self._size = 0
        self._writer: gevent.Greenlet[..., None] | None = None
        self._roomy = Event()
        self._error: OSError | None = None
        #: Set when standard output takes no more.
        self.closed = Event()

    def write(self, data: bytes) -> None:
        """Take *data*. Switches only when much waits. Raises what ``check`` raises."""
        self.check()
        self._chunks.append(data)
        self._size += len(data)
        if self._writer is None:
            self._writer = gevent.spawn(self._run)
        while self._size > _MOST and self._error is None:
            self._roomy.clear()
            self._roomy.wait()

    def write_json(self, facts: dict[str, Any]) -> None:
        """*facts* as one line of JSON."""
        # What is no UTF-8 stays what it was, as an escape; so does what would command a terminal.
        line = json.dumps(facts, ensure_ascii=is_terminal(sys.stdout))
        self.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def finish(self, patience: float | None = None) -> None:
        """Until all is written, or *patience* seconds long. Switches. Raises as ``check``."""
        if self._writer is not None:
            self._writer.join(patience)
        self.check()

    def check(self) -> None:
        """Raise OutputClosed when nobody reads any more, OutputFailed for another failure."""
        if isinstance(self._error, BrokenPipeError):
            raise exits.OutputClosed from self._error
        if self._error is not None:
            reason = self._error.strerror
            raise exits.OutputFailed(f"standard output: {reason}") from self._error

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish; when something went wrong, or we were interrupted, with little patience."""
        if kind is None:
            self.finish()
        else:
            with contextlib.suppress(exits.OutputClosed, exits.OutputFailed):
                self.finish(_PATIENCE)

    def _run(self) -> None:
        while self._chunks:
            batch, self._chunks = b"".join(self._chunks), []
            try:
                in_thread(_write_all, self._descriptor, batch)
            except OSError as exc:
                self._error = exc
                self.closed.set()
            self._size -= len(batch)
            self._roomy.set()
        self._writer = None


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# -- how a message looks -----------------------------------------------------------------------


def as_json(msg: gnats.Msg, **more: Any) -> dict[str, Any]:
    """*msg* as what JSON can hold: ``data`` is text, or ``data_base64`` what is no UTF-8."""
    facts: dict[str, Any] = {**more, "subject": msg.subject}
    if msg.reply:
        facts["reply"] = msg.reply
    headers = _headers_of(msg)
    if isinstance(headers, str):
        facts["headers_error"] = headers
    elif headers is not None:
        facts["headers"] = {name: headers.get_all(name) for name, _ in headers.pairs()}
        if headers.status is not None:
            facts["status"] = headers.status
    facts["time"] = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    try:
        facts["data"] = msg.data.decode("utf-8")
    except UnicodeDecodeError:
        facts["data_base64"] = base64.b64encode(msg.data).decode("ascii")
    return facts


def as_text(msg: gnats.Msg, title: str) -> bytes:
    """*msg* for a person. On a terminal nothing in it can command the terminal."""
    reply = f', reply to "{msg.reply}"' if msg.reply else ""
    head = [f'{title} on "{msg.subject}"{reply}']
    headers = _headers_of(msg)
    if isinstance(headers, str):
        head += [f"({headers})", ""]
    elif headers is not None:
        if headers.status is not None:
            head.append(f"{headers.status} {headers.description}".rstrip())
        head += [f"{name}: {value}" for name, value in headers.pairs()]
        head.append("")
    lines = "\n".join(head).encode("utf-8", "replace")
    text = lines + b"\n" + msg.data + b"\n\n"
    return _harmless(text) if is_terminal(sys.stdout) else text


def _headers_of(msg: gnats.Msg) -> gnats.Headers | str | None:
    """Its headers; or why they cannot be read, which is no reason not to show the message."""
    try:
        return msg.headers
    except gnats.errors.ProtocolError as exc:
        return str(exc)


def as_raw(msg: gnats.Msg) -> bytes:
    """The payload and the end of a line."""
    return msg.data + b"\n"


def _harmless(data: bytes) -> bytes:
    return harmless(data.decode("utf-8", "backslashreplace")).encode("utf-8", "replace")
