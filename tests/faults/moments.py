"""How each moment comes about: what the application does, and where its link is held."""

from __future__ import annotations

from typing import Callable

import gevent

from gnats.testing import ChaosLink, wait_until

from .app import CHURNED, DRAIN_TIMEOUT, App
from .houses import PATIENCE
from .rig import Rig
from .table import Fault, Moment

Arrive = Callable[[Rig, App, Fault], None]

PENDING = 400  # messages that wait for the restore
CLOSE_BOUND = 5.0  # seconds that close() may take, whatever the server does


def arrive(rig: Rig, app: App, fault: Fault, moment: Moment) -> None:
    """Bring the application to the moment. Afterwards the fault strikes."""
    rig.reach = {"up": moment.reach_up, "down": moment.reach_down}
    if moment.stage:
        _arrive_in_handshake(rig, app, moment.stage)
        return
    app.begin()
    if moment.ahead:
        app.work(app.trickle)
        return
    app.wait_connected()
    _ARRIVE[moment.name](rig, app, fault)


# -- while a link comes to be ---------------------------------------------------------------------


def _arrive_in_handshake(rig: Rig, app: App, stage: str) -> None:
    rig.chaos.stall_handshake(stage)  # type: ignore[arg-type]
    app.begin()
    app.work(app.trickle)
    _await_stall(rig, stage, rig.chaos.accepted)
    rig.held = "stage"


def _await_stall(rig: Rig, stage: str, accepted: int) -> None:
    """The next link hangs at that stage, and the rule is for no other."""
    link = rig.chaos.wait_for_link(accepted + 1)
    wait_until(lambda: link.is_closed or _hangs(link, stage), PATIENCE, f"{link!r} at {stage}")
    rig.chaos.on_link(None)


def _hangs(link: ChaosLink, stage: str) -> bool:
    if stage == "accept":
        return True
    return link.down > 0 and (stage != "pong" or link.up > 0)


def _recovering(rig: Rig, app: App, fault: Fault) -> None:
    stage = rig.rng.choice(fault.stages)
    accepted = rig.chaos.accepted
    rig.chaos.stall_handshake(stage)  # type: ignore[arg-type]
    app.work(app.trickle)
    rig.chaos.reset()
    _await_stall(rig, stage, accepted)
    rig.held = "stage"


def _restore(rig: Rig, app: App, _fault: Fault) -> None:
    """The link is lost, and the next one is held after so many bytes of the restore."""
    assert app.conn is not None
    app.subscribe_many()
    app.settle(PATIENCE)
    link = rig.link
    before = 0 if link is None else link.up
    accepted = rig.chaos.accepted
    rig.chaos.refuse()
    rig.chaos.reset()
    wait_until(lambda: app.losses() == 1, PATIENCE, "the loss before the restore")
    for _ in range(PENDING):
        app.publish_one()
    # All subscriptions and pending messages are a bit more than what the first link was told.
    hold_at = rig.rng.randrange(300, max(301, before + 20 * PENDING))
    rig.chaos.on_link(lambda link: link.throttle(1_000_000, "up"))
    rig.chaos.listen()
    link = rig.chaos.wait_for_link(accepted + 1)
    rig.chaos.on_link(None)
    with gevent.Timeout(PATIENCE):
        while link.up < hold_at and not link.is_closed:
            gevent.sleep(0.002)
    link.throttle(1, "up")
    rig.held = "trickle"


# -- while it lives -------------------------------------------------------------------------------


def _idle(_rig: Rig, _app: App, _fault: Fault) -> None:
    gevent.sleep(0.01)


def _publishing(_rig: Rig, app: App, _fault: Fault) -> None:
    app.work(app.flood)
    wait_until(lambda: len(app.published) > 200, PATIENCE, "the flood")


def _receiving(rig: Rig, app: App, _fault: Fault) -> None:
    app.work(lambda: _feed_on(rig, app))
    wait_until(lambda: len(app.feed.arrivals) > 200, PATIENCE, "the flood from the server")


def _feed_on(rig: Rig, app: App) -> None:
    while app.working and not app.is_closed:
        for _ in range(20):
            rig.feed()
        gevent.sleep(0.002)


def _pressing(_rig: Rig, app: App, _fault: Fault) -> None:
    for _ in range(4):
        app.work(app.press)
    wait_until(lambda: len(app.published) > 50, PATIENCE, "the pressing publishers")


def _churning(rig: Rig, app: App, _fault: Fault) -> None:
    app.subscribe_limited()
    app.work(app.churn)
    app.work(lambda: _feed_churned(rig, app))
    wait_until(lambda: len(app.published) > 5, PATIENCE, "the churn")


def _feed_churned(rig: Rig, app: App) -> None:
    while app.working and not app.is_closed:
        rig.feed_churned(rig.rng.randrange(CHURNED))
        gevent.sleep(0.01)


def _requesting(rig: Rig, app: App, _fault: Fault) -> None:
    for _ in range(5):
        app.work(app.request_on)
    wait_until(lambda: len(app.calls) > 10, PATIENCE, "requests")


def _flushing(_rig: Rig, app: App, _fault: Fault) -> None:
    for _ in range(3):
        app.work(app.flush_on)
    wait_until(lambda: len(app.calls) > 6, PATIENCE, "flushes")


# -- while it leaves ------------------------------------------------------------------------------


def _draining(_rig: Rig, app: App, _fault: Fault) -> None:
    assert app.conn is not None
    handled = app.conn.subscribe(f"numbers.{app.name}", cb=lambda _msg: gevent.sleep(0.001))
    for _ in range(100):
        app.publish_one()
    app.settle(PATIENCE)
    wait_until(lambda: handled.pending_msgs > 0, PATIENCE, "messages to handle")
    for _ in range(100):
        app.publish_one()
    leave(app, "drain")
    gevent.sleep(app.rng.choice((0, 0.0005, 0.02)))


def _closing(_rig: Rig, app: App, _fault: Fault) -> None:
    for _ in range(app.rng.choice((1, 100, 2000))):
        app.publish_one()
    leave(app, "close")
    gevent.sleep(app.rng.choice((0, 0, 0.0005)))


def leave(app: App, how: str) -> None:
    """Begin to drain, or to close."""
    if how == "drain":
        app.work(lambda: app.call("drain", DRAIN_TIMEOUT, lambda conn: conn.drain()) and None)
    else:
        app.work(lambda: app.call("close", CLOSE_BOUND, lambda conn: conn.close()) and None)


_ARRIVE: dict[str, Arrive] = {
    "idle": _idle,
    "publishing": _publishing,
    "pressing": _pressing,
    "receiving": _receiving,
    "drain-away": _publishing,
    "close-away": _publishing,
    "churn": _churning,
    "request": _requesting,
    "flush": _flushing,
    "drain": _draining,
    "close": _closing,
    "restore": _restore,
    "recovering": _recovering,
}
