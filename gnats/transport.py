"""The only file that touches a socket. Bytes over one TCP link, errors translated at the border.

Room for TLS and WebSocket: they wrap what ``dial`` connects, behind the same three calls.
Source for "each address tried": ADR-11.
"""

from __future__ import annotations

import errno
import ipaddress
import os

from gevent import get_hub, socket
from gevent.hub import Waiter

from .backoff import Deadline
from .errors import TimeoutError, TransportError, UnexpectedEOF, WriteStalledError

# 64 KiB: one recv takes what a kernel hands over at once on loopback; 128 KiB and 256 KiB
# measured no faster, and a larger one crosses malloc's mmap threshold on every call.
RECV_SIZE = 64 * 1024

_READ = 1  # the READ event of gevent's loops
_SEND_TRIES = 8  # in one write_timeout
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_WOULD_BLOCK = (errno.EWOULDBLOCK, errno.EAGAIN)


class Transport:
    """One connected link. Made by ``dial``; the session that owns it closes it."""

    def __init__(self, sock: socket.socket, write_timeout: float) -> None:
        self._sock = sock
        self._write_timeout = write_timeout
        self._may_have_more = False  # the last recv was full: look before waiting
        # One watcher for the life of the link, left running between two waits: starting and
        # stopping one per message costs two system calls.
        self._readable = get_hub().loop.io(sock.fileno(), _READ)
        self._watching = False
        self._closed = False
        self._reader: Waiter[None] | None = None  # who waits for bytes
        # A reset that a send was told of: the kernel tells each error once, then only the end.
        self._reset: OSError | None = None

    def recv(self) -> bytes:
        """The next bytes; switches until there are some. Raises UnexpectedEOF, TransportError."""
        while True:
            if not self._may_have_more:
                self._wait_readable()
            self._check_open()
            try:
                data = self._sock.recv(RECV_SIZE)
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
            self._check_open()
            try:
                return self._sock.send(data)
            except OSError as exc:
                if exc.errno not in _WOULD_BLOCK:
                    if exc.errno == errno.ECONNRESET:  # EPIPE is what follows a FIN
                        self._reset = exc
                    raise _translate(exc, "send") from exc
            stalled_at = stalled_at or Deadline(self._write_timeout)
            if stalled_at.expired:
                raise WriteStalledError(self._write_timeout)
            self._wait_writable()

    def send_all(self, data: bytes) -> None:
        """Hand over all of *data*, as in the handshake, where nothing is counted."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

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

    def _check_open(self) -> None:
        # A greenlet that outlived its session must not touch a descriptor that may be another's.
        if self._closed:
            raise TransportError("the link is closed")

    def _wait_readable(self) -> None:
        self._check_open()
        waiter: Waiter[None] = Waiter()
        self._reader = waiter
        if not self._watching:
            self._watching = True
            self._readable.start(self._on_readable, pass_events=True)
        try:
            waiter.get()
        finally:
            self._reader = None

    def _on_readable(self, events: int) -> None:
        """In the hub: the socket has bytes, or has failed.

        The watcher rests until the next wait when nobody waits, because the reader is busy, and
        when *events* tell of an error: libuv takes the socket off its list then by itself.
        """
        if self._reader is None or events < 0:
            self._watching = False
            self._readable.stop()
        if self._reader is not None:
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


def dial(host: str, port: int, deadline: Deadline, write_timeout: float) -> Transport:
    """Resolve *host* anew, try each of its addresses, return the first link that connects.

    Switches. Raises TransportError with the reason of the last address, or TimeoutError when
    the deadline comes first; each address gets its share of the time that is left.
    """
    addresses = _resolve(host, port)
    last: Exception | None = None
    for index, (family, address) in enumerate(addresses):
        remaining = deadline.remaining()
        share = None if remaining is None else remaining / (len(addresses) - index)
        try:
            return Transport(_connect(family, address, share), write_timeout)
        except OSError as exc:
            last = exc
    raise _translate(last, f"connect to {host}:{port}") from last


def _resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    try:
        # A literal address needs no resolver, whose first use starts gevent's thread pool.
        ip = ipaddress.ip_address(host)
        if "%" not in host:
            return [(_FAMILY[ip.version], (host, port))]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no host name"
        raise TransportError(f"cannot resolve {host!r}: {reason}") from exc
    unique = dict.fromkeys((family, address) for family, _, _, _, address in found)
    if not unique:
        raise TransportError(f"cannot resolve {host!r}: it has no address")
    return list(unique)


def _connect(family: int, address: tuple[object, ...], timeout: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
        if sock.getsockname() == sock.getpeername():
            # A port of the ephemeral range on which nobody listens can answer itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _translate(exc: BaseException | None, doing: str) -> Exception:
    """The operating system's error in our words; the caller keeps it as the cause."""
    if isinstance(exc, socket.timeout):
        return TimeoutError(f"timed out: {doing}")
    if isinstance(exc, OSError) and exc.errno is not None:
        return TransportError(f"cannot {doing}: {os.strerror(exc.errno)}")
    return TransportError(f"cannot {doing}: {exc}")
