"""How each fault is inflicted and cured. A strike has taken effect when it returns.

``ahead``: the fault is there before the client: it must hurt each new link, until it is cured.
"""

from __future__ import annotations

from typing import Any, Callable

from gnats.testing import ChaosLink, wait_until

from .hosts import DEAD
from .houses import APP, PATIENCE, AuthHouse, ClusterHouse, LimitedHouse, RelayHouse
from .rig import Rig

Strike = Callable[[Rig, bool], None]
Cure = Callable[[Rig], None]
Hurt = Callable[[ChaosLink, Rig], Any]


def nothing(_rig: Rig) -> None:
    """It is over by itself."""


def heal(rig: Rig) -> None:
    rig.chaos.heal()


# -- the server -----------------------------------------------------------------------------------


def kill(rig: Rig, _ahead: bool) -> None:
    rig.shut()
    rig.server.kill()


def terminate(rig: Rig, _ahead: bool) -> None:
    rig.shut()
    rig.server_id = rig.server.varz()["server_id"]
    rig.server.stop()


def start(rig: Rig) -> None:
    """The same port, nothing in its memory, and another server_id: it makes one per start."""
    rig.server.start()
    assert rig.server.varz()["server_id"] != rig.server_id
    rig.open()


def pause(rig: Rig, _ahead: bool) -> None:
    rig.server.pause()


def resume(rig: Rig) -> None:
    rig.server.resume()


# -- the cluster ----------------------------------------------------------------------------------


def lame_duck(rig: Rig, _ahead: bool) -> None:
    assert isinstance(rig.house, ClusterHouse)
    rig.house.lame_duck()


def remove_node(rig: Rig, _ahead: bool) -> None:
    assert isinstance(rig.house, ClusterHouse)
    rig.house.cluster.remove(rig.house.first)


def add_node(rig: Rig) -> None:
    assert isinstance(rig.house, ClusterHouse)
    rig.house.cluster.add()


# -- what the server refuses ----------------------------------------------------------------------


def change_password(rig: Rig, _ahead: bool) -> None:
    assert isinstance(rig.house, AuthHouse)
    rig.house.change_password("another")


def restore_password(rig: Rig) -> None:
    assert isinstance(rig.house, AuthHouse)
    rig.house.change_password(APP[1])


def fill_up(rig: Rig, _ahead: bool) -> None:
    """Others take every place, also that of the client, whose link is reset."""
    house = rig.house
    assert isinstance(house, LimitedHouse)
    rig.shut()
    rig.chaos.on_link(None)
    rig.chaos.reset()
    wait_until(lambda: house.connections() <= 0, PATIENCE, "the client's place to be free")
    house.fill()
    rig.open()


def make_room(rig: Rig) -> None:
    assert isinstance(rig.house, LimitedHouse)
    rig.house.free()
    rig.chaos.heal()


def expire(rig: Rig, _ahead: bool) -> None:
    assert isinstance(rig.house, RelayHouse)
    rig.house.relay.speak("User Authentication Expired")


def renew(rig: Rig) -> None:
    assert isinstance(rig.house, RelayHouse)
    rig.house.relay.hush()


# -- the network: one link ------------------------------------------------------------------------


def on_link(hurt: Hurt) -> Strike:
    """A fault of the live link alone; the next one is good, unless the fault is there first."""

    def strike(rig: Rig, ahead: bool) -> None:
        rule = (lambda link: hurt(link, rig)) if ahead else None
        rig.chaos.on_link(rule)
        for link in rig.chaos.links:
            hurt(link, rig)

    return strike


def on_flow(hurt: Hurt) -> Strike:
    """The same for a fault that needs bytes to flow: what holds the link lets go."""

    def strike(rig: Rig, ahead: bool) -> None:
        if rig.held == "stage":
            rig.chaos.heal()
        on_link(hurt)(rig, ahead)
        if rig.held == "trickle":
            rig.chaos.throttle(None)

    return strike


def on_all(hurt: Hurt) -> Strike:
    """A fault of the network: the live link and every new one, until it is cured."""
    return lambda rig, _ahead: on_link(hurt)(rig, True)


def cut(way: Any) -> Hurt:
    """Behind a number of bytes that the moment lets flow soon."""

    def hurt(link: ChaosLink, rig: Rig) -> None:
        link.cut_after(rig.rng.randrange(rig.reach[way]), way, reset=rig.rng.random() < 0.5)

    return hurt


def corrupt(way: Any) -> Hurt:
    def hurt(link: ChaosLink, rig: Rig) -> None:
        mask = rig.rng.choice((0xFF, 1 << rig.rng.randrange(8)))
        link.corrupt(rig.rng.randrange(rig.reach[way]), way, mask)

    return hurt


# -- the network: the way in ----------------------------------------------------------------------


def reset_and(rule: Callable[[Rig], None]) -> Strike:
    """The link is reset, and then *rule* keeps the next ones out."""

    def strike(rig: Rig, _ahead: bool) -> None:
        rule(rig)
        rig.chaos.reset()

    return strike


def refuse(rig: Rig) -> None:
    rig.chaos.on_link(None)
    rig.chaos.refuse()


def stall(stage: Any) -> Strike:
    return reset_and(lambda rig: rig.chaos.stall_handshake(stage))


# -- the process of the client --------------------------------------------------------------------


def resolver(mode: str) -> Strike:
    def strike(rig: Rig, _ahead: bool) -> None:
        rig.host.resolve(mode)
        rig.chaos.on_link(None)
        rig.chaos.reset()

    return strike


def resolver_first_silent(rig: Rig, ahead: bool) -> None:
    """Two addresses, and whoever dials the first waits for ever."""
    rig.deafen(DEAD)
    resolver("several")(rig, ahead)


def resolve_well(rig: Rig) -> None:
    rig.host.resolve("good")
    rig.hear()
    rig.chaos.heal()


def clock(seconds: float) -> Strike:
    """The wall clock jumps, and the link is reset: that all the waits of a return are under it."""

    def strike(rig: Rig, _ahead: bool) -> None:
        rig.host.turn_clock(seconds)
        rig.chaos.on_link(None)
        rig.chaos.reset()

    return strike


def set_clock_right(rig: Rig) -> None:
    rig.host.turn_clock(0)
    rig.chaos.heal()


def stand_still(seconds: float) -> Strike:
    return lambda rig, _ahead: rig.host.stand_still(seconds)
