"""One cell: the moment is brought about, the fault strikes, is cured, and the outcome is judged."""

from __future__ import annotations

import random
from collections import Counter
from time import monotonic

import gevent

from gnats.status import MOVES
from gnats.testing import wait_until

from . import moments
from .app import App
from .hosts import LIVING, NAME, this_process
from .leftovers import Leftovers
from .rig import Rig, Rigs
from .table import Cell, Fault, Moment
from .verdict import Outcome

NOTICE = 3.0  # seconds in which a client must have noticed a fault that it can notice
SLACK = 2.0  # seconds beyond its own timeout that a call may take on a loaded machine


_LIFE = {"connected_cb": "c", "disconnected_cb": "d", "reconnected_cb": "r", "closed_cb": "x"}


def run(rigs: Rigs, cell: Cell, seed: str) -> Outcome:
    """Play one cell. Switches."""
    began = monotonic()
    rng = random.Random(f"{seed}:{cell.name}")
    rigs.tidy(cell.fault.house)
    before = Leftovers()
    with this_process() as host, rigs.rig(cell.fault.house, rng, host) as rig:
        play = _Play(cell, rig, rng)
        try:
            outcome = play.run()
        finally:
            play.stop()
        del play
    rigs.tidy(cell.fault.house)
    outcome.leftovers = before.found()
    outcome.seconds = monotonic() - began
    return outcome


class _Play:
    def __init__(self, cell: Cell, rig: Rig, rng: random.Random) -> None:
        self.fault: Fault = cell.fault
        self.moment: Moment = cell.moment
        self.mode = cell.mode
        self.rig = rig
        urls = rig.house.urls(rig.proxy, self.moment.ahead)
        if cell.fault.named:
            urls = [url.replace(LIVING, NAME) for url in urls]
        self.app = App(urls, rig.name, cell.mode, cell.fault.patient, rng)
        self.noticed_at = 0.0
        self.fresh = 0.0
        self.outcome = Outcome(cell.fault.name, cell.moment.name, cell.mode)

    def run(self) -> Outcome:
        if self.moment.ahead:
            self.fault.inflict(self.rig, True)
            moments.arrive(self.rig, self.app, self.fault, self.moment)
            struck, errors = monotonic(), 0
        else:
            moments.arrive(self.rig, self.app, self.fault, self.moment)
            struck, errors = monotonic(), len(self.app.errors)
            self.fault.inflict(self.rig, False)
        self._await_notice(struck, errors)
        self._then()
        self.fault.cure(self.rig)
        if self.rig.proxy is not None:
            self.rig.proxy.heal()  # also what the moment held
        # What was published before the loss was noticed may still have got through the dead link.
        self.fresh = self.noticed_at or monotonic()
        at_once = self.fault.noticed and not self.fault.lasting and not self.moment.ahead
        since = struck if at_once else monotonic()
        self._await_return(since)
        self._finish()
        self._note(since)
        return self.outcome

    def stop(self) -> None:
        """However it went: nothing may run on."""
        conn = self.app.conn
        self.app.working = False
        if conn is not None:
            conn.close()
            self.app.rest()
            self.app.leave()

    # -- the fault lasts ----------------------------------------------------------------------

    def _await_notice(self, struck: float, errors: int) -> None:
        if self.fault.noticed and not (self.moment.ahead and self.fault.overcome):
            deadline = monotonic() + NOTICE
            while not self._has_noticed(struck, errors) and monotonic() < deadline:
                gevent.sleep(0.005)
            self.outcome.noticed = self._has_noticed(struck, errors)
            self.noticed_at = 0.0 if self.fault.lasting or self.moment.ahead else monotonic()
        if self.fault.lasting:
            gevent.sleep(self.rig.rng.random() * self.fault.dwell)
        elif not self.fault.noticed:
            self._publish_for(self.fault.dwell)

    def _publish_for(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            if not self.moment.ends:
                self.app.publish_one()
            gevent.sleep(0.005)

    def _then(self) -> None:
        if self.moment.then:
            moments.leave(self.app, self.moment.then)
        if self.moment.then == "close":
            # Without a link it has nothing to wait for; the cure must not help it.
            wait_until(lambda: self.app.is_closed, moments.CLOSE_BOUND + SLACK, "the close")

    def _has_noticed(self, struck: float, errors: int) -> bool:
        app, tells = self.app, self.fault.expected.tells
        if tells and not self.moment.ends:
            return bool(set(tells) & set(app.errors[errors:])) or app.is_closed
        lost = any(when >= struck and new == "reconnecting" for when, _, new in app.moves)
        return lost or len(app.errors) > errors or app.is_closed

    # -- the return ---------------------------------------------------------------------------

    def _await_return(self, since: float) -> None:
        if self.fault.expected.ends == "closed" and not self.moment.ends:
            with gevent.Timeout(self.fault.expected.within * 2, False):
                while not self.app.is_closed:
                    gevent.sleep(0.005)
            return
        if self.moment.ends:
            return
        deadline = since + self.fault.expected.within * 2
        while monotonic() < deadline and not self.app.is_closed:
            self.app.publish_one()
            gevent.sleep(0.003)
            if self._has_fresh_message() and self.app.is_connected:
                break
        self._await_feed(deadline)

    def _has_fresh_message(self) -> bool:
        return any(
            self.app.published.get(number, 0.0) >= self.fresh
            for number, _ in self.rig.journal.arrivals[-1:]
        )

    def _await_feed(self, deadline: float) -> None:
        """What is sent to the application arrives again."""
        first = self.rig.fed
        while monotonic() < deadline and not self.app.is_closed:
            self.rig.feed()
            gevent.sleep(0.003)
            if any(number >= first for number, _ in self.app.feed.arrivals[-50:]):
                return
        if not self.app.is_closed and not self._was_misheard():
            self.outcome.wrong.append("nothing is received any more")

    # -- the end ------------------------------------------------------------------------------

    def _finish(self) -> None:
        app, rig = self.app, self.rig
        app.rest()
        if not self.moment.ends and self.fault.expected.ends == "back":
            self._await_last()
            rig.settle(clients=1)
            self._await_whole_feed()
            self._compare_subscriptions()
            self._await_discovery()
        self.outcome.ended = "closed" if app.is_closed else "back"
        app.call("close", moments.CLOSE_BOUND, lambda conn: conn.close())
        rig.settle(clients=0)
        self.outcome.books_open += app.books_open
        conn = app.conn
        if conn is not None:
            stats = conn.stats
            self.outcome.uncertain, self.outcome.dropped = stats.uncertain, stats.dropped
            self.outcome.replayed, self.outcome.links_lost = stats.replayed, stats.disconnects
            if stats.buffered:
                self.outcome.wrong.append(f"{stats.buffered} messages buffered in the end")
        del conn
        app.leave()

    def _await_last(self) -> None:
        """A last message over a link that is good: behind it nothing is under way."""
        deadline = monotonic() + self.fault.expected.within * 2
        while monotonic() < deadline and not self.app.is_closed:
            last = self.app.publish_one()
            if last is None or not self.app.settle(2.0):
                gevent.sleep(0.01)
                continue
            self.rig.house.witnesses.observer.sync()
            if any(number == last for number, _ in self.rig.journal.arrivals[-100:]):
                return
        self.outcome.wrong.append("the last message never came")

    def _await_whole_feed(self) -> None:
        """All that was sent to a client that is there again."""
        last = self.rig.feed()
        try:
            wait_until(
                lambda: any(number == last for number, _ in self.app.feed.arrivals[-100:]), 5.0
            )
        except AssertionError:
            if not self._was_misheard():
                self.outcome.wrong.append("the last message to the client never came")

    def _was_misheard(self) -> bool:
        """Whether the byte that was changed stood in the feed's SUB: the server then knows another
        name or number for it, and takes that for what it was told."""
        app = self.app
        if not self.fault.expected.unnoticed or app.conn is None:
            return False
        return f"feed.{app.name}" not in self.rig.subscribed() or app.conn.stats.in_dropped > 0

    def _compare_subscriptions(self) -> None:
        """The servers know of each subscription that there is, and of no other."""
        if self.app.is_closed:
            return
        known, ours = self.rig.subscribed(), +self.app.subscribed
        wrong = sum((known - ours).values()) + sum((ours - known).values())
        if wrong > 2 * self.fault.expected.unnoticed:
            self.outcome.wrong.append(f"subscriptions: {ours - known} missing, {known - ours} more")

    def _await_discovery(self) -> None:
        """Of a cluster, every server that lives is known."""
        conn = self.app.conn
        if self.rig.proxy is not None or conn is None or conn.is_closed:
            return
        ports = {server.port for server in self.rig.house.servers if server.is_running}
        try:
            wait_until(lambda: ports <= {url.port for url in conn.servers}, 5.0)
        except AssertionError:
            self.outcome.wrong.append("not every server of the cluster was discovered")

    # -- what happened ------------------------------------------------------------------------

    def _note(self, since: float) -> None:
        self._note_messages()
        self._note_times(since)
        self._note_callbacks()
        app, outcome = self.app, self.outcome
        for call in app.calls:
            of_name = outcome.calls.setdefault(call.name, {})
            of_name[call.outcome] = of_name.get(call.outcome, 0) + 1
            if call.outcome == "in flight" or call.seconds > call.timeout + SLACK:
                outcome.overdue.append(f"{call.name} {call.outcome} {call.seconds:.2f} s")
        outcome.audits = app.audits
        outcome.refused = dict(app.refused)
        outcome.wrong += app.wrong
        if app.wrong_answers > self.fault.expected.unnoticed:
            outcome.wrong.append(f"{app.wrong_answers} requests got another answer")
        if app.strays:
            outcome.wrong.append(f"{app.strays} messages for subscriptions that had ended")

    def _note_messages(self) -> None:
        app, journal, outcome = self.app, self.rig.journal, self.outcome
        fates = dict(app.fates())
        arrived = {number for number, _ in journal.arrivals}
        missing = Counter(fates[number] for number in fates if number not in arrived)
        outcome.accepted = len(fates)
        outcome.lost_uncertain = missing.pop("uncertain", 0)
        outcome.lost_dropped = missing.pop("dropped", 0)
        outcome.lost_by_server = missing.pop("sent", 0)
        outcome.lost = sum(missing.values())
        outcome.altered = journal.altered
        outcome.doubled = journal.doubled
        late = journal.late(app.order)
        outcome.late = len(late)
        outcome.late_uncertain = sum(fates.get(number) == "uncertain" for number in late)
        feed = app.feed
        outcome.received = len(feed.arrivals)
        outcome.received_doubled = feed.doubled
        outcome.received_late = len(feed.late())
        outcome.received_altered = feed.altered
        outcome.missed = self.rig.fed - len({number for number, _ in feed.arrivals})

    def _note_times(self, since: float) -> None:
        outcome = self.outcome
        connected = [when for when, _, new in self.app.moves if new == "connected"]
        if connected:
            outcome.connected_after = max(0.0, connected[-1] - since)
        arrived = [
            when
            for number, when in self.rig.journal.arrivals
            if self.app.published.get(number, 0.0) >= self.fresh
        ]
        if arrived:
            outcome.message_after = min(arrived) - since

    def _note_callbacks(self) -> None:
        outcome, app = self.outcome, self.app
        names = [name for _, name in app.callbacks]
        outcome.callbacks = dict(Counter(names))
        outcome.life = "".join(_LIFE.get(name, "") for name in names)
        outcome.words = [new for _, _, new in app.moves]
        legal = {str(old): {str(new) for new in moves} for old, moves in MOVES.items()}
        before = "disconnected"
        for _, old, new in app.moves:
            if old != before or new not in legal[old]:
                outcome.illegal.append(f"{before}: {old} -> {new}")
            before = new
        outcome.errors = sorted(set(app.errors))
