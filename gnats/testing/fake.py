"""A scriptable NATS server for what a real one will not do: lie, stall, cut at byte n.

It takes exactly the bytes that a script asks for, and parses strictly what it takes, so that a
test can prove that no broken frame was ever on the wire. It routes no messages.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Callable, NamedTuple, Union

import gevent
from gevent import socket, ssl
from gevent.event import Event

from gnats.testing.ports import ReservedPort
from gnats.testing.waiting import wait_until

__all__ = [
    "ClientGone",
    "FakeClient",
    "FakeServer",
    "Frame",
    "FrameError",
    "FrameParser",
    "Handler",
    "hold",
    "message_frame",
    "serve",
]

TIMEOUT = 5.0  # seconds; the default of every wait in a script
_RECV_SIZE = 256 * 1024
_CRLF = b"\r\n"

# nats-server's own default bound for a control line; its CONNECT may hold a JWT, and tests
# send large ones.
MAX_CONTROL_LINE = 4096
MAX_CONNECT_LINE = 64 * 1024

Pattern = Union[bytes, str, "re.Pattern[bytes]"]
HeaderFields = Union[bytes, Mapping[str, Union[str, Sequence[str]]]]
Handler = Callable[["FakeClient"], object]


class ClientGone(ConnectionError):
    """The client closed or lost the connection, or the script did. Ends a handler quietly."""


class FrameError(ValueError):
    """Bytes that are no NATS frame. `offset` counts from the first byte of the connection."""

    def __init__(self, reason: str, offset: int, data: bytes) -> None:
        super().__init__(f"{reason} at byte {offset}: {data[:200]!r}")
        self.offset = offset
        self.data = data


class Frame(NamedTuple):
    """One whole frame from a client.

    `args` are the words between the operation and the sizes: ``(subject,)`` or
    ``(subject, reply)`` of PUB and HPUB; ``(subject, sid)`` or ``(subject, queue, sid)`` of SUB;
    ``(sid,)`` or ``(sid, max)`` of UNSUB; ``(json,)`` of CONNECT; none of PING and PONG.
    `headers` is the raw header block of HPUB; `payload` comes without it.
    """

    op: str
    args: tuple[str, ...] = ()
    payload: bytes = b""
    headers: bytes = b""

    @property
    def subject(self) -> str:
        """Subject of PUB, HPUB or SUB."""
        return self.args[0]

    @property
    def reply(self) -> str:
        """Reply subject of PUB or HPUB, or the empty string."""
        return self.args[1] if len(self.args) > 1 else ""

    @property
    def sid(self) -> str:
        """Subscription id of SUB or UNSUB."""
        return self.args[-1] if self.op == "SUB" else self.args[0]

    @property
    def queue(self) -> str:
        """Queue group of SUB, or the empty string."""
        return self.args[1] if len(self.args) > 2 else ""


# One space between words and none elsewhere; a word holds no white space and no control byte.
# A real server forgives more; what our client writes has one form.
_WORD = rb"([^\x00-\x20\x7f]+)"
_SIZE = rb"(0|[1-9][0-9]{0,9})"
_GRAMMAR: dict[bytes, re.Pattern[bytes]] = {
    b"CONNECT": re.compile(rb"CONNECT (\{.*\})", re.DOTALL),
    b"PING": re.compile(rb"PING"),
    b"PONG": re.compile(rb"PONG"),
    b"SUB": re.compile(rb"SUB " + _WORD + rb"(?: " + _WORD + rb")? " + _WORD),
    b"UNSUB": re.compile(rb"UNSUB " + _WORD + rb"(?: ([1-9][0-9]*))?"),
    b"PUB": re.compile(rb"PUB " + _WORD + rb"(?: " + _WORD + rb")? " + _SIZE),
    b"HPUB": re.compile(rb"HPUB " + _WORD + rb"(?: " + _WORD + rb")? " + _SIZE + rb" " + _SIZE),
}


class FrameParser:
    """Client bytes in, frames out, strictly. No I/O; never switches.

    `broken` is the first FrameError, if any; after it the parser only counts bytes. `partial`
    holds the bytes of a frame that has begun and not ended.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.broken: FrameError | None = None
        self._data = bytearray()  # from the start of the first unfinished frame
        self._base = 0  # offset of _data[0] in the connection
        self._scanned = 0  # no line end before this index of _data
        self._head: _Head | None = None

    @property
    def partial(self) -> bytes:
        """What was taken of a frame that is not whole yet."""
        return bytes(self._data)

    @property
    def missing(self) -> int:
        """How many bytes of a begun payload are still to come; 0 when a line comes next."""
        if self._head is None:
            return 0
        return self._head.body + self._head.total + 2 - len(self._data)

    def feed(self, data: bytes) -> int:
        """Parse *data* and return how many frames it completed."""
        if self.broken is not None:
            self._base += len(data)
            return 0
        known = len(self.frames)
        buffer = self._data
        buffer += data
        start = 0  # of the frame in hand
        try:
            while True:
                head = self._head
                if head is None:
                    end = buffer.find(_CRLF, max(self._scanned, start))
                    if end < 0:
                        self._scanned = max(start, len(buffer) - 1)
                        _check_line(bytes(buffer[start : start + MAX_CONNECT_LINE + 1]))
                        break
                    head = _parse_line(bytes(buffer[start:end]), end + 2)
                    if head.total < 0:
                        self.frames.append(head.frame)
                        start = self._scanned = end + 2
                        continue
                    self._head = head
                if len(buffer) < head.body + head.total + 2:
                    break
                self.frames.append(_finish(head, buffer))
                self._head = None
                start = self._scanned = head.body + head.total + 2
        except _Refused as refused:
            self.broken = FrameError(str(refused), self._base + start, bytes(buffer[start:]))
        # Once per feed, so that many small frames in one chunk do not shift the rest each time.
        if start:
            del buffer[:start]
            self._base += start
            self._scanned = max(0, self._scanned - start)
            if self._head is not None:
                self._head = self._head._replace(body=self._head.body - start)
        return len(self.frames) - known


class _Head(NamedTuple):
    """A parsed control line. *total* < 0: no payload follows it."""

    frame: Frame
    body: int = 0
    header_size: int = 0
    total: int = -1


class _Refused(Exception):
    """Not a frame; the reason."""


def _check_line(line: bytes) -> None:
    limit = MAX_CONNECT_LINE if line.startswith(b"CONNECT ") else MAX_CONTROL_LINE
    if len(line) > limit:
        raise _Refused(f"control line longer than {limit} bytes")
    word = line.partition(b" ")[0].rstrip(b"\r")
    if not any(op.startswith(word) for op in _GRAMMAR):
        raise _Refused("unknown operation")


def _parse_line(line: bytes, body: int) -> _Head:
    op = line.partition(b" ")[0]
    grammar = _GRAMMAR.get(op)
    if grammar is None:
        raise _Refused("unknown operation")
    if len(line) > MAX_CONTROL_LINE:
        _check_line(line)
    match = grammar.fullmatch(line)
    if match is None:
        raise _Refused(f"malformed {op.decode()}")
    try:
        words = [word.decode("utf-8") for word in match.groups() if word is not None]
    except UnicodeDecodeError:
        raise _Refused(f"{op.decode()} is not UTF-8") from None
    name = op.decode()
    if op in (b"PUB", b"HPUB"):
        sizes = 1 if op == b"PUB" else 2
        total = int(words[-1])
        header_size = int(words[-2]) if sizes == 2 else 0
        if header_size > total:
            raise _Refused("HPUB with headers larger than the whole")
        args = tuple(words[:-sizes])
        for subject in args:
            _check_subject(subject)
        return _Head(Frame(name, args), body, header_size, total)
    if op == b"SUB":
        _check_subject(words[0])
    elif op == b"CONNECT":
        _check_connect(words[0])
    return _Head(Frame(name, tuple(words)))


def _check_subject(subject: str) -> None:
    if ".." in subject or subject[0] == "." or subject[-1] == ".":
        raise _Refused("subject with an empty token")


def _check_connect(text: str) -> None:
    try:
        fields = json.loads(text)
    except ValueError:
        raise _Refused("CONNECT without valid JSON") from None
    if not isinstance(fields, dict):
        raise _Refused("CONNECT without a JSON object")


def _finish(head: _Head, buffer: bytearray) -> Frame:
    body, end = head.body, head.body + head.total
    if buffer[end : end + 2] != _CRLF:
        raise _Refused(f"payload of {head.frame.op} not followed by CR LF")
    if head.frame.op == "PUB":
        return head.frame._replace(payload=bytes(buffer[body:end]))
    split = body + head.header_size
    headers = bytes(buffer[body:split])
    if not (headers.startswith(b"NATS/1.0") and headers.endswith(b"\r\n\r\n")):
        raise _Refused("HPUB with a malformed header block")
    return head.frame._replace(payload=bytes(buffer[split:end]), headers=headers)


def message_frame(
    sid: str | int,
    subject: str,
    payload: bytes = b"",
    reply: str | None = None,
    headers: HeaderFields | None = None,
) -> bytes:
    """The bytes of a MSG, or with *headers* (raw, or a mapping) of an HMSG. Never switches."""
    words = f"{subject} {sid} {reply}" if reply else f"{subject} {sid}"
    if headers is None:
        return f"MSG {words} {len(payload)}\r\n".encode() + payload + _CRLF
    block = headers if isinstance(headers, bytes) else _header_block(headers)
    line = f"HMSG {words} {len(block)} {len(block) + len(payload)}\r\n".encode()
    return line + block + payload + _CRLF


def _header_block(fields: Mapping[str, str | Sequence[str]]) -> bytes:
    lines = ["NATS/1.0"]
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


class FakeClient:
    """The server's end of one accepted connection; handlers are scripts over it.

    Bytes are taken only when a method asks for them: what no script has taken is neither in
    `received` nor parsed. One greenlet at a time may take. Every method that takes or sends
    switches, is bounded by its timeout (seconds), and raises ClientGone when the connection has
    ended and TimeoutError when the time is up, unless it says otherwise.
    """

    def __init__(self, sock: socket.socket, address: Any, number: int, server: FakeServer) -> None:
        self.address = address
        self.number = number  # 0 for the first connection of the server
        self.server = server
        self.error: BaseException | None = None  # what the handler raised, if it failed
        self.connect_options: dict[str, Any] = {}  # of the last CONNECT taken
        self.subscriptions: dict[str, Frame] = {}  # sid -> SUB, until UNSUB
        self._sock = sock
        self._parser = FrameParser()
        self._received = bytearray()
        self._inbox = bytearray()  # out of the kernel, not taken yet
        self._searched = 0  # no line end before this index of the inbox
        self._closed = Event()
        self._left = False  # end of stream, or an error, from the client's side

    # -- what was taken -----------------------------------------------------------------------

    @property
    def received(self) -> bytes:
        """All bytes taken so far (a copy)."""
        return bytes(self._received)

    @property
    def frames(self) -> list[Frame]:
        """The whole frames taken so far, oldest first. The list is live: do not change it."""
        return self._parser.frames

    @property
    def broken(self) -> FrameError | None:
        """The first violation of the protocol in what was taken, or None."""
        return self._parser.broken

    @property
    def partial(self) -> bytes:
        """The begun frame behind the last whole one. Empty, unless the stream was cut."""
        return self._parser.partial

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended, by either side, as far as the script looked."""
        return self._closed.is_set()

    def payloads(self, subject: str | None = None) -> list[bytes]:
        """The payloads of the PUB and HPUB frames taken, of one subject or of all."""
        return [
            frame.payload
            for frame in self.frames
            if frame.op in ("PUB", "HPUB") and subject in (None, frame.args[0])
        ]

    def assert_whole(self) -> None:
        """Raise AssertionError unless all bytes taken are whole, well-formed frames."""
        if self.broken is not None:
            raise AssertionError(f"client {self.number} sent a broken frame: {self.broken}")
        if self.partial:
            raise AssertionError(f"client {self.number} sent half a frame: {self.partial[:200]!r}")

    def wait_for_frames(
        self, count: int, op: str | None = None, timeout: float = TIMEOUT
    ) -> list[Frame]:
        """Wait until *count* frames (of operation *op*) were taken by whoever takes; return them.

        It takes none itself. Raises AssertionError when the time is up.
        """

        def taken() -> list[Frame]:
            return [f for f in self.frames if f.op == op] if op else list(self.frames)

        wait_until(
            lambda: (len(taken()) if op else len(self.frames)) >= count,
            timeout,
            lambda: f"{count} {op or 'frames'} from client {self.number}; {len(taken())} came",
        )
        return taken()

    # -- sending ------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send raw bytes. Waits, unbounded, while the client does not read."""
        self._check_open()
        try:
            self._sock.sendall(data)
        except OSError as exc:
            raise self._gone(exc) from exc

    def send_info(self, **fields: Any) -> None:
        """Send an INFO line: sane defaults overlaid with *fields*; a field of None is left out."""
        info: dict[str, Any] = {
            "server_id": "NFAKE" + "0" * 51,
            "server_name": "fake",
            "version": "2.10.0",
            "proto": 1,
            "go": "go1.21",
            "host": self.server.host,
            "port": self.server.port,
            "headers": True,
            "max_payload": 1024 * 1024,
            "client_id": self.number + 1,
            "client_ip": self.address[0],
        }
        info.update(fields)
        kept = {key: value for key, value in info.items() if value is not None}
        self.send(b"INFO " + json.dumps(kept).encode("utf-8") + _CRLF)

    def send_err(self, text: str) -> None:
        """Send ``-ERR 'text'``. A real server closes after most errors; this does not."""
        self.send(f"-ERR '{text}'\r\n".encode())

    def deliver(
        self,
        sid: str | int,
        subject: str,
        payload: bytes = b"",
        reply: str | None = None,
        headers: HeaderFields | None = None,
    ) -> None:
        """Send one message to subscription *sid*. For many, join `message_frame`s and `send`."""
        self.send(message_frame(sid, subject, payload, reply, headers))

    def start_tls(self, context: ssl.SSLContext, timeout: float = TIMEOUT) -> None:
        """Turn the connection into TLS, as the server's side. *context* is a gevent SSLContext.

        Raises ssl.SSLError when the client does not agree.
        """
        self._check_open()
        self._sock.settimeout(timeout)
        try:
            self._sock = context.wrap_socket(self._sock, server_side=True)
        finally:
            self._sock.settimeout(None)

    # -- taking -------------------------------------------------------------------------------

    def read_line(self, timeout: float = TIMEOUT) -> bytes:
        """Take the next line and return it without CR LF."""
        deadline = monotonic() + timeout
        while True:
            end = self._inbox.find(_CRLF, self._searched)
            if end >= 0:
                return self._take(end + 2)[:-2]
            self._searched = max(0, len(self._inbox) - 1)
            self._fetch(deadline)

    def read_exactly(self, size: int, timeout: float = TIMEOUT) -> bytes:
        """Take the next *size* bytes."""
        deadline = monotonic() + timeout
        while len(self._inbox) < size:
            self._fetch(deadline)
        return self._take(size)

    def read_frame(self, timeout: float = TIMEOUT) -> Frame:
        """Take the next frame, and not a byte more. Raises FrameError when it is none."""
        deadline = monotonic() + timeout
        known = len(self.frames)
        while len(self.frames) == known:
            remaining = max(0.0, deadline - monotonic())
            if self._parser.missing:
                self.read_exactly(self._parser.missing, remaining)
            else:
                self.read_line(remaining)
            if self.broken is not None:
                raise self.broken
        return self.frames[-1]

    def expect(self, pattern: Pattern, timeout: float = TIMEOUT) -> bytes:
        """Take the next line, which must begin with *pattern* (or match the compiled regex).

        Returns the line without CR LF. Raises AssertionError when another line comes.
        """
        line = self.read_line(timeout)
        if isinstance(pattern, re.Pattern):
            matches = pattern.match(line) is not None
        else:
            prefix = pattern.encode("utf-8") if isinstance(pattern, str) else pattern
            matches = line.startswith(prefix)
        if not matches:
            raise AssertionError(f"client {self.number}: expected {pattern!r}, came {line[:500]!r}")
        return line

    def handshake(self, timeout: float = TIMEOUT, **info: Any) -> dict[str, Any]:
        """INFO (with *info* fields), take CONNECT and PING, answer PONG. Returns CONNECT's fields.

        *timeout* is for the whole of it.
        """
        deadline = monotonic() + timeout
        self.send_info(**info)
        self.expect(b"CONNECT ", timeout)
        if self.connect_options.get("verbose"):
            self.send(b"+OK\r\n")
        self.expect(re.compile(rb"PING\Z"), max(0.0, deadline - monotonic()))
        self.send(b"PONG\r\n")
        return self.connect_options

    def serve(self, timeout: float | None = None) -> None:
        """Behave: take everything and answer PINGs, until the client leaves or *timeout* passes.

        Returns then, and does not raise. Frames are in `frames`; nothing is delivered.
        """
        deadline = None if timeout is None else monotonic() + timeout
        try:
            while True:
                known = len(self.frames)
                if self._inbox:
                    self._take(len(self._inbox))
                answer = b"".join(self._answers(self.frames[known:]))
                if answer:
                    self.send(answer)
                self._fetch(deadline)
        except (ClientGone, TimeoutError):
            return

    def _answers(self, frames: list[Frame]) -> list[bytes]:
        verbose = bool(self.connect_options.get("verbose"))
        answers = []
        for frame in frames:
            if frame.op == "PING":
                answers.append(b"PONG\r\n")
            elif verbose and frame.op != "PONG":
                answers.append(b"+OK\r\n")
        return answers

    # -- misbehaving --------------------------------------------------------------------------

    def stall(self) -> None:
        """Read nothing and say nothing until the connection is closed by this side."""
        self._closed.wait()

    def cut_after(self, size: int, reset: bool = False, timeout: float = TIMEOUT) -> None:
        """Take exactly *size* more bytes, however they come, then `close`, or `reset`.

        It counts from the last byte that a script took, not from what the kernel holds.
        """
        try:
            self.read_exactly(size, timeout)
        finally:
            if reset:
                self.reset()
            else:
                self.close()

    def half_close(self) -> None:
        """Send the end of stream (FIN), and go on reading."""
        self._check_open()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._gone(exc) from exc

    def close(self) -> None:
        """Close the connection. Never raises; may be called again, and from another greenlet.

        As with any dying server, the kernel says RST instead of FIN when unread bytes are waiting.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._sock.close()

    def reset(self) -> None:
        """Close the connection with an RST; what was sent and not yet delivered is lost."""
        if self._closed.is_set():
            return
        # SO_LINGER on, with zero seconds: discard and reset.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def wait_closed(self, timeout: float = TIMEOUT) -> None:
        """Wait until the connection has ended, as a taking script notices. AssertionError if not.

        It takes nothing itself: some greenlet must be in `serve` or another taking method.
        """
        if not self._closed.wait(timeout):
            raise AssertionError(f"client {self.number} did not leave within {timeout:g} s")

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<FakeClient {self.number} {state}, {len(self.frames)} frames>"

    # -- within -------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClientGone(f"client {self.number}: the connection is closed")

    def _gone(self, cause: BaseException | None = None) -> ClientGone:
        self._left = True
        self.close()
        return ClientGone(f"client {self.number} left" + (f": {cause}" if cause else ""))

    def _fetch(self, deadline: float | None) -> None:
        """Bring something from the kernel to the inbox."""
        self._check_open()
        remaining = None if deadline is None else deadline - monotonic()
        if remaining is not None and remaining <= 0:
            # One look that does not wait: what has arrived in time counts.
            remaining = 0.0
        try:
            self._sock.settimeout(remaining)
            chunk = self._sock.recv(_RECV_SIZE)
        except (socket.timeout, BlockingIOError):
            raise TimeoutError(
                f"client {self.number}: nothing came in time, "
                f"behind {bytes(self._received[-100:])!r} + {bytes(self._inbox[:100])!r}"
            ) from None
        except OSError as exc:
            raise self._gone(exc) from exc
        finally:
            if not self._closed.is_set():
                self._sock.settimeout(None)
        if not chunk:
            raise self._gone()
        self._inbox += chunk

    def _take(self, size: int) -> bytes:
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        self._searched = 0
        self._received += data
        known = len(self.frames)
        if self._parser.feed(data):
            for frame in self.frames[known:]:
                self._note(frame)
        return data

    def _note(self, frame: Frame) -> None:
        if frame.op == "SUB":
            self.subscriptions[frame.sid] = frame
        elif frame.op == "UNSUB" and len(frame.args) == 1:
            self.subscriptions.pop(frame.sid, None)
        elif frame.op == "CONNECT":
            self.connect_options = json.loads(frame.args[0])


def serve(client: FakeClient) -> None:
    """The default handler: a well-behaved handshake, then `FakeClient.serve`."""
    client.handshake()
    client.serve()


def hold(client: FakeClient) -> None:
    """A handler that does nothing until the connection is closed: the test drives the client."""
    client.stall()


class FakeServer:
    """Listens, and runs a handler in a greenlet of its own for each connection.

    ::

        def rude(client):
            client.handshake(max_payload=10)
            client.expect("SUB ")
            client.reset()

        with FakeServer([rude, serve]) as server:      # rude once, then good
            conn = gnats.connect(server.url)
            server.wait_for_client(2)

    A connection is closed when its handler returns. What a handler raises, other than ClientGone,
    is kept in `errors` and `FakeClient.error`.

    Args:
        handler: called with each FakeClient; or a sequence, one per connection in turn, the last
            for all further ones. `serve` by default. Also an attribute, asked at each connection.
        host: address to listen on.
        port: 0 picks a free one, which stays the same over `refuse` and `listen`.
        strict: leaving the context raises AssertionError when a handler failed or a client sent
            a broken frame (unless another exception is on its way).
        rcvbuf: SO_RCVBUF of accepted connections, bytes; a small one makes a stall bite early.
    """

    def __init__(
        self,
        handler: Handler | Sequence[Handler] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        strict: bool = True,
        rcvbuf: int | None = None,
    ) -> None:
        self.handler: Handler | Sequence[Handler] = handler or serve
        self.host = host
        self.strict = strict
        self.clients: list[FakeClient] = []  # every connection so far, closed ones too
        self.errors: list[BaseException] = []
        self._rcvbuf = rcvbuf
        self._wanted_port = port
        self._reserved: ReservedPort | None = None
        self._listener: socket.socket | None = None
        self._acceptor: gevent.Greenlet[..., None] | None = None
        self._handlers: set[gevent.Greenlet[..., None]] = set()

    @property
    def port(self) -> int:
        """The port, listening or not. Chosen at first use."""
        if self._reserved is None:
            self._reserved = ReservedPort(self.host, self._wanted_port)
        return self._reserved.port

    @property
    def url(self) -> str:
        """``nats://host:port``"""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nats://{host}:{self.port}"

    @property
    def is_listening(self) -> bool:
        """Whether new connections are accepted."""
        return self._listener is not None

    def start(self) -> FakeServer:
        """`listen`, and return self."""
        self.listen()
        return self

    def listen(self) -> None:
        """Accept connections, on the same port as before. Does nothing when it does already.

        Does not wait. Raises OSError when the port is taken.
        """
        if self._listener is not None:
            return
        port = self.port
        if self._reserved is not None:
            self._reserved.hold()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._rcvbuf is not None:
                # Before listen: accepted sockets inherit it, and the window is agreed at accept.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
            listener.bind((self.host, port))
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._acceptor = gevent.spawn(self._accept, listener)

    def refuse(self) -> None:
        """Stop listening: further dials are refused. Open connections stay. Switches."""
        listener, self._listener = self._listener, None
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.kill(timeout=TIMEOUT)
        if listener is not None:
            listener.close()
            # gevent closes the descriptor in the hub when a greenlet waited on it: let it.
            gevent.sleep(0)

    def close_clients(self, reset: bool = False) -> None:
        """`close`, or `reset`, every open connection. Never raises."""
        for client in self.clients:
            if reset:
                client.reset()
            else:
                client.close()

    def stop(self) -> None:
        """Refuse, close all connections, end all handlers, give the port back. Switches.

        Idempotent. Never raises for what handlers did: see `check`.
        """
        self.refuse()
        self.close_clients()
        handlers, self._handlers = self._handlers, set()
        gevent.killall(list(handlers), timeout=TIMEOUT)
        if self._reserved is not None:
            self._reserved.release()

    def wait_for_client(self, count: int = 1, timeout: float = TIMEOUT) -> FakeClient:
        """Wait until *count* connections have been accepted in all; return the *count*-th.

        Raises AssertionError when the time is up.
        """
        wait_until(
            lambda: len(self.clients) >= count,
            timeout,
            lambda: f"connection {count} at {self.url}; {len(self.clients)} came",
        )
        return self.clients[count - 1]

    def check(self) -> None:
        """Raise AssertionError if a handler failed or a client sent a broken frame."""
        if self.errors:
            first = self.errors[0]
            raise AssertionError(f"a handler of the fake server failed: {first!r}") from first
        for client in self.clients:
            if client.broken is not None:
                client.assert_whole()

    def __enter__(self) -> FakeServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self.strict and error is None:
            self.check()

    def __repr__(self) -> str:
        port = "unstarted" if self._reserved is None else str(self._reserved.port)
        state = "listening" if self.is_listening else "refusing"
        return f"<FakeServer {port} {state}, {len(self.clients)} clients>"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, address = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = FakeClient(sock, address, len(self.clients), self)
            self.clients.append(client)
            greenlet = gevent.spawn(self._handle, client, self._handler_for(client.number))
            self._handlers.add(greenlet)
            greenlet.link(self._handlers.discard)

    def _handler_for(self, number: int) -> Handler:
        if callable(self.handler):
            return self.handler
        return self.handler[min(number, len(self.handler) - 1)]

    def _handle(self, client: FakeClient, handler: Handler) -> None:
        try:
            handler(client)
        except ClientGone:
            pass
        except (Exception, gevent.Timeout) as exc:
            client.error = exc
            self.errors.append(exc)
        finally:
            client.close()
