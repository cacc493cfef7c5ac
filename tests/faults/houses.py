"""Where a cell is played: a server, or several, with their witnesses.

A house is made once per kind and used again, because starting servers is what takes the time.
``tidy`` brings it back to where it began.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from gnats.testing import ChaosProxy, NatsCluster, NatsServer, wait_until

from .peers import Witnesses, filler
from .relay import Relay

PATIENCE = 10.0  # seconds for what takes milliseconds on a quiet machine
PLACES = 6  # connections that the server with a limit takes
APP = ("app", "sesame")
WITNESS = {"user": "witness", "pass": "sees-all"}


def _users(password: str) -> str:
    witness = f'{{user: "{WITNESS["user"]}", password: "{WITNESS["pass"]}"}}'
    app = f'{{user: "{APP[0]}", password: "{password}"}}'
    return f"authorization {{ users: [{witness}, {app}] }}"


class House:
    """One server and its witnesses."""

    proxied = True
    credentials: dict[str, str] | None = None

    def __init__(self) -> None:
        self.server = self._make_server()
        self.server.start()
        self.witnesses = Witnesses((self.server.host, self.server.port), self.credentials)
        self.witnesses.wait_ready()

    def _make_server(self) -> NatsServer:
        return NatsServer()

    @property
    def servers(self) -> list[NatsServer]:
        return [self.server]

    @property
    def target(self) -> str:
        return self.server.url

    def urls(self, proxy: ChaosProxy | None, ahead: bool = False) -> list[str]:
        """What the application is given; *ahead*: it must find its way past the fault."""
        assert proxy is not None
        return [proxy.url]

    def connections(self) -> int:
        """Client connections at all servers, those of the witnesses not counted."""
        count = -2
        for server in self.servers:
            with suppress(OSError):  # it is on its way out
                count += server.varz()["connections"] if server.is_running else 0
        return count

    def tidy(self) -> None:
        """As it was, for the next cell."""
        if self.server.is_paused:
            self.server.resume()
        self.server.start()
        self.witnesses.wait_ready()

    def close(self) -> None:
        self.witnesses.close()
        self.server.close()


class AuthHouse(House):
    """A server that wants a password, which a reload can change."""

    credentials = WITNESS

    def _make_server(self) -> NatsServer:
        return NatsServer(config=_users(APP[1]))

    def change_password(self, password: str) -> None:
        self.server.reload(_users(password))

    def urls(self, proxy: ChaosProxy | None, ahead: bool = False) -> list[str]:
        assert proxy is not None
        return [proxy.url.replace("//", f"//{APP[0]}:{APP[1]}@")]

    def tidy(self) -> None:
        self.change_password(APP[1])
        super().tidy()


class LimitedHouse(House):
    """A server that takes so many connections and no more."""

    def __init__(self) -> None:
        super().__init__()
        self._fillers: list[Any] = []

    def _make_server(self) -> NatsServer:
        return NatsServer(config=f"max_connections: {PLACES}")

    def fill(self) -> None:
        """Others take all the places that are free."""
        while self.server.varz()["connections"] < PLACES:
            self._fillers.append(filler((self.server.host, self.server.port)))

    def free(self) -> None:
        fillers, self._fillers = self._fillers, []
        for sock in fillers:
            sock.close()

    def tidy(self) -> None:
        self.free()
        super().tidy()


class RelayHouse(House):
    """A server, and before it a relay that can speak in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay((self.server.host, self.server.port))

    @property
    def target(self) -> str:
        return self.relay.url

    def tidy(self) -> None:
        self.relay.hush()
        super().tidy()

    def close(self) -> None:
        self.relay.close()
        super().close()


class ClusterHouse(House):
    """Three servers; the witnesses are at the last, which is never hurt. No proxy."""

    proxied = False

    def __init__(self) -> None:
        self.cluster = NatsCluster(3, lame_duck_grace_period=0.05)
        self.cluster.start()
        self._leaving: list[NatsServer] = []  # lame ducks, on their way out
        super().__init__()

    def _make_server(self) -> NatsServer:
        return self.cluster[2]

    @property
    def servers(self) -> list[NatsServer]:
        return list(self.cluster)

    @property
    def first(self) -> NatsServer:
        """The server that the application is given, and that is hurt."""
        return next(one for one in self.cluster if one is not self.server)

    def lame_duck(self) -> None:
        self._leaving.append(self.first)
        self.first.lame_duck()

    def urls(self, proxy: ChaosProxy | None, ahead: bool = False) -> list[str]:
        return [self.first.url, self.server.url] if ahead else [self.first.url]

    def tidy(self) -> None:
        while self._leaving:
            self._leaving.pop().stop()
        while len(self.cluster) < 3:
            self.cluster.add()
        for server in self.cluster:
            server.start()
        self.cluster.wait_formed()
        self.witnesses.wait_ready()
        self._await_interest()

    def _await_interest(self) -> None:
        """Every server knows that the witnesses listen: what is published there arrives."""
        for server in self.cluster:
            wait_until(
                lambda server=server: (
                    any(
                        sub.get("subject") == "numbers.*"
                        for route in server.monitor("/routez?subs=detail").get("routes") or []
                        for sub in route.get("subscriptions_list_detail") or []
                    )
                    or server is self.server
                ),
                PATIENCE,
                f"{server!r} to know of the witnesses",
            )

    def close(self) -> None:
        self.witnesses.close()
        self.cluster.close()


HOUSES: dict[str, type[House]] = {
    "plain": House,
    "auth": AuthHouse,
    "limited": LimitedHouse,
    "relay": RelayHouse,
    "cluster": ClusterHouse,
}
