"""A TCP proxy that hurts the links through it, on command and to the byte, and heals them again.

It forwards bytes in order and decides nothing by itself. Of NATS it knows the end of the first
line, for the stages of a handshake; it reads no frame. Everything it does to a live link it does
in callbacks of the hub, which never wait: so a command has taken effect when it returns, and not
one byte is forwarded behind its back.
"""

from __future__ import annotations

import contextlib
import errno
import math
import re
import struct
import sys
from collections import deque
from collections.abc import Iterable
from enum import Enum
from time import monotonic
from types import TracebackType
from typing import Any, Callable, Literal, NamedTuple, TypeVar

import gevent
from gevent import get_hub, socket

from gnats.testing.ports import ReservedPort
from gnats.testing.waiting import wait_until

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["ChaosLink", "ChaosProxy"]

Direction = Literal["up", "down", "both"]
End = Literal["client", "server", "both"]
Stage = Literal["accept", "info", "connect", "pong"]

TIMEOUT = 5.0  # seconds; the default of every wait
DIAL_TIMEOUT = 5.0  # seconds that one connect to the target may take

# The most bytes, and pieces, that `delay` keeps per link and direction. A link of 300 MB/s fills
# it in 50 ms: with more delay than that its flow is slowed down to 16 MiB per delay.
DELAY_LIMIT = 16 * 1024 * 1024
_DELAY_PIECES = 64 * 1024  # small pieces cost more memory than their bytes

# One recv. On loopback 64 KiB measured 30 % slower, 256 KiB and 512 KiB no faster.
_CHUNK = 128 * 1024
_SLICE = 0.01  # seconds; a throttled flow advances in steps of this length
_LOOK_AGAIN = 0.002  # seconds between two looks whether all was delivered before an RST
_PAUSE = 0.05  # seconds without accepting, when the process has no descriptor left

_READ = 1  # the events of gevent's loops
_WRITE = 2
_NOTHING = memoryview(b"")
_REMEMBERED = 1024  # links

_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "up": ("up",),
    "down": ("down",),
    "both": ("up", "down"),
}
_ENDS: dict[str, tuple[str, ...]] = {
    "client": ("client",),
    "server": ("server",),
    "both": ("client", "server"),
}
_STAGES = {stage: stage for stage in ("accept", "info", "connect", "pong")}

T = TypeVar("T")


class Faults:
    """What can be done to one link, or, called on the proxy, to every link that is live now.

    Directions are "up" (client to server), "down" and "both". A fault stays until `heal` or the
    end of the link; the same fault again replaces the first, and so do `blackhole` and `swallow`
    each other; different ones work together. No method switches, none waits, and each has taken
    effect when it returns. What the kernel has taken before is on its way all the same. On a link
    that has ended nothing happens. A wrong argument raises ValueError or TypeError, which names
    it.
    """

    def _affected(self) -> list[ChaosLink]:
        raise NotImplementedError

    def _flows(self, direction: str) -> list[_Flow]:
        names = _choice("direction", direction, _DIRECTIONS)
        return [link._flow[name] for link in self._affected() for name in names]

    # -- ending a link ------------------------------------------------------------------------

    def finish(self, side: End = "both") -> None:
        """End the link with FIN: each side reads an end of stream, and no reset follows.

        What was not forwarded yet is lost. *side* "client" or "server" ends only that side; the
        other is told nothing: its connection stays open and silent until `heal`, which resets it.
        Never switches.
        """
        names = _choice("side", side, _ENDS)
        for link in self._affected():
            link._leave(names, _Side.finish)

    def reset(self, side: End = "both") -> None:
        """End the link with RST. *side* as for `finish`. Never switches."""
        names = _choice("side", side, _ENDS)
        for link in self._affected():
            link._leave(names, _Side.reset)

    def half_open(self) -> None:
        """The server's side is closed; the client is never told, and nothing is read from it.

        The same as ``finish("server")``: what a host leaves behind that lost its power.
        Never switches.
        """
        self.finish("server")

    def cut_after(self, count: int, direction: Direction = "up", reset: bool = False) -> None:
        """Forward exactly *count* more bytes in that direction, then end the link, both sides.

        With FIN, or with RST if *reset*; the receiver's RST then waits until its kernel has all
        the bytes, as it would discard what is still on its way. Never switches.
        """
        _integer("count", count)
        for flow in self._flows(direction):
            flow.cut_after(count, reset)

    # -- holding bytes back -------------------------------------------------------------------

    def blackhole(self, direction: Direction = "both") -> None:
        """Forward nothing and close nothing, as a network that drops every packet.

        The proxy stops reading, so the sender's kernel fills up. What one side does, a close
        included, is not told to the other while the hole lasts. `heal` lets all of it go on, with
        no byte lost. Never switches.
        """
        for flow in self._flows(direction):
            flow.hold()

    def swallow(self, direction: Direction = "both") -> None:
        """Take every byte and throw it away, and close nothing. The sender notices nothing.

        A link that has swallowed bytes cannot go on: `heal` resets it. Never switches.
        """
        for flow in self._flows(direction):
            flow.swallow()

    def throttle(self, bytes_per_second: float | None, direction: Direction = "both") -> None:
        """Forward at most so many bytes per second, per link and direction; None lifts it.

        It advances evenly, in steps of 10 ms or of one byte. Up to 128 KiB may be out of the
        sender's kernel and not forwarded. Never switches.
        """
        if bytes_per_second is not None:
            _number("bytes_per_second", bytes_per_second, positive=True)
        for flow in self._flows(direction):
            flow.throttle(bytes_per_second)

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Let bytes, and a close, arrive that much later, in order; 0 lifts it.

        The throughput stays, up to 16 MiB per delay: so much is kept per link and direction, then
        the sender has to wait. A change counts for bytes that are under way, too.
        Never switches.
        """
        _number("seconds", seconds)
        for flow in self._flows(direction):
            flow.delay(seconds)

    def corrupt(self, after: int, direction: Direction = "down", mask: int = 0xFF) -> None:
        """Change one byte, the one behind *after* more bytes: its bits in *mask* are flipped.

        Called again, it changes another byte as well. Never switches.
        """
        _integer("after", after)
        _integer("mask", mask)
        if not 1 <= mask <= 0xFF:
            raise ValueError(f"mask: it must be 1 to 255, not {mask}")
        for flow in self._flows(direction):
            flow.corrupt(after, mask)


class ChaosProxy(Faults):
    """Stands between clients and one server, and hurts the links between them on command.

    ::

        with NatsServer() as server, ChaosProxy(server.url) as proxy:
            conn = gnats.connect(proxy.url)
            proxy.reset()                       # every live link, now
            proxy.stall_handshake("info")       # every new link, from its first byte
            proxy.heal()                        # all is well again

    The model, in three sentences. A fault called on a link is for that link, called on the proxy
    for every link that is live now. A rule is for new links: `on_link` calls you with each before
    its first byte, and a fault that you call on it there counts from that byte; `silent`,
    `stall_handshake` and `cut_handshake` are ready-made rules, and the last rule given replaces
    the one before. `heal` undoes everything.

    A new link, in this order: it is accepted, the rule is called, the target is dialled, bytes
    flow. When the target cannot be reached, the client is reset, and `failed_dials` counts it.
    What one side does is told to the other in order, behind the bytes before it: FIN as FIN, RST
    as RST where the proxy can see it.

    It works in the hub of the thread that started it, and only while that hub runs: clients in
    the same thread must wait cooperatively. All calls come from that thread.

    Args:
        target: where new links go, as ``nats://host:port`` or ``host:port``, with or without
            credentials. One server.
        host: address to listen on.
        port: 0 picks a free one. It stays the same, and kept, over `refuse` and `listen`.
        rcvbuf: SO_RCVBUF of both sockets of a link, bytes; a small one makes a stall bite earlier.
    """

    def __init__(
        self,
        target: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        rcvbuf: int | None = None,
    ) -> None:
        if not isinstance(host, str) or not host:
            raise ValueError(f"host: an address to listen on is needed, not {host!r}")
        _integer("port", port)
        if port > 0xFFFF:
            raise ValueError(f"port: it must be 0 to 65535, not {port}")
        if rcvbuf is not None:
            _integer("rcvbuf", rcvbuf)
        self.host = host
        self.accepted = 0  # links ever accepted
        self.failed_dials = 0  # links that ended because the target could not be reached
        self.errors: list[BaseException] = []  # what `on_link` callbacks raised
        self._target = _parse_target("target", target)
        self._rcvbuf = rcvbuf
        self._wanted_port = port
        self._reserved: ReservedPort | None = None
        self._started = False
        self._listener: _Listener | None = None
        self._rule: Callable[[ChaosLink], object] | None = None
        self._buffer = memoryview(bytearray(_CHUNK))  # for every recv
        self._recent: dict[int, ChaosLink] = {}  # by number, counted from 1
        self._live: list[ChaosLink] = []
        self._parting: set[ChaosLink] = set()  # ended by FIN, and not closed by the other ends yet
        self._openers: set[gevent.Greenlet[..., None]] = set()

    # -- what it is ---------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port, listening or not. Chosen, and kept, at first use."""
        if self._reserved is None:
            self._reserved = ReservedPort(self.host, self._wanted_port)
        return self._reserved.port

    @property
    def address(self) -> str:
        """``host:port``"""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """``nats://host:port``, without credentials."""
        return f"nats://{self.address}"

    @property
    def auth_url(self) -> str:
        """The url with the credentials that the target was given with, if any."""
        return f"nats://{self._target.credentials}{self.address}"

    @property
    def is_listening(self) -> bool:
        """Whether new connections are accepted."""
        return self._listener is not None

    @property
    def links(self) -> list[ChaosLink]:
        """The links that have not ended, oldest first (a copy).

        One whose client has left is among them while a hole keeps that news from the proxy.
        """
        return list(self._live)

    def __repr__(self) -> str:
        port = "unstarted" if self._reserved is None else str(self._reserved.port)
        state = "listening" if self.is_listening else "refusing"
        target = f"{self._target.host}:{self._target.port}"
        return f"<ChaosProxy {port} -> {target} {state}, {len(self._live)} links>"

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> ChaosProxy:
        """`listen`, and return self. Never switches. Raises OSError when the port is taken."""
        self.listen()
        return self

    def listen(self) -> None:
        """Accept connections, on the same port as before. Does nothing when it does already.

        Never switches. Raises OSError when the port is taken.
        """
        self._started = True
        if self._listener is None:
            port = self.port
            if self._reserved is not None:
                self._reserved.hold()
            self._listener = _Listener(self.host, port, self._rcvbuf, self._welcome)

    def stop(self) -> None:
        """Refuse, close all links, end what is being opened, give the port back. Switches.

        Idempotent. Never raises for what `on_link` callbacks did: see `check`.
        """
        self._started = False
        self.refuse()
        for link in [*self._live, *self._parting]:
            link._close()
        self._parting.clear()
        openers = [one for one in self._openers if one is not gevent.getcurrent()]
        gevent.killall(openers, timeout=TIMEOUT)
        if self._reserved is not None:
            self._reserved.release()

    def check(self) -> None:
        """Raise AssertionError if an `on_link` callback has failed. Never switches."""
        if self.errors:
            first = self.errors[0]
            raise AssertionError(f"an on_link callback of the proxy failed: {first!r}") from first

    def __enter__(self) -> ChaosProxy:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    def retarget(self, url: str) -> None:
        """From now on new links go to *url*, written as for the constructor; live ones stay.

        Never switches. Raises ValueError or TypeError.
        """
        self._target = _parse_target("url", url)

    def wait_for_link(self, count: int = 1, timeout: float = TIMEOUT) -> ChaosLink:
        """Wait until *count* links have been accepted in all, and return the *count*-th.

        By then its rule has been called, and the target was dialled, if it should be: the link
        flows, or has ended already. *timeout* is in seconds. Switches. Raises AssertionError when
        the time is up, and ValueError for a link so old that it is forgotten: a long test has
        thousands, and the last 1,024 are remembered.
        """
        if count < self.accepted and count not in self._recent:
            raise ValueError(f"count: link {count} of {self.accepted} is not remembered any more")
        wait_until(
            lambda: count in self._recent and self._recent[count]._is_settled,
            timeout,
            lambda: f"link {count} through {self!r}; {self.accepted} came",
        )
        return self._recent[count]

    # -- new links ----------------------------------------------------------------------------

    def refuse(self) -> None:
        """Stop listening: who dials is refused. Live links stay, and so does the port.

        A client whose connection was not accepted yet is reset by the kernel. Never switches.
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def on_link(self, callback: Callable[[ChaosLink], T] | None) -> Callable[[ChaosLink], T] | None:
        """Call *callback(link)* with each new link, before the target is dialled for it.

        It replaces the rule before; None lets new links be. It returns *callback*, so it can be a
        decorator. The callback runs in a greenlet of that link's own and may wait: other links do
        not wait for it. When it raises, the client is reset, and `errors` has what was raised;
        leaving the context raises it again. Never switches.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: a callable is needed, not {type(callback).__name__}")
        self._rule = callback
        return callback

    def silent(self) -> None:
        """Rule: new links are accepted and never answered; the server does not see them.

        `heal` dials the server for those that still wait. Never switches.
        """
        self.on_link(lambda link: link.silent())

    def stall_handshake(self, stage: Stage) -> None:
        """Rule: new links get stuck in the handshake, see `ChaosLink.stall_handshake`.

        Never switches. Raises ValueError.
        """
        _choice("stage", stage, _STAGES)
        self.on_link(lambda link: link.stall_handshake(stage))

    def cut_handshake(self, stage: Stage, reset: bool = False) -> None:
        """Rule: new links end in the handshake, see `ChaosLink.cut_handshake`.

        Never switches. Raises ValueError.
        """
        _choice("stage", stage, _STAGES)
        self.on_link(lambda link: link.cut_handshake(stage, reset))

    def heal(self) -> None:
        """Undo everything: `ChaosLink.heal` for all links, no rule for new ones, `listen` again.

        A proxy that was not started, or was stopped, does not listen. Never switches. Raises
        OSError when it cannot listen.
        """
        self._rule = None
        for link in self.links:
            link.heal()
        if self._started:
            self.listen()

    # -- within -------------------------------------------------------------------------------

    def _affected(self) -> list[ChaosLink]:
        return self.links

    def _welcome(self, sock: socket.socket) -> None:
        """In the hub: a connection was accepted."""
        link = ChaosLink(self, self.accepted, sock)
        self.accepted += 1
        self._recent[self.accepted] = link
        self._recent.pop(self.accepted - _REMEMBERED, None)
        self._live.append(link)
        self._parting = {one for one in self._parting if one._has_sockets}
        self._spawn(self._open, link)

    def _open(self, link: ChaosLink) -> None:
        try:
            if self._rule is not None:
                self._rule(link)
        except (Exception, gevent.Timeout) as exc:
            self.errors.append(exc)
            link.reset()
        link._introduced = True
        self._dial(link)

    def _dial(self, link: ChaosLink) -> None:
        if link._state is not _State.OPENING:
            return
        try:
            sock = _connect(self._target, self._rcvbuf)
        except OSError:
            if link._state is _State.OPENING:
                self.failed_dials += 1
                link.reset()
            return
        link._begin(sock)

    def _spawn(self, run: Callable[[ChaosLink], None], link: ChaosLink) -> None:
        greenlet = gevent.spawn(run, link)
        self._openers.add(greenlet)
        greenlet.link(self._openers.discard)

    def _forget(self, link: ChaosLink) -> None:
        with contextlib.suppress(ValueError):
            self._live.remove(link)
        if link._has_sockets:
            self._parting.add(link)


class _State(Enum):
    """Where a link is. Only one that flows forwards bytes."""

    OPENING = "opening"  # its rule, and the dial, are not over
    SILENT = "silent"  # not dialled before heal
    FLOWING = "open"
    ENDING = "ending"  # the receiver will be reset as soon as what was forwarded is delivered
    TORN = "torn"  # one side is gone, and the other is not told
    CLOSED = "closed"


class ChaosLink(Faults):
    """One client's connection through the proxy, with its own faults.

    `number` is 0 for the first link of the proxy.
    """

    def __init__(self, proxy: ChaosProxy, number: int, sock: socket.socket) -> None:
        self.number = number
        self._proxy = proxy
        self._state = _State.OPENING
        self._introduced = False  # its rule has been called
        self._side: dict[str, _Side] = {"client": _Side(sock)}
        self._flow = {
            "up": _Flow(self, "down", proxy._buffer),
            "down": _Flow(self, "up", proxy._buffer),
        }
        self._alarm = _Alarm()

    @property
    def up(self) -> int:
        """Bytes forwarded from the client to the server: the kernel has taken them."""
        return self._flow["up"].forwarded

    @property
    def down(self) -> int:
        """Bytes forwarded from the server to the client: the kernel has taken them."""
        return self._flow["down"].forwarded

    @property
    def swallowed(self) -> int:
        """Bytes that `swallow` has thrown away, both directions together."""
        return sum(flow.swallowed for flow in self._flow.values())

    @property
    def is_closed(self) -> bool:
        """Whether the link has ended: both sides closed, told by each other or by the proxy."""
        return self._state is _State.CLOSED

    def wait_closed(self, timeout: float = TIMEOUT) -> None:
        """Wait until the link has ended. Switches. AssertionError after *timeout* seconds."""
        wait_until(lambda: self.is_closed, timeout, lambda: f"the end of {self!r}")

    def __repr__(self) -> str:
        state = self._state.value
        return f"<ChaosLink {self.number} {state}, {self.up} bytes up, {self.down} down>"

    # -- the handshake ------------------------------------------------------------------------

    def silent(self) -> None:
        """Accepted and never answered; the server does not see it before `heal`.

        For `on_link` callbacks, as the next two; later it raises RuntimeError. Never switches.
        """
        self._only_new()
        if self._state is _State.OPENING:
            self._state = _State.SILENT

    def stall_handshake(self, stage: Stage) -> None:
        """Let the handshake get stuck; nothing is closed, and `heal` lets it go on.

        "accept": the connection stands, no byte passes either way. "info": the first half of the
        INFO line arrives. "connect": the INFO line arrives, the client's CONNECT is not passed
        on. "pong": CONNECT and PING are passed on, nothing of the server's answer arrives.
        Never switches. Raises ValueError, and RuntimeError later than in an `on_link` callback.
        """
        _choice("stage", stage, _STAGES)
        self._only_new()
        up, down = self._flow["up"], self._flow["down"]
        if stage in ("accept", "connect"):
            up.hold()
        if stage == "accept":
            down.hold()
        else:
            down.barrier = _Barrier("half" if stage == "info" else "line", down.hold)

    def cut_handshake(self, stage: Stage, reset: bool = False) -> None:
        """End the link in the handshake, with FIN, or with RST if *reset*.

        "accept": at once; the server does not see it. "info": behind the first half of the INFO
        line. "connect": when the client's CONNECT comes, which is not passed on. "pong": when the
        server's answer comes, which is not passed on. Never switches. Raises as `stall_handshake`.
        """
        _choice("stage", stage, _STAGES)
        self._only_new()
        if stage == "accept":
            self._leave(_ENDS["both"], _Side.reset if reset else _Side.finish)
            return
        flow = self._flow["up" if stage == "connect" else "down"]
        part = {"info": "half", "connect": "nothing", "pong": "line"}[stage]
        flow.barrier = _Barrier(part, lambda: self._end(flow, reset))

    def heal(self) -> None:
        """Undo every fault of this link: what was held back flows on at once, and nothing is lost.

        A link that cannot go on is reset instead: one that has swallowed bytes, or has only one
        side left. Never switches.
        """
        for flow in self._flow.values():
            flow.clear()
        if self._state is _State.SILENT:
            self._state = _State.OPENING
            if self._introduced:
                self._proxy._spawn(self._proxy._dial, self)
        elif self._state is _State.TORN or (self._state is _State.FLOWING and self.swallowed):
            self.reset()
        else:
            self._pump()

    # -- within -------------------------------------------------------------------------------

    @property
    def _is_settled(self) -> bool:
        return self._introduced and self._state is not _State.OPENING

    @property
    def _has_sockets(self) -> bool:
        return not all(side.is_closed for side in self._side.values())

    def _affected(self) -> list[ChaosLink]:
        return [self]

    def _only_new(self) -> None:
        if self._introduced:
            raise RuntimeError("a handshake can be hurt in an on_link callback only")

    def _begin(self, sock: socket.socket) -> None:
        """The target is connected: let bytes flow."""
        if self._state is not _State.OPENING:
            sock.close()
            return
        client = self._side["client"]
        server = self._side["server"] = _Side(sock)
        self._state = _State.FLOWING
        self._flow["up"].connect(client, server)
        self._flow["down"].connect(server, client)
        self._pump()

    def _pump(self) -> None:
        for flow in self._flow.values():
            flow.pump()

    def _other(self, flow: _Flow) -> _Flow:
        return self._flow[flow.opposite]

    def _told(self) -> None:
        """A FIN was passed on. Both are: that is the end."""
        if all(flow.is_done for flow in self._flow.values()):
            self._close()

    def _end(self, flow: _Flow, reset: bool) -> None:
        """End both sides behind the last byte that *flow* has forwarded."""
        if reset:
            self._halt(_State.ENDING)
            if flow.source is not None:
                flow.source.reset()
            self._reset_when_delivered(flow.sink)
        else:
            self._leave(_ENDS["both"], _Side.finish)

    def _reset_when_delivered(self, sink: _Side | None) -> None:
        if sink is not None and sink.has_undelivered:
            self._alarm.set(_LOOK_AGAIN, lambda: self._reset_when_delivered(sink))
        else:
            self._leave(_ENDS["both"], _Side.reset)

    def _leave(self, names: Iterable[str], how: Callable[[_Side], None]) -> None:
        """End the sides in *names*; what is left, if anything, is not told."""
        if self.is_closed:
            return
        self._halt(_State.TORN)
        for name in names:
            side = self._side.get(name)
            if side is not None and side.is_open:
                how(side)
        if not any(side.is_open for side in self._side.values()):
            self._state = _State.CLOSED
            self._proxy._forget(self)

    def _halt(self, state: _State) -> None:
        self._state = state
        self._alarm.cancel()
        for flow in self._flow.values():
            flow.halt()
        for side in self._side.values():
            side.rest()

    def _close(self) -> None:
        """Close all that is left, also of a link that has ended and waits for its clients."""
        was_closed = self.is_closed
        self._halt(_State.CLOSED)
        for side in self._side.values():
            side.close()
        if not was_closed:
            self._proxy._forget(self)


class _Mode(Enum):
    OPEN = "open"
    HOLE = "hole"
    SWALLOW = "swallow"


class _News(Enum):
    """How a side has ended, as the other will be told."""

    FIN = "fin"
    RST = "rst"


class _Piece:
    """Bytes that were taken and not forwarded; or, without data, the news of their sender's end."""

    __slots__ = ("arrived", "data", "news")

    def __init__(self, arrived: float, data: memoryview, news: _News | None = None) -> None:
        self.arrived = arrived
        self.data = data
        self.news = news


class _Cut(NamedTuple):
    at: int  # how many bytes will have been forwarded
    reset: bool


class _Flow:
    """One direction of a link: takes from `source`, gives to `sink`, in callbacks of the hub.

    It reads when it has room, writes when it may, and watches the sockets only for what it would
    do. Without a delay it takes a chunk when the last one is gone. It takes into *buffer*, which
    all flows of the proxy share, and copies only what the sink does not take at once.
    """

    def __init__(self, link: ChaosLink, opposite: str, buffer: memoryview) -> None:
        self.opposite = opposite  # the name of the flow the other way
        self.forwarded = 0
        self.swallowed = 0
        self.is_done = False  # the sink was told of the source's end
        self.source: _Side | None = None
        self.sink: _Side | None = None
        self._link = link
        self._buffer = buffer
        self._pieces: deque[_Piece] = deque()
        self._held = 0  # bytes in them
        self._source_ended = False  # the source will say no more
        self._sink_lost = False  # the sink will take no more
        self._blocked = False  # the sink's kernel is full
        self._alarm = _Alarm()
        self.clear()

    # -- faults: the caller calls `pump` or is one of these -----------------------------------

    def clear(self) -> None:
        """No fault any more. The caller pumps."""
        self._mode = _Mode.OPEN
        self._delay = 0.0
        self._rate: float | None = None
        self._paid_until = 0.0  # a throttled flow may forward again from then on
        self._cut: _Cut | None = None
        self._flips: dict[int, int] = {}  # position to mask
        self.barrier: _Barrier | None = None
        self._blocked = False

    def hold(self) -> None:
        self._mode = _Mode.HOLE
        self._arm()

    def swallow(self) -> None:
        self._mode = _Mode.SWALLOW
        self.swallowed += self._held
        self._held = 0
        self._pieces = deque(piece for piece in self._pieces if piece.news)
        self._arm()

    def throttle(self, rate: float | None) -> None:
        self._rate = rate
        self._paid_until = monotonic()
        self.pump()

    def delay(self, seconds: float) -> None:
        self._delay = seconds
        self.pump()

    def cut_after(self, count: int, reset: bool) -> None:
        self._cut = _Cut(self.forwarded + count, reset)
        self._check_cut()

    def corrupt(self, after: int, mask: int) -> None:
        self._flips[self.forwarded + after] = mask

    # -- the work -----------------------------------------------------------------------------

    def connect(self, source: _Side, sink: _Side) -> None:
        self.source, self.sink = source, sink
        source.on_readable = self._on_readable
        sink.on_writable = self._on_writable

    def halt(self) -> None:
        """Do nothing any more, and let go of all memory."""
        self._alarm.cancel()
        self._drop_pieces()

    def pump(self) -> None:
        """Forward what may be forwarded now, and see to it that the rest will be."""
        while self._pieces and self._mode is _Mode.OPEN and self._is_flowing:
            if not self._forward(self._pieces[0]):
                break
        self._arm()

    def source_broke(self) -> None:
        """A send to the source has found it reset: news for the sink, behind what it has said."""
        if self._source_ended:
            self._pieces.append(_Piece(self._now(), _NOTHING, _News.RST))
        self.pump()

    @property
    def _is_flowing(self) -> bool:
        return self._link._state is _State.FLOWING

    def _on_readable(self) -> None:
        self._take()
        self.pump()
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.data.obj is self._buffer.obj:
            last.data = memoryview(bytes(last.data))

    def _on_writable(self) -> None:
        self._blocked = False
        self.pump()

    def _now(self) -> float:
        # Only a delay asks when a piece came; what came before it was set is late already.
        return monotonic() if self._delay else 0.0

    def _take(self) -> None:
        source = self.source
        assert source is not None
        try:
            size = source.sock.recv_into(self._buffer)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                self._source_gone(_News.RST)
            return
        if not size:
            self._source_gone(_News.RST if source.is_broken else _News.FIN)
        elif self._mode is _Mode.SWALLOW:
            self.swallowed += size
        else:
            self._held += size
            self._pieces.append(_Piece(self._now(), self._buffer[:size]))

    def _source_gone(self, news: _News) -> None:
        self._source_ended = True
        self._pieces.append(_Piece(self._now(), _NOTHING, news))

    def _forward(self, piece: _Piece) -> bool:
        """Do what can be done with the first piece. False: no more can be done now."""
        wait = self._wait(piece)
        if wait > 0:
            self._alarm.set(wait, self.pump)
            return False
        if piece.news is not None:
            self._pieces.popleft()
            self._tell(piece.news)
            return True
        size = self._portion(piece.data)
        if not size:
            barrier, self.barrier = self.barrier, None
            assert barrier is not None
            barrier.act()
            return False
        sent = self._send(piece.data, size)
        if sent:
            self._account(piece, sent)
        return sent == size

    def _wait(self, piece: _Piece) -> float:
        """Seconds until it may be forwarded."""
        if not self._delay and self._rate is None:
            return 0.0
        return max(piece.arrived + self._delay, self._paid_until) - monotonic()

    def _portion(self, data: memoryview) -> int:
        """How many bytes may go in one send. 0 when the barrier lets none pass."""
        size = len(data)
        if self._rate is not None:
            size = min(size, max(1, int(self._rate * _SLICE)))
        if self._cut is not None:
            size = min(size, self._cut.at - self.forwarded)
        if self._flips:
            # The byte to change goes alone: the chunk itself stays as it is.
            size = min(size, (min(self._flips) - self.forwarded) or 1)
        if self.barrier is not None:
            size = min(size, self.barrier.let_through(data))
        return size

    def _send(self, data: memoryview, size: int) -> int:
        """Give *size* bytes to the sink's kernel; return how many it took."""
        assert self.sink is not None
        mask = self._flips.get(self.forwarded)
        out = data[:size] if mask is None else bytes([data[0] ^ mask])
        try:
            sent = int(self.sink.sock.send(out))
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                self._lose_sink()
                return 0
            sent = 0
        self._blocked = sent < size
        return sent

    def _account(self, piece: _Piece, sent: int) -> None:
        if self._flips:
            self._flips.pop(self.forwarded, None)
        self.forwarded += sent
        self._held -= sent
        piece.data = piece.data[sent:]
        if not piece.data:
            self._pieces.popleft()
        if self._rate is not None:
            # A step that came late is made good, but only by one step.
            self._paid_until = max(self._paid_until, monotonic() - _SLICE) + sent / self._rate
        if self.barrier is not None:
            self.barrier.passed(sent)
        if self._cut is not None:
            self._check_cut()

    def _check_cut(self) -> None:
        if self._cut is not None and self.forwarded >= self._cut.at:
            self._link._end(self, self._cut.reset)

    def _tell(self, news: _News) -> None:
        """All that the source has said is forwarded: tell the sink that it has ended."""
        assert self.sink is not None
        if news is _News.RST:
            self._link._end(self, reset=True)
        elif self.sink.end_stream():
            self.is_done = True
            self._link._told()
        else:
            self._lose_sink()

    def _lose_sink(self) -> None:
        assert self.sink is not None
        self._sink_lost = self.sink.is_broken = True
        self._drop_pieces()
        other = self._link._other(self)
        if other._sink_lost:
            self._link._close()  # nobody is left to be told
        else:
            # What happened to the sink travels the other way, and through what holds that way up.
            other.source_broke()

    def _drop_pieces(self) -> None:
        self._pieces.clear()
        self._held = 0

    def _arm(self) -> None:
        """Watch for what would be done, and for nothing else."""
        if self.source is None or self.sink is None or not self._is_flowing:
            return
        can_go_on = not self._sink_lost
        self.source.watch_reads(can_go_on and not self._source_ended and self._has_room())
        self.sink.watch_writes(can_go_on and self._blocked and self._mode is _Mode.OPEN)

    def _has_room(self) -> bool:
        if self._mode is not _Mode.OPEN:
            return self._mode is _Mode.SWALLOW
        if self._delay:
            return self._held < DELAY_LIMIT and len(self._pieces) < _DELAY_PIECES
        return not self._pieces


class _Barrier:
    """Lets a part of the first line pass, then acts when there is a byte that may not pass.

    *part* is "nothing", "half" (of the line, or of its first piece when it comes in pieces) or
    "line".
    """

    def __init__(self, part: str, act: Callable[[], None]) -> None:
        self.act = act
        self._part = part
        self._left: int | None = 0 if part == "nothing" else None  # None: not known yet

    def let_through(self, data: memoryview) -> int:
        """How many of these next bytes may pass."""
        if self._left is None:
            end = bytes(data).find(b"\n") + 1
            if self._part == "half":
                self._left = ((end or len(data)) + 1) // 2
            elif end:
                self._left = end
            else:
                return len(data)
        return self._left

    def passed(self, count: int) -> None:
        if self._left is not None:
            self._left -= count


class _Side:
    """One socket of a link, never blocking, with its watchers. Closed once, from here."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_open = True  # neither closed, nor told that it will be
        self.is_broken = False  # a send has found out that the other end is gone
        self.on_readable: Callable[[], None] = _ignore
        self.on_writable: Callable[[], None] = _ignore
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._readable = _Watch(sock, _READ, lambda: self.on_readable())
        self._writable = _Watch(sock, _WRITE, lambda: self.on_writable())
        self.is_closed = False

    def watch_reads(self, on: bool) -> None:
        self._readable.turn(on)

    def watch_writes(self, on: bool) -> None:
        self._writable.turn(on)

    def rest(self) -> None:
        """Watch for nothing. Nothing of a closed side, and nothing of one that takes its leave."""
        if self.is_open:
            self._readable.turn(False)
            self._writable.turn(False)

    @property
    def has_undelivered(self) -> bool:
        """Whether bytes that were sent have not reached the other end's kernel, and still can."""
        if self.is_closed or self.is_broken or sys.platform == "win32":
            return False
        try:
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return False
            answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return False
        return any(answer)

    def end_stream(self) -> bool:
        """Send FIN, behind all that was sent. False when the other end is gone."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def finish(self) -> None:
        """Send FIN, then take and throw away until the other end closes.

        Closing at once would answer what still comes, or lies unread, with RST.
        """
        self.is_open = False
        if self.end_stream():
            self.on_readable = self._discard
            self._readable.turn(True)
        else:
            self.close()

    def reset(self) -> None:
        """Send RST: what was sent and not delivered, or not read, is thrown away."""
        if not self.is_closed:
            # SO_LINGER on, with zero seconds: discard and reset.
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def close(self) -> None:
        """Close at once; may be called again. Never switches."""
        self.is_open = False
        if not self.is_closed:
            self.is_closed = True
            # First the watchers: gevent puts off the close of a descriptor that is watched.
            self._readable.close()
            self._writable.close()
            self.sock.close()

    def _discard(self) -> None:
        try:
            if self.sock.recv(_CHUNK):
                return
        except OSError as exc:
            if exc.errno == errno.EWOULDBLOCK:
                return
        self.close()


class _Watch:
    """Calls back in the hub while a socket is readable, or writable, and the watch is on."""

    def __init__(self, sock: socket.socket, event: int, callback: Callable[[], None]) -> None:
        self._watcher = get_hub().loop.io(sock.fileno(), event)
        self._callback = callback
        self._on = False

    def turn(self, on: bool) -> None:
        if on and not self._on:
            self._on = True
            self._watcher.start(self._call, pass_events=True)
        elif self._on and not on:
            self._on = False
            self._watcher.stop()

    def close(self) -> None:
        self.turn(False)
        self._watcher.close()

    def _call(self, events: int) -> None:
        if events < 0:
            # An error: libuv takes the socket off its list then by itself. Who still wants to
            # watch turns it on again.
            self.turn(False)
        self._callback()


class _Alarm:
    """Calls back once, in the hub, after some seconds. Set again, it forgets the time before."""

    def __init__(self) -> None:
        self._timer: Any = None

    def set(self, seconds: float, callback: Callable[[], None]) -> None:
        self.cancel()
        # libuv warns of less than a millisecond.
        self._timer = get_hub().loop.timer(max(seconds, 0.001))
        self._timer.start(self._ring, callback, update=True)

    def cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _ring(self, callback: Callable[[], None]) -> None:
        self.cancel()
        callback()


class _Listener:
    """A listening socket. Hands each accepted one to *welcome*, in the hub. Closed at once."""

    def __init__(
        self, host: str, port: int, rcvbuf: int | None, welcome: Callable[[socket.socket], None]
    ) -> None:
        self._welcome = welcome
        self._alarm = _Alarm()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if rcvbuf is not None:
                # Before listen: accepted sockets inherit it, and the window is agreed at accept.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            self._sock.bind((host, port))
            self._sock.listen(128)
        except BaseException:
            self._sock.close()
            raise
        self._watch = _Watch(self._sock, _READ, self._accept)
        self._watch.turn(True)

    def close(self) -> None:
        self._alarm.cancel()
        self._watch.close()
        self._sock.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                # The client stays in the queue, so the socket stays readable: do not spin.
                self._watch.turn(False)
                self._alarm.set(_PAUSE, lambda: self._watch.turn(True))
            return
        self._welcome(sock)


def _ignore() -> None:
    """For a side that nobody is connected to yet."""


# -- dialling -------------------------------------------------------------------------------------


class _Target(NamedTuple):
    host: str
    port: int
    credentials: str  # as they stood before the host, "@" included, or empty


# The last "@" ends the credentials; a comma would begin another server.
_URL = re.compile(
    r"(?:nats://)?(?P<credentials>(?:[^\s,/?#]*@)?)(?P<host>\[[^\s,@[\]]+\]|[^\s,/?#@:[\]]+)"
    r":(?P<port>[0-9]{1,5})/?"
)


def _parse_target(name: str, text: object) -> _Target:
    """Read one address. Errors name the argument, and never repeat what may be a password."""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise TypeError(f"{name}: a str like 'nats://host:port' is needed, not {kind}")
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "nats":
        raise ValueError(f"{name}: only nats:// is known, beside a plain host:port")
    match = _URL.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 0xFFFF:
        raise ValueError(
            f"{name}: one 'nats://host:port' or 'host:port' is needed, port 1 to 65535"
        )
    return _Target(match["host"].strip("[]"), int(match["port"]), match["credentials"])


def _connect(target: _Target, rcvbuf: int | None) -> socket.socket:
    """Try each address of the target. Switches. Raises OSError."""
    last: OSError | None = None
    for family, address in _resolve(target):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if rcvbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            sock.settimeout(DIAL_TIMEOUT)
            sock.connect(address)
            if sock.getsockname() == sock.getpeername():
                # A port of the ephemeral range on which nobody listens can answer itself.
                raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
        except OSError as exc:
            sock.close()
            last = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError(f"{target.host} has no address")


def _resolve(target: _Target) -> list[tuple[int, Any]]:
    # A literal address needs no resolver, whose first use starts gevent's thread pool.
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, target.host)
            return [(family, (target.host, target.port))]
    try:
        found = socket.getaddrinfo(target.host, target.port, 0, socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError(f"{target.host!r} is no host name") from exc
    return [(family, address) for family, _, _, _, address in found]


# -- arguments ------------------------------------------------------------------------------------


def _choice(name: str, value: object, choices: dict[str, T]) -> T:
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: one of {known} is needed, not {value!r}")
    return choices[value]


def _integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: an int is needed, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name}: it must be 0 or more, not {value}")


def _number(name: str, value: object, positive: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: a number is needed, not {type(value).__name__}")
    # Written so that NaN fails.
    if not (value > 0 if positive else value >= 0) or math.isinf(value):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name}: it must be {least} and finite, not {value!r}")
