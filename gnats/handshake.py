"""The opening talk of a link, as a machine: bytes in, bytes out. No socket, no clock.

INFO → (room for TLS here) → CONNECT+PING → PONG. CONNECT is never put out in clear when the
server requires TLS. Source: client protocol page, and DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import commands
from .errors import ProtocolError, SecureConnRequiredError
from .info import ServerInfo
from .parser import Err, Event, Info, Ok, Parser, Ping, Pong
from .refusals import read_refusal

# Called with the server's INFO, returns the fields of CONNECT.
ConnectFields = Callable[[ServerInfo], "dict[str, Any]"]


class Handshake:
    """Feed it what the server sends, send what it returns, until ``done``.

    Raises the error that fits: ProtocolError, SecureConnRequiredError, what an -ERR means
    (AuthorizationError, ...: see ``refusals``), or whatever *connect_fields* raises. Switches
    only where *connect_fields* does.
    """

    def __init__(self, parser: Parser, connect_fields: ConnectFields) -> None:
        self._parser = parser
        self._connect_fields = connect_fields
        self.info: ServerInfo | None = None
        self.done = False
        #: What came behind the PONG in the same bytes; the reader's first work.
        self.early: list[Event] = []

    @property
    def stage(self) -> str:
        """What is being waited for, in words for an error."""
        return "INFO" if self.info is None else "PONG"

    def feed(self, data: bytes) -> bytes:
        """Take the server's bytes; return what must be sent now."""
        try:
            return self._walk(self._parser.feed(data))
        except ProtocolError as exc:
            # What the server said before it broke the protocol may be the better reason.
            for event in exc.events:
                if isinstance(event, Err):
                    raise read_refusal(event.text).error from exc
            raise

    def _walk(self, events: list[Event]) -> bytes:
        out = []  # joined once: a chunk may hold thousands of PINGs
        opening = self.info is None  # our PING is not out before this walk is over
        for position, event in enumerate(events):
            if opening and self.info is not None and isinstance(event, Pong):
                raise ProtocolError("a PONG came for a PING that had not been sent yet")
            out.append(self._on_event(event))
            if self.done:
                self.early = events[position + 1 :]
                break
        return b"".join(out)

    def _on_event(self, event: Event) -> bytes:
        if isinstance(event, Err):
            raise read_refusal(event.text).error
        if isinstance(event, Info):
            first, self.info = self.info is None, event.info
            return self._answer_info(event.info) if first else b""
        if self.info is None:
            raise ProtocolError(f"the server opened with {type(event).__name__}, not with INFO")
        if isinstance(event, Pong):
            self.done = True
        elif isinstance(event, Ping):
            return commands.PONG
        elif not isinstance(event, Ok):
            raise ProtocolError("the server sent a message before the handshake was over")
        return b""

    def _answer_info(self, info: ServerInfo) -> bytes:
        if info.tls_required:
            raise SecureConnRequiredError(
                "the server requires TLS, which this connection does not use; "
                "nothing was sent in clear"
            )
        return commands.connect(self._connect_fields(info)) + commands.PING
