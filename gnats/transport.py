"""The only file that touches a socket. Bytes over one link, errors translated at the border.

``Transport`` is a TCP link, ``TLSTransport`` one with TLS on top: the same calls, and the same
meaning of what ``send`` returns. Source for "each address tried": ADR-11.
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import logging
import os
import random
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from gevent import get_hub, socket, ssl
from gevent.hub import Waiter

from .backoff import Deadline
from .errors import (
    CertificateError,
    TimeoutError,
    TLSError,
    TransportError,
    UnexpectedEOF,
    WriteStalledError,
)
from .options import ConnectionOptions, TLSOptions
from .waiting import turn
from .websocket import WebSocket

logger = logging.getLogger("gnats")

# 64 KiB: one recv takes what a kernel hands over at once on loopback; 128 KiB and 256 KiB
# measured no faster, and a larger one crosses malloc's mmap threshold on every call.
RECV_SIZE = 64 * 1024

_READ = 1  # the READ event of gevent's loops
_SEND_TRIES = 8  # in one write_timeout
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_WOULD_BLOCK = (errno.EWOULDBLOCK, errno.EAGAIN)
# The most plaintext that one TLS record holds (RFC 8446, 5.1).
_RECORD = 16 * 1024
# Payload of one WebSocket frame: large enough that masking and its header cost little, small
# enough that what a broken link leaves in doubt stays small.
_FRAME = 64 * 1024
_PROBES = 3  # unanswered keepalive probes of the kernel that end a link


class Link(Protocol):
    """What a session needs of a transport."""

    #: Bytes of a failing ``send`` that the server may have read all the same, beyond those that
    #: the kernel took whole.
    in_doubt: int
    #: Called when the server must be answered below NATS: something must be sent soon.
    on_owing: Callable[[], None]

    def recv(self) -> bytes: ...  # pragma: no cover

    def send(self, data: memoryview) -> int: ...  # pragma: no cover

    def send_all(self, data: bytes) -> None: ...  # pragma: no cover

    def close(self) -> None: ...  # pragma: no cover


class _Sending:
    """What every link can, by its ``send``."""

    def send(self, data: memoryview) -> int:
        raise NotImplementedError

    def send_all(self, data: bytes) -> None:
        """Hand over all of *data*, as in the handshake, where nothing is counted."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]


class Transport(_Sending):
    """One connected link. Made by ``dial``; the session that owns it closes it."""

    in_doubt = 0

    def __init__(self, sock: Any, write_timeout: float) -> None:
        self._sock = sock
        self._write_timeout = write_timeout
        self._may_have_more = False  # the last recv was full: look before waiting
        # One watcher for the life of the link, left running between two waits: starting and
        # stopping one per message costs two system calls.
        self._readable = get_hub().loop.io(sock.fileno(), _READ)
        self._watching = False
        self._closed = False
        self._reader: Waiter[None] = Waiter()  # where one greenlet waits for bytes,
        self._waits = False  # if it does
        # A reset that a send was told of: the kernel tells each error once, then only the end.
        self._reset: OSError | None = None
        self.on_owing: Callable[[], None] = _nothing
        _living.add(self)

    def recv(self) -> bytes:
        """The next bytes; switches until there are some. Raises UnexpectedEOF, TransportError."""
        while True:
            if not self._may_have_more:
                self._wait_readable()
            # A greenlet that outlived its session must not touch a descriptor that may be
            # another's.
            if self._closed:
                raise TransportError("the link is closed")
            try:
                data: bytes = self._sock.recv(RECV_SIZE)
            except OSError as exc:
                if exc.errno not in _WOULD_BLOCK:
                    raise _translate(exc, "receive") from exc
                self._may_have_more = False
                continue
            self._may_have_more = len(data) == RECV_SIZE
            if not data:
                if self._reset is not None:
                    raise _translate(self._reset, "receive") from self._reset
                raise UnexpectedEOF
            return data

    def send(self, data: memoryview) -> int:
        """Hand bytes to the kernel; returns how many it took, at least one.

        Switches only while the kernel takes none. Raises WriteStalledError when that lasts
        ``write_timeout`` seconds, and TransportError.
        """
        stalled_at: Deadline | None = None
        while True:
            if self._closed:
                raise TransportError("the link is closed")
            try:
                sent: int = self._sock.send(data)
                return sent
            except OSError as exc:
                if exc.errno not in _WOULD_BLOCK:
                    if exc.errno == errno.ECONNRESET:  # EPIPE is what follows a FIN
                        self._reset = exc
                    raise _translate(exc, "send") from exc
            stalled_at = stalled_at or Deadline(self._write_timeout)
            if stalled_at.expired:
                raise WriteStalledError(self._write_timeout)
            self._wait_writable()

    def close(self) -> None:
        """Close at once, without waiting for the other side. Never raises, never switches."""
        if self._closed:
            return
        self._closed = True
        self._readable.close()
        try:
            self._sock.close()
        except OSError:
            pass

    def let_go(self) -> None:
        """In a forked child: the socket is the parent's. Its descriptor is made to name a socket of
        nobody, so that whatever is still done to it cannot reach the parent's. Never raises, never
        switches."""
        if self._closed:
            return
        try:
            nobodys = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
            try:
                os.dup2(nobodys.fileno(), self._sock.fileno(), inheritable=False)
            finally:
                nobodys.close()
        except OSError:  # no descriptor is free: then it is closed as it is
            pass

    def _wait_readable(self) -> None:
        if self._closed:
            return
        if not self._watching:
            self._watching = True
            self._readable.start(self._on_readable, pass_events=True)
        self._waits = True
        try:
            self._reader.get()
        finally:
            self._waits = False
            self._reader.clear()

    def _on_readable(self, events: int) -> None:
        """In the hub: the socket has bytes, or has failed.

        The watcher rests until the next wait when nobody waits, because the reader is busy, and
        when *events* tell of an error: libuv takes the socket off its list then by itself.
        """
        if not self._waits or events < 0:
            self._watching = False
            self._readable.stop()
        if self._waits:
            self._reader.switch(None)

    def _wait_writable(self) -> None:
        """Until the kernel calls the socket writable, or a part of ``write_timeout`` is over.

        Only a part, because Linux calls it writable when a third of a send buffer of megabytes
        is free, and a slow server takes that long to free it while it makes steady progress.
        """
        try:
            socket.wait_write(self._sock.fileno(), self._write_timeout / _SEND_TRIES)
        except socket.timeout:
            pass
        except OSError as exc:
            raise _translate(exc, "send") from exc


_living: WeakSet[Transport] = WeakSet()


def let_go_of_all() -> None:
    """In a forked child: no link of the parent can be touched any more. Never switches."""
    for transport in list(_living):
        transport.let_go()


def close_all() -> None:
    """In a forked child, behind ``let_go_of_all``. Never switches."""
    for transport in list(_living):
        transport.close()


class TLSTransport(_Sending):
    """TLS over a transport, through memory: OpenSSL never sees the socket.

    So any SSLContext will do, whoever made it and whether before or after a monkey-patch; reader
    and flusher share the TLS state without a lock, since none of its steps can switch; and it is
    known to the byte what the kernel took. ``send`` takes one record at a time: a record that
    did not leave whole cannot be read by the server, so nothing of it was processed.
    """

    in_doubt = 0

    def __init__(self, below: Transport, context: Any, hostname: str) -> None:
        self._below = below
        self.on_owing: Callable[[], None] = _nothing
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._hostname = hostname
        try:
            self._tls = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=hostname or None
            )
        except (ssl.SSLError, ValueError, UnicodeError) as exc:
            raise TLSError(f"TLS with {hostname!r} is not possible: {exc}") from exc

    def shake_hands(self) -> None:
        """Switches. Raises CertificateError, TLSError, UnexpectedEOF, TransportError."""
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self._below.recv())
            except ssl.SSLCertVerificationError as exc:
                self._say_why()
                raise CertificateError(self._hostname, exc.verify_message or str(exc)) from exc
            except ssl.SSLError as exc:
                self._say_why()
                raise _translate_tls(exc) from exc

    def recv(self) -> bytes:
        """The next bytes; switches until there are some. Raises UnexpectedEOF, TransportError."""
        while True:
            data = self._decrypt()
            if data:
                return data
            self._incoming.write(self._below.recv())

    def send(self, data: memoryview) -> int:
        """Encrypt at most one record, and hand all of it to the kernel; returns the bytes of
        *data* in it. Switches while the kernel takes none. Raises as Transport.send does."""
        part = data[:_RECORD]
        try:
            size = self._tls.write(part)
        except ssl.SSLError as exc:
            raise _translate_tls(exc) from exc
        self._flush()
        return int(size)

    def close(self) -> None:
        """Close at once, without a TLS goodbye. Never raises, never switches."""
        self._below.close()

    def _decrypt(self) -> bytes:
        """All that has arrived and can be read; b"" when a record is not complete yet."""
        pieces = []
        try:
            while True:
                piece = self._tls.read(RECV_SIZE)
                if not piece:
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces)
        except ssl.SSLError as exc:
            if not pieces:
                if isinstance(exc, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
                    raise UnexpectedEOF from exc
                raise _translate_tls(exc) from exc
        if not pieces:
            raise UnexpectedEOF
        return b"".join(pieces)  # the end, or the error, comes again behind these

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._below.send_all(data)

    def _say_why(self) -> None:
        """Let the alert out that tells the server why; if it cannot go, so be it."""
        try:
            self._flush()
        except TransportError:
            pass


class WebSocketTransport(_Sending):
    """WebSocket frames over another link. A frame that left in part may have been read in part."""

    def __init__(self, below: Link, websocket: WebSocket) -> None:
        self._below = below
        self._websocket = websocket
        self._early = b""
        self._owing = False  # it was said that the server must be answered
        self.in_doubt = 0
        self._on_owing: Callable[[], None] = _nothing

    @property
    def on_owing(self) -> Callable[[], None]:
        return self._on_owing

    @on_owing.setter
    def on_owing(self, tell: Callable[[], None]) -> None:
        self._on_owing = tell
        if self._websocket.owes_reply:  # the server has asked during the handshake
            self._owing = True
            tell()

    def shake_hands(self) -> None:
        """The upgrade. Switches. Raises TransportError, ProtocolError, UnexpectedEOF."""
        self._below.send_all(self._websocket.request())
        while not self._websocket.is_open:
            self._early += self._websocket.feed(self._below.recv())
            if not self._websocket.is_open:
                self._websocket.check()

    def recv(self) -> bytes:
        """The next bytes; switches until there are some. Raises UnexpectedEOF, TransportError,
        ProtocolError."""
        data, self._early = self._early, b""
        websocket = self._websocket
        while not data:
            websocket.check()
            data = websocket.feed(b"" if websocket.has_more else self._below.recv())
            if websocket.owes_reply and not self._owing:
                self._owing = True
                self._on_owing()
            if not data:
                turn()  # frames that hold nothing, one behind the other, would keep it from turning
        return data

    def send(self, data: memoryview) -> int:
        """Hand one frame to the kernel, whole; returns the bytes of *data* in it. Switches while
        the kernel takes none. Raises as Transport.send does."""
        part = data[:_FRAME]
        frame, lead = self._websocket.frame(bytes(part))
        self._owing = False
        left, taken = memoryview(frame), 0
        while left:
            size = self._below.send(left)
            left, taken = left[size:], taken + size
            # What is masked can be read byte by byte as it comes; what is compressed, who knows.
            if taken > lead:
                self.in_doubt = len(part) if self._websocket.compresses else taken - lead
        self.in_doubt = 0
        return len(part)

    def close(self) -> None:
        """Close at once, without a goodbye. Never raises, never switches."""
        self._below.close()


def _nothing() -> None:
    pass


def make_context(tls: Any) -> Any:
    """The SSLContext for one attempt: what the user made, or a new one from TLSOptions, whose
    files are read now. None gives the system's defaults. Raises TLSError."""
    if tls is not None and not isinstance(tls, TLSOptions):
        return tls
    options = tls or TLSOptions()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    context.minimum_version = versions[options.minimum_version]
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2 only: a link has one reader, one writer
    if not options.verify:
        logger.warning(
            "gnats: TLS without verification: anybody on the way can read and change everything"
        )
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load(context, options)
    return context


def _load(context: Any, options: TLSOptions) -> None:
    try:
        if options.ca is None:
            context.load_default_certs()
        elif os.path.isdir(options.ca):
            context.load_verify_locations(capath=os.fspath(options.ca))
        else:
            context.load_verify_locations(cafile=os.fspath(options.ca))
    except (OSError, ssl.SSLError) as exc:
        raise TLSError(
            f"tls: the ca {os.fspath(options.ca or '')!r} cannot be used: {exc}"
        ) from exc
    try:
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key, options.key_password or _no_password)
    except (OSError, ssl.SSLError) as exc:
        names = f"{os.fspath(options.cert)!r}" if options.cert else ""
        raise TLSError(f"tls: the cert {names} and its key cannot be used: {exc}") from exc
    if options.ciphers is not None:
        try:
            context.set_ciphers(options.ciphers)
        except ssl.SSLError as exc:
            raise TLSError(f"tls: the ciphers {options.ciphers!r} cannot be used: {exc}") from exc


def _no_password() -> str:
    # Without one OpenSSL would ask at the terminal, and hold the whole process.
    raise TLSError("tls: the key is encrypted: give its key_password")


def _translate_tls(exc: Exception) -> TLSError:
    reason = getattr(exc, "reason", None)
    text = str(reason).replace("_", " ").lower() if reason else str(exc)
    return TLSError(f"TLS failed: {text}")


def dial(host: str, port: int, options: ConnectionOptions, deadline: Deadline) -> Transport:
    """Connect: by the user's ``dialer``, or to each address of *host*, resolved anew, in turn.

    Switches. Raises TransportError with the reason of the last address, or TimeoutError when
    the deadline comes first; each address gets its share of the time that is left.
    """
    if options.dialer is not None:
        sock = _adopt(options.dialer, host, port, deadline)
        return Transport(_tuned(sock, options, "the dialer's socket"), options.write_timeout)
    last: Exception | None = None
    ways = _ways(host, port, options.local_addr)
    for index, (family, address, local) in enumerate(ways):
        remaining = deadline.remaining()
        share = None if remaining is None else remaining / (len(ways) - index)
        try:
            sock = _connect(family, address, share, local, f"{host}:{port}")
            sock = _tuned(sock, options, f"the socket to {host}:{port}")
            return Transport(_bare(sock), options.write_timeout)
        except (TransportError, TimeoutError) as exc:
            last = exc
    assert last is not None
    raise last


def _bare(sock: socket.socket) -> Any:
    """The kernel's socket out of gevent's: a link waits by its own watcher, and each layer above
    recv and send costs a tenth of a short message's way."""
    bare = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    bare.setblocking(False)
    return bare


def _adopt(dialer: Callable[..., Any], host: str, port: int, deadline: Deadline) -> Any:
    """A socket from the user's callable; its own errors, but for the time-outs, pass through."""
    try:
        sock = dialer(host, port, deadline.remaining() or 0.0)
    except OSError as exc:
        raise _translate(exc, f"connect to {host}:{port} by the dialer") from exc
    if not all(hasattr(sock, name) for name in ("fileno", "recv", "send", "close", "settimeout")):
        raise TransportError(
            f"the dialer must return a connected socket, not {type(sock).__name__}"
        )
    return sock


# (host, port) with IPv4, two numbers more with IPv6.
_Address = tuple[object, ...]


def _ways(
    host: str, port: int, local_addr: tuple[str, int] | None
) -> list[tuple[int, _Address, _Address | None]]:
    """The addresses of *host*, each with its family and the address to connect from. Switches."""
    addresses = _resolve(host, port)
    if local_addr is None:
        return [(family, address, None) for family, address in addresses]
    here, from_port = local_addr
    local: dict[int, _Address | None] = {}
    if here:
        local.update(_resolve(here, from_port, "local_addr "))
    else:  # any of ours
        local.update(dict.fromkeys(_FAMILY.values(), local_addr))
    ways = [(family, there, local[family]) for family, there in addresses if family in local]
    if not ways:
        raise TransportError(
            f"cannot connect to {host}:{port} from local_addr {here!r}: one is IPv4, one is IPv6"
        )
    return ways


def _resolve(host: str, port: int, what: str = "") -> list[tuple[int, _Address]]:
    """Family and address of all that *host* stands for. Switches unless it is an address."""
    try:
        # A literal address needs no resolver, whose first use starts gevent's thread pool.
        ip = ipaddress.ip_address(host)
        if "%" not in host:
            return [(_FAMILY[ip.version], (host, port))]
    except ValueError:
        pass
    try:
        host.encode("idna")  # before gevent's thread pool does, which would print a stack
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no host name"
        raise TransportError(f"cannot resolve {what}{host!r}: {reason}") from exc
    unique: list[tuple[int, _Address]]
    unique = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    if not unique:
        raise TransportError(f"cannot resolve {what}{host!r}: it has no address")
    random.shuffle(unique)  # so that many clients spread over the addresses of one name
    return unique


def _connect(
    family: int, address: _Address, timeout: float | None, local: _Address | None, name: str
) -> socket.socket:
    """A socket connected to *address*, which is *name* in errors. Switches."""
    doing = f"connect to {name}"
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        if local is not None:
            _bind(sock, local)
        sock.connect(address)
        if sock.getsockname() == sock.getpeername():
            # A port of the ephemeral range on which nobody listens can answer itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    except BaseException as exc:
        if sock is not None:
            sock.close()
        if isinstance(exc, OSError):
            raise _translate(exc, doing) from exc
        raise
    return sock


def _bind(sock: socket.socket, local: _Address) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(local)
    except OSError as exc:
        raise _translate(exc, f"connect from local_addr {local[0]!r}, port {local[1]}") from exc


def _tuned(sock: socket.socket, options: ConnectionOptions, name: str) -> socket.socket:
    """Make *sock*, which is *name* in errors, ready: it never blocks, sends at once, and the
    kernel watches it if asked to. It is closed when that fails. Never switches."""
    try:
        sock.settimeout(0)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _watch(sock, options)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):
            raise _translate(exc, f"set the options of {name}") from exc
        raise
    return sock


def _watch(sock: socket.socket, options: ConnectionOptions) -> None:
    if options.tcp_keepalive is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        seconds = max(1, round(options.tcp_keepalive))
        for name, value in (
            ("TCP_KEEPIDLE", seconds),
            ("TCP_KEEPINTVL", max(1, seconds // _PROBES)),
            ("TCP_KEEPCNT", _PROBES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if options.tcp_user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(options.tcp_user_timeout * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _translate(exc: BaseException, doing: str) -> Exception:
    """The operating system's error in our words; the caller keeps it as the cause."""
    if isinstance(exc, socket.timeout):
        return TimeoutError(f"timed out: {doing}")
    if isinstance(exc, socket.gaierror):  # its numbers are no errno
        return TransportError(f"cannot {doing}: {exc.strerror}")
    if isinstance(exc, OSError) and exc.errno is not None:
        return TransportError(f"cannot {doing}: {os.strerror(exc.errno)}")
    return TransportError(f"cannot {doing}: {exc}")
