"""One live link: its transport, its three greenlets, and the one reason why it ended.

A session is made anew for every link and has a generation number; a late failure of an old
one fails only the old one. It never decides what comes next: the reconnector does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import Greenlet

from .backoff import Deadline
from .buffer import OutboundBuffer
from .errors import Error, SecureConnWantedError, TimeoutError
from .flusher import Flusher
from .handshake import ConnectFields, Handshake
from .info import ServerInfo
from .keepalive import Keepalive
from .options import ConnectionOptions
from .parser import Event, Parser
from .pings import Pings
from .reader import Reader
from .transport import (
    Link,
    TLSTransport,
    Transport,
    WebSocketTransport,
    dial,
    make_context,
)
from .url import ServerURL
from .websocket import WebSocket

# Killed greenlets of a session end within a loop turn; the bound is for the unforeseen.
JOIN_TIMEOUT = 1.0


class ExitSignal:
    """The first cause of a link's end wins; later ones are no news."""

    __slots__ = ("_on_fail", "cause")

    def __init__(self, on_fail: Callable[[], None]) -> None:
        self.cause: Exception | None = None
        self._on_fail = on_fail

    def fail(self, cause: Exception) -> None:
        """End the link because of *cause*. Never switches; the owner acts."""
        if self.cause is None:
            self.cause = cause
            _forget_frames(cause)
            self._on_fail()


def _forget_frames(error: BaseException | None) -> None:
    """The cause outlives its link as ``last_error``; the megabytes in its frames need not."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Opened:
    """A link whose handshake is over: everything a session starts from."""

    __slots__ = ("early", "info", "parser", "rtt", "secure", "transport", "unproven", "url")

    def __init__(
        self,
        url: ServerURL,
        transport: Link,
        parser: Parser,
        info: ServerInfo,
        early: list[Event],
        secure: bool = False,
        rtt: float | None = None,
        unproven: tuple[str, ...] = (),
    ) -> None:
        self.url = url
        self.transport = transport
        self.parser = parser
        self.info = info
        self.early = early
        self.secure = secure  # it is TLS
        self.rtt = rtt  # seconds that the server took for its last answer
        self.unproven = unproven  # other servers, named in clear in front of TLS


def open_link(
    url: ServerURL,
    connect_fields: ConnectFields,
    options: ConnectionOptions,
    secure: bool = False,
) -> Opened:
    """Dial and shake hands within ``connect_timeout``. Switches; it leaves nothing open when it
    raises.

    *secure*: it must be TLS, whatever the URL and the options say. Raises TransportError,
    TLSError, CertificateError, TimeoutError, ProtocolError, AuthorizationError and the other
    refusals of a server, SecureConnWantedError, and what the user's callables raise.
    """
    opening = Opening(url, connect_fields, options, secure)
    deadline = Deadline(options.connect_timeout)
    limit = gevent.Timeout.start_new(deadline.remaining())
    opened = None
    try:
        opened = opening.run(deadline)
        return opened
    except gevent.Timeout as exc:
        if exc is not limit:
            raise
        raise TimeoutError(
            f"connect_timeout ({deadline.seconds} s) ran out while {opening.stage}",
            deadline.seconds,
        ) from None
    finally:
        limit.close()
        if opened is None:
            opening.abandon()


class Opening:
    """One attempt: the socket, TLS where it is wanted, the talk until the server's PONG."""

    def __init__(
        self,
        url: ServerURL,
        connect_fields: ConnectFields,
        options: ConnectionOptions,
        secure: bool,
    ) -> None:
        self._url = url
        self._options = options
        self._connect_fields = connect_fields
        self._tls = (
            secure or url.is_secure or options.tls is not None or bool(options.tls_handshake_first)
        )
        self._context: Any = None
        self._link: Link | None = None
        self.stage = "connecting"

    def run(self, deadline: Deadline) -> Opened:
        url = self._url
        first = bool(self._options.tls_handshake_first) or url.scheme == "wss"
        if self._tls and url.scheme == "ws" and not first:
            raise SecureConnWantedError(
                "TLS is wanted, and ws:// has none: use wss://; nothing was sent in clear"
            )
        if self._tls:
            self._context = make_context(self._options.tls)  # a file that is missing is told first
        transport = dial(url.host, url.port, self._options, deadline)
        self._link = transport
        if first:
            self._link = self._secured(transport)
        if url.is_websocket:
            self._link = self._upgraded(self._link)
        parser = Parser()
        handshake = Handshake(parser, self._connect_fields, tls=self._tls, secured=first)
        asked = time.monotonic()
        while not handshake.done:
            self.stage = f"waiting for the server's {handshake.stage}"
            out = handshake.feed(self._link.recv())
            if handshake.awaits_tls:
                self.stage = "shaking hands over TLS"
                self._link = self._secured(transport)
                out = handshake.secured()
            if out:
                self._link.send_all(out)
                asked = time.monotonic()
        assert handshake.info is not None
        secure = first or handshake.used_tls
        return Opened(
            self._url,
            self._link,
            parser,
            handshake.info,
            handshake.early,
            secure,
            time.monotonic() - asked,
            handshake.unproven,
        )

    def abandon(self) -> None:
        """Close what there is. Never raises, never switches."""
        if self._link is not None:
            self._link.close()

    def _upgraded(self, below: Link) -> WebSocketTransport:
        self.stage = "opening the WebSocket"
        options = self._options
        websocket = WebSocket(self._url, options.ws_connection_headers, options.ws_compression)
        link = WebSocketTransport(below, websocket)
        self._link = link  # so that it is closed whatever comes
        link.shake_hands()
        return link

    def _secured(self, transport: Transport) -> TLSTransport:
        options = self._options
        hostname = options.tls_hostname or self._url.tls_name or self._url.host
        hostname = hostname.rstrip(".")  # of a name in full, certificates do not have it
        context = self._context or make_context(options.tls)
        link = TLSTransport(transport, context, hostname)
        link.shake_hands()
        return link


class Session:
    """The reader, the flusher and the keepalive of one link."""

    def __init__(
        self,
        opened: Opened,
        generation: int,
        buffer: OutboundBuffer,
        sinks: dict[int, Any],
        ping_interval: float,
        max_pings_out: int,
        on_info: Callable[[Session, ServerInfo], None],
        on_err: Callable[[Session, str], None],
        on_restored: Callable[[], None],
        on_room: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.url = opened.url
        self.info = opened.info
        self.generation = generation
        self.exit = ExitSignal(on_exit)
        self.pings = Pings(buffer, on_room)
        self.pings.rtt = opened.rtt
        opened.transport.on_owing = self.pings.ping  # a frame of ours carries the answer
        self.restored = False  # all that the link had to be told first has left
        self.lame_duck = False
        self.left = False  # for another link, which has taken everything over: that is no loss
        self._last_words: tuple[int, Exception] | None = None
        self.lifetime = 0.0  # seconds; known once it is closed
        self._began = time.monotonic()
        self._opened = opened
        self._buffer = buffer
        self._on_restored = on_restored
        self._on_room = on_room
        self._reader = Reader(
            opened.transport,
            opened.parser,
            buffer,
            self.pings,
            sinks,
            lambda info: on_info(self, info),
            lambda text: on_err(self, text),
            self.exit.fail,
        )
        self._flusher = Flusher(opened.transport, buffer, self.pings, self._wrote, self.exit.fail)
        self._keepalive = Keepalive(
            self.pings, ping_interval, max_pings_out, lambda: self._reader.chunks, self.exit.fail
        )
        self._greenlets: list[Greenlet[..., None]] = []

    def start(self) -> None:
        """Start the three greenlets. Never switches."""
        self._greenlets = [
            gevent.spawn(self._guarded, self._reader.run, self._opened.early),
            gevent.spawn(self._guarded, self._flusher.run),
            gevent.spawn(self._guarded, self._keepalive.run),
        ]
        for greenlet in self._greenlets:
            greenlet.rawlink(self._ended)

    def disown(self) -> None:
        """In a forked child: the greenlets end in the next turn of the loop. Never switches."""
        gevent.killall(self._greenlets, block=False)
        self.pings.lost()

    def close(self) -> None:
        """End the greenlets and close the link, whatever the other side does. Switches."""
        try:
            gevent.killall(self._greenlets, block=True, timeout=JOIN_TIMEOUT)
        finally:
            self._opened.transport.close()
            self.pings.lost()
            self.lifetime = time.monotonic() - self._began

    def tap(
        self,
        see: Callable[[list[Event]], list[Event]] | None,
        written: Callable[[list[bytes]], None] | None,
    ) -> None:
        """Have *see* shown all that is read from now on, and go on with what it returns; *written*
        is shown what is written. None ends that. Never switches."""
        self._reader.tap = see
        self._flusher.tap = written

    @property
    def progress(self) -> object:
        """Another value whenever bytes have moved."""
        return self._reader.chunks, self._buffer.batches, self._buffer.offset

    def hand_on(self, events: Iterable[Event]) -> None:
        """Take *events* as if they had been read. Never switches."""
        self._reader.hand_on(events)

    def part(self, frames: list[bytes], on_pong: Callable[[bool], None]) -> None:
        """Write *frames* and what is pending, and nothing more; *on_pong* hears when the server
        has processed it. Never switches."""
        for frame in frames:
            self._buffer.append_control(frame)
        self._flusher.part(on_pong)

    def heard(self, error: Exception) -> None:
        """The server complained, in words that do not end the link by themselves."""
        self._last_words = (self._reader.chunks, error)

    @property
    def parting_words(self) -> Exception | None:
        """The complaint, if there is one, behind which nothing came but the end of the link."""
        if self._last_words is None or self._last_words[0] != self._reader.chunks:
            return None
        return self._last_words[1]

    @property
    def in_msgs(self) -> int:
        return self._reader.in_msgs

    @property
    def in_bytes(self) -> int:
        return self._reader.in_bytes

    @property
    def in_unknown(self) -> int:
        return self._reader.in_unknown

    def _wrote(self) -> None:
        self._on_room()
        if not self.restored and not self._buffer.restoring:
            self.restored = True
            self._on_restored()

    def _ended(self, _: object) -> None:
        """In the hub: a greenlet of the link is no more. Without it the link is none, whoever
        killed it; where it had told a cause before, this is no news."""
        self.exit.fail(Error("a greenlet of the link was killed"))

    def _guarded(self, run: Callable[..., None], *args: object) -> None:
        """A bug in a greenlet of ours ends the link, loudly, and never leaves it half alive."""
        try:
            run(*args)
        except Exception as exc:
            self.exit.fail(exc)
            raise
