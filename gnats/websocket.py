"""WebSocket framing, as a machine: bytes in, bytes out. No socket. wsproto does the framing.

The upgrade, then binary frames in both directions; what the frames hold is one stream of bytes
for the parser. Source: RFC 6455, RFC 7692 (permessage-deflate).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from .errors import Error, MissingExtraError, ProtocolError, TransportError, UnexpectedEOF
from .url import ServerURL

HeaderLines = Mapping[str, "str | list[str]"]

# Compressed bytes that are inflated in one step: at most a thousand times as many come of them.
SLICE = 1024
# What one ``feed`` returns at most, give or take a slice, and how many frames it looks at: neither
# a bomb nor a flood of empty frames keeps the process busy for long, or takes its memory.
MOST_HELD = 256 * 1024
MOST_EVENTS = 1000


# What wsproto and h11 raise over an answer that they did not foresee.
_BROKEN = (ValueError, IndexError, KeyError, TypeError, AssertionError)


class WebSocket:
    """The client's side of one WebSocket. Never switches."""

    def __init__(self, url: ServerURL, headers: HeaderLines | None, compression: bool) -> None:
        self._wsproto = _wsproto()
        self._connection = self._wsproto.WSConnection(self._wsproto.ConnectionType.CLIENT)
        self._url = url
        self._headers = headers or {}
        self._compression = compression
        self._replies = b""
        self._end: Error | None = None
        self._unfed = b""
        #: Whether both sides agreed to compress.
        self.compresses = False
        #: Whether ``feed(b"")`` may have more to return.
        self.has_more = False
        self.is_open = False

    def request(self) -> bytes:
        """The upgrade request; send it first."""
        extensions = []
        if self._compression:
            # No context from one message to the next: it is what nats-server speaks, and it
            # bounds the memory of both sides.
            extensions.append(
                _deflate(self._wsproto)(
                    client_no_context_takeover=True, server_no_context_takeover=True
                )
            )
        request = self._wsproto.events.Request(
            host=self._url.address,
            target=self._url.path or "/",
            extensions=extensions,
            extra_headers=self._header_lines(),
        )
        try:
            return self._send(request)
        except (*_BROKEN, _h11().LocalProtocolError):
            pass  # its words may quote a header, and so a secret
        raise ProtocolError("the upgrade request cannot be made of this host, path and headers")

    def feed(self, data: bytes) -> bytes:
        """Take the server's bytes; return what its frames held, or a part of it when ``has_more``
        is set. What ends the WebSocket is raised by ``check``, once what came before it has been
        read."""
        held: list[bytes | bytearray] = []
        self.has_more = False
        try:
            self._take(data, held)
        except Error as exc:
            self._end = exc
        except self._wsproto.utilities.RemoteProtocolError as exc:
            self._end = ProtocolError(f"the server broke the WebSocket protocol: {exc}")
        except (*_BROKEN, self._wsproto.utilities.LocalProtocolError):
            self._end = ProtocolError("the server broke the WebSocket protocol")
        return b"".join(held)

    def _take(self, data: bytes, held: list[bytes | bytearray]) -> None:
        left, self._unfed = self._unfed + data, b""
        size = count = 0
        while True:
            step = SLICE if self.compresses else len(left)
            if left:
                self._connection.receive_data(left[:step])
                left = left[step:]
            for event in self._connection.events():
                before = len(held)
                self._on_event(event, held)
                count += 1
                size += sum(map(len, held[before:]))
                if count >= MOST_EVENTS or size >= MOST_HELD:
                    self.has_more, self._unfed = True, left
                    return
            if not left:
                return

    def check(self) -> None:
        """Raise TransportError when the server refused the upgrade, UnexpectedEOF when it said
        goodbye, ProtocolError."""
        if self._end is not None:
            raise self._end

    def frame(self, data: bytes) -> tuple[bytes, int]:
        """*data* as one binary frame, masked, behind what the server must be answered; and how many
        bytes stand before the first that holds anything of *data*. Raises what ``check`` does."""
        self.check()
        replies, self._replies = self._replies, b""
        if self.compresses:
            return replies + self._send(self._wsproto.events.BytesMessage(data=data)), len(replies)
        frame = replies + masked_frame(data, os.urandom(4))
        return frame, len(frame) - len(data)

    @property
    def owes_reply(self) -> bool:
        """Whether the server asked for something; the next ``frame`` carries the answer."""
        return bool(self._replies)

    # -- inside --------------------------------------------------------------------------

    def _on_event(self, event: Any, held: list[bytes | bytearray]) -> None:
        events = self._wsproto.events
        if isinstance(event, events.BytesMessage):
            held.append(event.data)
        elif isinstance(event, events.TextMessage):
            held.append(event.data.encode())
        elif isinstance(event, events.AcceptConnection):
            # One named twice would inflate everything twice.
            if len(event.extensions) > 1:
                raise ProtocolError("the server accepted more WebSocket extensions than one")
            self.is_open = True
            self.compresses = bool(event.extensions)
        elif isinstance(event, events.Ping):
            # Only the last is answered (RFC 6455, 5.5.3): one who never reads heaps up nothing.
            self._replies = self._send(event.response())
        elif isinstance(event, events.CloseConnection):
            # A frame that cannot be read is told in the same way, but leaves the state as it was.
            if self._connection.state is self._wsproto.connection.ConnectionState.OPEN:
                raise ProtocolError(f"the server broke the WebSocket protocol: {event.reason}")
            raise UnexpectedEOF(
                f"the server closed the WebSocket ({event.code} {event.reason or ''!r})"
            )
        elif isinstance(event, events.RejectConnection):
            raise TransportError(f"the server refused the WebSocket: HTTP {event.status_code}")

    def _send(self, event: Any) -> bytes:
        """The bytes of *event*. An error of wsproto's quotes the event, and so a password: it is
        not shown."""
        try:
            return bytes(self._connection.send(event))
        except self._wsproto.utilities.LocalProtocolError:
            pass
        raise ProtocolError("the WebSocket cannot carry this any more")

    def _header_lines(self) -> list[tuple[bytes, bytes]]:
        lines = []
        for name, values in self._headers.items():
            for value in [values] if isinstance(values, str) else values:
                lines.append((name.encode("latin-1"), value.encode("latin-1")))
        return lines


def masked_frame(data: bytes, key: bytes) -> bytes:
    """One whole binary frame of a client (RFC 6455, 5.2 and 5.3).

    The one part of the framing that is done here: wsproto masks 64 KiB in 600 µs, and one
    exclusive or of two large numbers takes 20.
    """
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 0x82, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x82, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x82, 0x80 | 127, size)
    mask = (key * (size // 4 + 1))[:size]
    masked = int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")
    return b"".join((head, key, masked.to_bytes(size, "little")))


def _deflate(wsproto: Any) -> Any:
    """wsproto's permessage-deflate, which takes a control frame between two frames of a compressed
    message for the message's end."""

    class Deflate(wsproto.extensions.PerMessageDeflate):  # type: ignore[misc]
        def frame_inbound_complete(self, proto: Any, fin: bool) -> Any:
            is_control = not getattr(self, "_inbound_is_compressible", True)
            if is_control and getattr(self, "_inbound_compressed", None):
                return None
            return super().frame_inbound_complete(proto, fin)

    return Deflate


def _wsproto() -> Any:
    # Imported when the first WebSocket is dialled: nobody else shall pay for it, or need it.
    try:
        import wsproto
        import wsproto.connection
        import wsproto.extensions
        import wsproto.utilities
    except ImportError as exc:
        raise MissingExtraError("a WebSocket (ws:// or wss://)", "websocket") from exc
    return wsproto


def _h11() -> Any:
    import h11  # comes with wsproto

    return h11


def require() -> None:
    """Raise MissingExtraError when the package for it is not there."""
    _wsproto()
