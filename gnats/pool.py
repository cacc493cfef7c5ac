"""Which server next. No sockets, no clock, no waiting: it decides, the reconnector acts.

An ordered queue. Next is the head; a server that fails, or whose link is lost, moves to the
back. A *cycle* is every eligible server tried once; a server that failed ``max_reconnect``
times in one outage is not eligible until the next outage, but never forgotten if a person
configured it. Servers that INFO's connect_urls announced ("discovered") come and go with it.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .errors import AuthorizationError, BadURLError
from .url import ServerURL, parse_url


class PoolServer:
    """One server of the pool, with its record in the present outage."""

    __slots__ = ("discovered", "failures", "last_error", "repeated_auth_error", "tried_in", "url")

    def __init__(self, url: ServerURL, discovered: bool = False) -> None:
        self.url = url
        self.discovered = discovered
        self.failures = 0  # failed attempts in this outage
        self.tried_in = 0  # number of the cycle in which it was last tried
        self.last_error: Exception | None = None
        self.repeated_auth_error = False

    def __repr__(self) -> str:
        return f"<PoolServer {self.url.address} failures={self.failures}>"


class ServerPool:
    """The servers, in order of preference. Never switches."""

    def __init__(
        self,
        max_reconnect: int = 60,
        randomize: bool = False,
        ignore_discovered: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._max_reconnect = max_reconnect
        self._randomize = randomize
        self._ignore_discovered = ignore_discovered
        self._rng = rng or random.Random()
        self._queue: list[PoolServer] = []
        self._cycle = 1
        self.current: PoolServer | None = None

    # -- who is in it --------------------------------------------------------------------

    @property
    def servers(self) -> list[ServerURL]:
        """Every server, in the order in which they would be tried."""
        return [server.url for server in self._queue]

    @property
    def discovered(self) -> list[ServerURL]:
        return [server.url for server in self._queue if server.discovered]

    def add(self, url: ServerURL) -> bool:
        """Add a configured server at the back; a discovered one becomes configured. Returns
        whether the pool has a new address."""
        known = self._find(url.address)
        if known is not None:
            known.url, known.discovered = url, False
            return False
        self._queue.append(PoolServer(url))
        return True

    def replace(self, urls: Sequence[ServerURL]) -> None:
        """Make *urls* the configured servers, in their order; records of those kept stay.
        Discovered servers that are not named stay behind them."""
        kept = {server.url.address: server for server in self._queue}
        fresh = []
        for url in self._shuffled(urls):
            server = kept.pop(url.address, None) or PoolServer(url)
            server.url, server.discovered = url, False
            fresh.append(server)
        self._queue = fresh + [s for s in kept.values() if s.discovered]

    def discover(self, addresses: Iterable[str]) -> list[ServerURL]:
        """Take INFO's connect_urls: add new servers at the back, shuffled; forget discovered
        ones that vanished, but never the current one. Returns the new ones.

        An INFO without any says nothing of the others: a server whose configuration does not
        advertise, or that has just come up, names nobody.

        An address that cannot be read is the server's mistake and is passed over.
        """
        if self._ignore_discovered:
            return []
        addresses = list(addresses)
        if not addresses:
            return []
        announced = {url.address: url for url in map(_read_address, addresses) if url}
        self._queue = [
            server
            for server in self._queue
            if not server.discovered or server is self.current or server.url.address in announced
        ]
        known = {server.url.address for server in self._queue}
        new = [url for address, url in announced.items() if address not in known]
        self._rng.shuffle(new)
        self._queue += [PoolServer(self._inherit(url), discovered=True) for url in new]
        return new

    def inherit(self) -> None:
        """In a forked child: nobody is connected yet, and chance is its own."""
        self.current = None
        self._rng.seed()

    # -- who is next ---------------------------------------------------------------------

    def begin_outage(self) -> None:
        """Forget failures; every server is eligible again."""
        self._cycle = 1
        for server in self._queue:
            server.failures = 0
            server.tried_in = 0
            server.last_error = None
            server.repeated_auth_error = False

    def begin_cycle(self) -> None:
        self._cycle += 1

    def __contains__(self, server: object) -> bool:
        return server in self._queue

    def next(self, *, ignore_limit: bool = False) -> PoolServer | None:
        """The server to try now, or None when this cycle has tried every eligible one."""
        for server in self._queue:
            if server.tried_in < self._cycle and (ignore_limit or self._eligible(server)):
                server.tried_in = self._cycle
                return server
        return None

    def others(self, present: ServerURL) -> list[PoolServer]:
        """The servers beside the *present* one, in order."""
        return [s for s in self._queue if s.url.address != present.address]

    @property
    def eligible(self) -> list[ServerURL]:
        """The servers that may be tried in this outage, in order."""
        return [server.url for server in self._queue if self._eligible(server)]

    def take(self, url: ServerURL) -> PoolServer | None:
        """The server that somebody chose to try now; None when it may not be tried."""
        server = self._find(url.address)
        if server is None or not self._eligible(server):
            return None
        server.tried_in = self._cycle
        return server

    @property
    def has_untried(self) -> bool:
        """Whether a server waits for its turn in this cycle, as a newly added one does."""
        return any(s.tried_in < self._cycle and self._eligible(s) for s in self._queue)

    @property
    def exhausted(self) -> bool:
        """Whether no server may be tried any more in this outage."""
        return not any(map(self._eligible, self._queue))

    def failed(self, server: PoolServer, error: Exception) -> None:
        """An attempt failed: count it against the server and move it to the back."""
        server.failures += 1
        server.repeated_auth_error = (
            isinstance(error, AuthorizationError)
            and type(server.last_error) is type(error)
            and str(server.last_error) == str(error)
        )
        server.last_error = error
        self._to_back(server)

    def succeeded(self, server: PoolServer) -> None:
        """A handshake succeeded: the server is the current one, its record clean."""
        server.failures = 0
        server.last_error = None
        server.repeated_auth_error = False
        self.current = server

    def lost(self) -> None:
        """The current server's link was lost: it goes to the back, uncounted."""
        if self.current is not None:
            self._to_back(self.current)
            self.current = None

    def last_errors(self) -> dict[str, Exception]:
        """Each server's own last failure."""
        return {str(s.url): s.last_error for s in self._queue if s.last_error is not None}

    # -- inside --------------------------------------------------------------------------

    def _eligible(self, server: PoolServer) -> bool:
        return self._max_reconnect < 0 or server.failures < self._max_reconnect

    def _find(self, address: str) -> PoolServer | None:
        return next((s for s in self._queue if s.url.address == address), None)

    def _to_back(self, server: PoolServer) -> None:
        # It may have been removed by set_servers() while it was being tried.
        if server in self._queue:
            self._queue.remove(server)
            self._queue.append(server)

    def _shuffled(self, urls: Sequence[ServerURL]) -> list[ServerURL]:
        shuffled = list(urls)
        if self._randomize:
            self._rng.shuffle(shuffled)
        return shuffled

    def _inherit(self, url: ServerURL) -> ServerURL:
        """A discovered server is reached as the one that announced it: with its credentials, its
        scheme and path, and, when it goes by an address, under its name in certificates."""
        if self.current is None:
            return url
        source = self.current.url
        if not url.has_credentials:
            url = replace(url, user=source.user, password=source.password, token=source.token)
        name = None
        if _is_address(url.host):
            name = source.tls_name or (None if _is_address(source.host) else source.host)
        return replace(url, scheme=source.scheme, path=source.path, tls_name=name)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _read_address(address: str) -> ServerURL | None:
    try:
        return parse_url(address)
    except BadURLError:
        return None
