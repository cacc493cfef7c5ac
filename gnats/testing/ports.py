"""Which port. Picks free loopback ports and keeps them for their owner; never listens itself.

Ports come from below the kernel's ephemeral range, for two reasons: no outgoing connection of a
busy test run can take one of them, and a client that dials a dead port cannot meet itself there
(TCP lets a socket connect to its own port, and loopback tests of reconnection do hit that).
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys

__all__ = ["ReservedPort", "free_port"]

_LOWEST = 10240
_HIGHEST = 32767  # Linux and Go hand out ephemeral ports from 32768 up
_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
_ATTEMPTS = 200

# SystemRandom: a forked or a seeded test process must not repeat the choices of its sibling.
_random = random.SystemRandom()
_handed_out: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of *host* that nobody uses now.

    No port is returned twice by one process. Another process may still take it before you do;
    a `ReservedPort` closes that gap. Never switches greenlets. Raises OSError when none is found.
    """
    sock = _bind_any(host)
    try:
        return int(sock.getsockname()[1])
    finally:
        sock.close()


class ReservedPort:
    """A port that stays its owner's even while nobody listens on it.

    On Linux a socket is bound to it and never listens: dialling the port is refused, as with a
    dead server, and nobody else can take it, yet a server that sets SO_REUSEADDR (Go's do, and so
    does `FakeServer`) can listen beside it. Elsewhere the port is only chosen, not held.

    *port* 0 picks a free one. An explicit port that is taken is not an error here: the server
    that wants it will say so better. Never switches greenlets. Raises OSError when no port is
    free.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self._holder: socket.socket | None = None
        if port == 0:
            self._keep(_bind_any(host))
        else:
            self.port = port
            self.hold()

    def hold(self) -> None:
        """Keep the port again after `release`, if nobody took it. Never switches, never raises."""
        if self._holder is None:
            with contextlib.suppress(OSError):
                self._keep(_bind(self.host, self.port))

    def release(self) -> None:
        """Give the port back. Never switches. May be called again."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def _keep(self, holder: socket.socket) -> None:
        self.port = int(holder.getsockname()[1])
        if sys.platform.startswith("linux"):
            # Set after the bind: the bind stays exclusive, and later binds may join.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._holder = holder
        else:
            holder.close()


def _bind_any(host: str) -> socket.socket:
    lowest, highest = _candidate_range()
    last: OSError | None = None
    for _ in range(_ATTEMPTS):
        port = _random.randint(lowest, highest)
        if port in _handed_out:
            continue
        try:
            sock = _bind(host, port)
        except OSError as exc:
            last = exc
            continue
        _handed_out.add(port)
        return sock
    # A crowded range or a long run: whatever the kernel has.
    try:
        return _bind(host, 0)
    except OSError as exc:
        raise OSError(f"no free port on {host} in {lowest}-{highest}") from (last or exc)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _candidate_range() -> tuple[int, int]:
    highest = _HIGHEST
    with contextlib.suppress(OSError, ValueError, IndexError), open(_RANGE_FILE) as lines:
        ephemeral_low = int(lines.read().split()[0])
        # A machine tuned to use nearly all ports leaves no room below; then collisions are
        # answered by the retry of whoever starts the server.
        if ephemeral_low - 1 >= _LOWEST + 2000:
            highest = min(highest, ephemeral_low - 1)
    return _LOWEST, highest
