"""The opening talk of a link, as a machine: bytes in, bytes out. No socket, no clock.

INFO → TLS where it is wanted → CONNECT+PING → PONG. CONNECT is never put out in clear when TLS
was asked for, is required by the server, or was used before on this connection; and what comes
in clear in front of TLS is one INFO line and not a byte more. Source: client protocol page, and
DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import commands
from .errors import AuthorizationError, ProtocolError, SecureConnWantedError
from .info import ServerInfo
from .parser import Err, Event, Info, Ok, Parser, Ping, Pong
from .refusals import read_refusal

# Called with the server's INFO, returns the fields of CONNECT.
ConnectFields = Callable[[ServerInfo], "dict[str, Any]"]


class Handshake:
    """Feed it what the server sends, send what it returns, until ``done``.

    Raises the error that fits: ProtocolError, SecureConnWantedError, what an -ERR means
    (AuthorizationError, ...: see ``refusals``), or whatever *connect_fields* raises. Switches
    only where *connect_fields* does.
    """

    def __init__(
        self,
        parser: Parser,
        connect_fields: ConnectFields,
        *,
        tls: bool = False,
        secured: bool = False,
    ) -> None:
        self._parser = parser
        self._connect_fields = connect_fields
        self._tls = tls  # it must be TLS
        self._secured = secured  # it is TLS
        self.info: ServerInfo | None = None
        self.done = False
        #: The link must become TLS now; call ``secured`` when it is.
        self.awaits_tls = False
        self.used_tls = False  # it did become TLS
        #: Other servers that were named in clear, in front of TLS: anybody may have put them in.
        self.unproven: tuple[str, ...] = ()
        #: What came behind the PONG in the same bytes; the reader's first work.
        self.early: list[Event] = []

    @property
    def stage(self) -> str:
        """What is being waited for, in words for an error."""
        if self.info is None:
            return "INFO"
        return "TLS handshake" if self.awaits_tls else "PONG"

    def feed(self, data: bytes) -> bytes:
        """Take the server's bytes; return what must be sent now."""
        try:
            events = self._parser.feed(data)
        except ProtocolError as exc:
            # What the server said before it broke the protocol may be the better reason.
            for event in exc.events:
                if isinstance(event, Err) and not self._precedes_tls(exc.events):
                    raise read_refusal(event.text).error from exc
            raise
        if self._is_clear:
            self._check_clear(events)
        return self._walk(events)

    def secured(self) -> bytes:
        """The link is TLS now; return what must be sent."""
        assert self.info is not None
        self.awaits_tls, self._secured, self.used_tls = False, True, True
        # They would get our credentials if only they had a certificate of their own.
        self.unproven = self.info.connect_urls
        self.info = replace(self.info, connect_urls=())
        return self._connect(self.info)

    @property
    def _is_clear(self) -> bool:
        """Whether what comes now could have been put in by anybody on the way."""
        return self.info is None and not self._secured

    def _precedes_tls(self, events: Sequence[Event]) -> bool:
        """Whether *events*, the first of the link, came in clear in front of TLS."""
        first = events[0] if events else None
        wanted = self._tls or (isinstance(first, Info) and first.info.tls_required)
        return self._is_clear and wanted

    def _check_clear(self, events: list[Event]) -> None:
        """In front of TLS: one INFO line, or a refusal."""
        first = events[0] if events else None
        if isinstance(first, Info) and self._precedes_tls(events):
            if len(events) > 1 or self._parser.pending:
                raise ProtocolError(
                    "bytes in clear follow the INFO of a server that uses TLS: not believed"
                )
        elif isinstance(first, Err) and self._tls:
            refusal = read_refusal(first.text).error
            if isinstance(refusal, AuthorizationError):
                # Believed twice, it would make us give up for good.
                raise ProtocolError("credentials were refused in clear, before TLS: not believed")

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
            self.unproven = ()
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
        if not self._secured:
            if self._tls and not (info.tls_required or info.tls_available):
                raise SecureConnWantedError
            if self._tls or info.tls_required:
                self.awaits_tls = True
                return b""
        return self._connect(info)

    def _connect(self, info: ServerInfo) -> bytes:
        return commands.connect(self._connect_fields(info)) + commands.PING
