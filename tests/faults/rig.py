"""What a fault is done with: a house, a proxy of the cell's own, and the client's process."""

from __future__ import annotations

import gc
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from gevent import socket

from gnats.testing import ChaosLink, ChaosProxy, NatsServer

from .houses import HOUSES, PATIENCE, House
from .numbering import numbered
from .peers import Journal

_serial = itertools.count(1)


class Rig:
    """What one fault is done with: the house, the proxy, and the process of the client."""

    def __init__(self, house: House, rng: random.Random, host: Any = None) -> None:
        self.house = house
        self.rng = rng
        self.host = host  # the process where the client lives: see `hosts`
        self.server_id = ""  # before it was stopped
        self._deaf: list[socket.socket] = []
        self.proxy: ChaosProxy | None = None
        if house.proxied:
            self.proxy = ChaosProxy(house.target)
            self.proxy.start()
        self.name = f"c{next(_serial)}"
        self.answer_after = 0.002
        self.fed = 0  # messages sent to the application
        #: How soon a byte flows: how far behind the strike the one may lie that is cut, or changed.
        self.reach = {"up": 0, "down": 0}
        #: What holds the link at the moment of the fault, so that a fault that needs bytes to
        #: flow can let them: "" nothing, "stage" a stalled handshake, "trickle" a throttle.
        self.held = ""
        self.journal: Journal = house.witnesses.begin(f"numbers.{self.name}", self.answer_after)

    @property
    def server(self) -> NatsServer:
        return self.house.server

    @property
    def chaos(self) -> ChaosProxy:
        assert self.proxy is not None
        return self.proxy

    @property
    def link(self) -> ChaosLink | None:
        """The client's present link, if it has one."""
        links = self.chaos.links
        return links[-1] if links else None

    def shut(self) -> None:
        """Nobody new comes in. For servers that go: the witnesses must be back before the
        client, or what it says in between is lost by NATS itself, and they could not tell."""
        if self.proxy is not None:
            self.proxy.refuse()

    def open(self) -> None:
        self.house.witnesses.wait_ready()
        if self.proxy is not None:
            self.proxy.listen()

    def deafen(self, address: str) -> None:
        """At the proxy's port of another address of this host, a dial gets no answer at all: its
        queue of connections is full."""
        listener = socket.socket()
        listener.bind((address, self.chaos.port))
        listener.listen(0)
        self._deaf = [listener]
        for _ in range(3):
            filling = socket.socket()
            filling.setblocking(False)
            filling.connect_ex((address, self.chaos.port))
            self._deaf.append(filling)

    def hear(self) -> None:
        deaf, self._deaf = self._deaf, []
        for sock in deaf:
            sock.close()

    def feed(self) -> int:
        """Send the next number to the application, and return it. Switches."""
        number = self.fed
        self.fed += 1
        self.house.witnesses.feeder.publish(f"feed.{self.name}", numbered(number))
        return number

    def feed_churned(self, number: int) -> None:
        self.house.witnesses.feeder.publish(f"churn.{self.name}.{number}", b"")

    def subscribed(self) -> Counter[str]:
        """What the servers know of the application's subscriptions, requests' inbox left out."""
        found: Counter[str] = Counter()
        for server in self.house.servers:
            with suppress(OSError):  # it is on its way out
                for one in server.connz(subs=True)["connections"] if server.is_running else ():
                    found.update(one.get("subscriptions_list") or ())
        return Counter({what: n for what, n in found.items() if f".{self.name}" in what})

    def settle(self, clients: int) -> None:
        """Until the servers have taken in all that dead links had brought them, and the observer
        has all that they have for it."""
        deadline = monotonic() + PATIENCE
        with suppress(OSError):
            while self.house.connections() > clients and monotonic() < deadline:
                self.house.witnesses.observer.sync()
        self.house.witnesses.observer.sync()

    def close(self) -> None:
        self.hear()
        if self.proxy is not None:
            self.proxy.stop()


class Rigs:
    """The houses, built when they are needed."""

    def __init__(self) -> None:
        self._houses: dict[str, House] = {}

    def tidy(self, kind: str) -> House:
        """The house, as at its beginning."""
        house = self._houses.get(kind)
        if house is None:
            house = self._houses[kind] = HOUSES[kind]()
        house.tidy()
        return house

    @contextmanager
    def rig(self, kind: str, rng: random.Random, host: Any = None) -> Iterator[Rig]:
        rig = Rig(self._houses[kind], rng, host)
        try:
            yield rig
        except BaseException:
            rig.close()
            self._houses.pop(kind).close()
            raise
        rig.close()

    def close(self) -> None:
        for house in self._houses.values():
            house.close()
        self._houses.clear()

    def __enter__(self) -> Rigs:
        # Leftovers are looked for after each cell: what is here already is none, and need not be
        # looked at a thousand times. In a process with all of pytest that is half of the time.
        gc.collect()
        gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        gc.unfreeze()
