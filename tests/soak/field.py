"""Three servers, a proxy in front of each, and what can happen to them. It judges nothing.

A fault is begun by a function that returns how to end it. Not among them: corrupted bytes. TCP
keeps those away, and NATS has no checksum that could tell.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import gevent

import gnats
from gnats.testing import ChaosLink, ChaosProxy, NatsCluster, NatsServer, wait_until

Undo = Callable[[], object]

LAME_DUCK_GRACE = 0.3  # seconds
PATIENCE = 30.0  # seconds for what should take less than one


def _nothing() -> None:
    """To undo what is over by itself."""


class Field:
    """Enter it to have it stand."""

    def __init__(self, rng: random.Random, tls: bool = False) -> None:
        self.rng = rng
        self._options: dict[str, Any] = {}
        self._directory = TemporaryDirectory(prefix="gnats-soak-")
        self.cluster = NatsCluster(
            3,
            config=self._tls_config() if tls else None,
            no_advertise=True,
            lame_duck_grace_period=LAME_DUCK_GRACE,
        )
        self.proxies: list[ChaosProxy] = []
        self.counts: Counter[str] = Counter()
        self._network: dict[str, Callable[[], Undo]] = {
            "reset": lambda: self._at_once(lambda one: one.reset()),
            "fin": lambda: self._at_once(lambda one: one.finish()),
            "cut": self._cut,
            "blackhole": self._blackhole,
            "swallow": lambda: self._while_it_lasts(lambda one: one.swallow()),
            "half open": lambda: self._while_it_lasts(lambda one: one.half_open()),
            "throttle": lambda: self._while_it_lasts(lambda one: one.throttle(20_000)),
            "delay": lambda: self._while_it_lasts(lambda one: one.delay(0.2)),
            "refuse": self._refuse,
            "stuck handshake": self._stall_handshakes,
            "cut handshake": self._cut_handshakes,
        }
        self._servers: dict[str, Callable[[], Undo]] = {
            "kill": lambda: self._down(NatsServer.kill),
            "stop": lambda: self._down(NatsServer.stop),
            "lame duck": lambda: self._down(_leave_in_good_order),
            "pause": self._pause,
        }

    def __enter__(self) -> Field:
        self.cluster.start()
        self.proxies = [ChaosProxy(server.url).start() for server in self.cluster]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._directory.cleanup)
            stack.callback(self.cluster.close)
            for proxy in self.proxies:
                stack.callback(proxy.stop)

    def _tls_config(self) -> str:
        """Of servers that require TLS; whoever connects here is told of the authority."""
        import trustme  # an extra of the tests: without it there is a soak in clear

        folder = Path(self._directory.name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        self._options["tls"] = gnats.TLSOptions(ca=folder / "ca.pem")
        return f'tls {{ cert_file: "{folder}/cert.pem", key_file: "{folder}/key.pem" }}'

    def way(self, first: int) -> Callable[..., gnats.Connection]:
        """How to connect through the proxies, that one first."""
        urls = [proxy.url for proxy in self.proxies]
        return partial(gnats.connect, urls[first:] + urls[:first], **self._options)

    def straight(self) -> Callable[..., gnats.Connection]:
        """How to connect to the servers themselves."""
        return partial(gnats.connect, self.cluster.urls, **self._options)

    # -- trouble and peace ------------------------------------------------------------------

    def hurt(self, with_servers: bool) -> tuple[str, Undo]:
        """Begin a fault, of the network only or of any kind. Returns its name, and its end."""
        network = not with_servers or self.rng.random() < 0.6
        faults = self._network if network else self._servers
        name = self.rng.choice(list(faults))
        self.counts[name] += 1
        return name, faults[name]()

    def heal(self) -> None:
        """All servers run and know each other, all proxies let everything pass."""
        for proxy in self.proxies:
            proxy.heal()
        for server in self.cluster:
            if server.is_paused:
                server.resume()
            server.start()
        self.cluster.wait_formed(PATIENCE)

    def renew_proxies(self) -> None:
        """A proxy remembers its last thousand links: new ones keep the memory flat."""
        for index, proxy in enumerate(self.proxies):
            proxy.stop()
            target = self.cluster[index].url
            self.proxies[index] = ChaosProxy(target, port=proxy.port).start()

    def connections(self) -> int:
        """Of clients, as the servers see them."""
        return sum(int(server.connz()["num_connections"]) for server in self.cluster)

    # -- the network ------------------------------------------------------------------------

    def _victims(self) -> list[ChaosLink]:
        """All links of one server, or one link of it."""
        links = [link for proxy in self.proxies for link in proxy.links]
        if not links:
            return []
        one = self.rng.choice(links)
        proxy = next(proxy for proxy in self.proxies if one in proxy.links)
        return self.rng.choice([[one], proxy.links])

    def _at_once(self, act: Callable[[ChaosLink], object]) -> Undo:
        for link in self._victims():
            act(link)
        return _nothing

    def _while_it_lasts(self, act: Callable[[ChaosLink], object]) -> Undo:
        victims = self._victims()
        for link in victims:
            act(link)
        return lambda: [link.heal() for link in victims]

    def _cut(self) -> Undo:
        direction = self.rng.choice(["up", "down"])
        count = self.rng.randrange(self.rng.choice([200, 20_000]))
        reset = self.rng.random() < 0.5
        return self._at_once(lambda one: one.cut_after(count, direction, reset))

    def _blackhole(self) -> Undo:
        direction = self.rng.choice(["up", "down", "both"])
        return self._while_it_lasts(lambda one: one.blackhole(direction))

    def _refuse(self) -> Undo:
        proxy = self.rng.choice(self.proxies)
        proxy.refuse()
        proxy.reset()
        return proxy.listen

    def _stall_handshakes(self) -> Undo:
        stage = self.rng.choice(["accept", "info", "connect", "pong"])
        return self._at_the_door(lambda proxy: proxy.stall_handshake(stage))

    def _cut_handshakes(self) -> Undo:
        stage = self.rng.choice(["accept", "info", "connect", "pong"])
        reset = self.rng.random() < 0.5
        return self._at_the_door(lambda proxy: proxy.cut_handshake(stage, reset))

    def _at_the_door(self, act: Callable[[ChaosProxy], object]) -> Undo:
        proxy = self.rng.choice(self.proxies)
        act(proxy)
        proxy.reset()
        return proxy.heal

    # -- the servers ------------------------------------------------------------------------

    def _down(self, end: Callable[[NatsServer], object]) -> Undo:
        server = self._standing()
        end(server)
        return server.start

    def _pause(self) -> Undo:
        server = self._standing()
        server.pause()
        return server.resume

    def _standing(self) -> NatsServer:
        return self.rng.choice(
            [server for server in self.cluster if server.is_running and not server.is_paused]
        )


def _leave_in_good_order(server: NatsServer) -> None:
    server.lame_duck()
    # Its clients are put out within a second of each other, then it ends.
    wait_until(lambda: not server.is_running, PATIENCE)


def hold(seconds: float, undo: list[Undo]) -> None:
    """Let faults last so long, then end each of them."""
    gevent.sleep(seconds)
    for one in undo:
        one()
