"""Several real servers with routes among them, on free ports. Each is a NatsServer to be hurt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from gnats.testing.ports import ReservedPort
from gnats.testing.servers import NatsServer, ServerStartError
from gnats.testing.waiting import wait_until

__all__ = ["NatsCluster"]

# Routes form in 10 ms; a node whose dial came too early tries again only after about a second.
FORM_TIMEOUT = 15.0


class NatsCluster:
    """A full mesh of nats-servers.

    ::

        with NatsCluster(3) as cluster:
            conn = gnats.connect(cluster.url)
            cluster[0].kill()

    Args:
        size: number of servers to begin with.
        config: text of configuration for every server; it must not hold a `cluster` block.
        args: further command line arguments for every server.
        name: the cluster's name; unique by default. Servers are called ``<name>-0`` and so on.
        no_advertise: servers do not tell clients of each other (no `connect_urls` in INFO).
        jetstream: enable JetStream; `start` then also waits until it is healthy.
        options: what else NatsServer takes (user, password, token, host, debug, ...), for all.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        config: str | None = None,
        args: Sequence[str] = (),
        name: str | None = None,
        no_advertise: bool = False,
        jetstream: bool = False,
        **options: Any,
    ) -> None:
        if size < 1:
            raise ValueError("a cluster has at least one server")
        self.config = config
        self.no_advertise = no_advertise
        self.jetstream = jetstream
        self.servers: list[NatsServer] = []
        self._size = size
        self._args = list(args)
        self._options = options
        self._route_ports: dict[NatsServer, ReservedPort] = {}
        self._numbered = 0
        self._name = name

    @property
    def name(self) -> str:
        """The cluster's name. Chosen when its first server is made."""
        return self._name or "unstarted"

    @property
    def urls(self) -> list[str]:
        """The client url of each server, running or not, in order."""
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """All client urls, joined with commas."""
        return ",".join(self.urls)

    def __len__(self) -> int:
        return len(self.servers)

    def __getitem__(self, index: int) -> NatsServer:
        return self.servers[index]

    def __iter__(self) -> Iterator[NatsServer]:
        return iter(self.servers)

    def start(self) -> NatsCluster:
        """Start all servers and wait until all routes are formed. Switches. Returns self.

        Servers that exist already are started again on their ports. Raises ServerStartError.
        """
        while len(self.servers) < self._size:
            self._make()
        if self.jetstream:
            # With JetStream a server does not start at all unless it has routes configured.
            self._configure_all()
        for server in self.servers:
            server.start()
        self._configure_all()
        self.wait_formed()
        return self

    def add(self) -> NatsServer:
        """Start one more server, wait until all see it (switches), and return it.

        Raises ServerStartError; the cluster is then as it was.
        """
        server = self._make()
        try:
            server.start()
        except BaseException:
            self._discard(server)
            raise
        self._size = len(self.servers)
        self._configure_all()
        self.wait_formed()
        return server

    def remove(self, server: int | NatsServer) -> None:
        """Stop a server for good and wait until the others have noticed (switches)."""
        gone = self.servers[server] if isinstance(server, int) else server
        gone.stop()
        self._discard(gone)
        self._size = max(1, len(self.servers))
        self._configure_all()
        self.wait_formed()

    def wait_formed(self, timeout: float = FORM_TIMEOUT) -> None:
        """Wait until every running server has routes to all other running ones, and no more.

        Paused servers are not asked, and routes to them may stand or not. Switches. Raises
        ServerStartError, with what each server sees, after *timeout* seconds.
        """
        deadline = monotonic() + timeout
        try:
            wait_until(self._is_formed, timeout)
            if self.jetstream:
                wait_until(self._is_healthy, max(0.0, deadline - monotonic()))
        except AssertionError as exc:
            seen = {s.name: sorted(_peers(s)) for s in self.servers if _answers(s)}
            raise ServerStartError(f"cluster not formed within {timeout:g} s: {seen}") from exc

    def close(self) -> None:
        """Kill all servers, remove their files, give back their ports. Switches."""
        for server in list(self.servers):
            self._discard(server)
        self._numbered = 0

    def __enter__(self) -> NatsCluster:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NatsCluster {self.name} {self.servers!r}>"

    def _make(self) -> NatsServer:
        server = NatsServer(args=self._args, jetstream=self.jetstream, **self._options)
        if self._name is None:
            self._name = server.name.replace("test", "cluster", 1)
        server.name = f"{self._name}-{self._numbered}"
        self._numbered += 1
        self._route_ports[server] = ReservedPort(server.host)
        # At first it dials only those that start before it: a dial that comes too early costs the
        # second that nats-server waits between two attempts.
        server.config = self._config_for(server)
        self.servers.append(server)
        return server

    def _discard(self, server: NatsServer) -> None:
        self.servers.remove(server)
        self._route_ports.pop(server).release()
        server.close()

    def _configure_all(self) -> None:
        # For their next start: whoever comes back must find the others by itself.
        for server in self.servers:
            server.config = self._config_for(server)

    def _config_for(self, server: NatsServer) -> str:
        others = [self._route_url(other) for other in self.servers if other is not server]
        lines = [
            self.config or "",
            "cluster {",
            f'  name: "{self._name}"',
            f'  listen: "{self._route_url(server).partition("//")[2]}"',
            f"  no_advertise: {'true' if self.no_advertise else 'false'}",
            f"  routes: [{', '.join(chr(34) + url + chr(34) for url in others)}]",
            "}",
        ]
        return "\n".join(lines)

    def _route_url(self, server: NatsServer) -> str:
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"nats://{host}:{self._route_ports[server].port}"

    def _is_formed(self) -> bool:
        running = [server for server in self.servers if _answers(server)]
        wanted = {server.name for server in running}
        allowed = wanted | {server.name for server in self.servers if server.is_paused}
        return all(
            wanted - {server.name} <= _peers(server) <= allowed - {server.name}
            for server in running
        )

    def _is_healthy(self) -> bool:
        return all(_is_healthy(server) for server in self.servers if _answers(server))


def _answers(server: NatsServer) -> bool:
    return server.is_running and not server.is_paused


def _peers(server: NatsServer) -> set[str]:
    try:
        routes = server.routez().get("routes") or []
    except OSError:
        return set()
    return {str(route["remote_name"]) for route in routes}


def _is_healthy(server: NatsServer) -> bool:
    try:
        return server.monitor("/healthz").get("status") == "ok"
    except OSError:
        return False
