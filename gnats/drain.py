"""Leaving in good order: no new work, finish what is here, flush, close. It always ends.

Source: client protocol practice of the other clients ("drain"), DESIGN 3.6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from . import commands
from .backoff import Deadline
from .errors import (
    ConnectionClosedError,
    ConnectionDrainingError,
    DrainTimeoutError,
    FlushInterruptedError,
    TimeoutError,
)
from .outbox import Outbox
from .reconnector import Reconnector
from .registry import Subscriptions
from .roundtrip import RoundTrips
from .status import ConnectionStatus
from .subscription import Subscription

logger = logging.getLogger("gnats")

S = ConnectionStatus


class Drain:
    """One drain of one connection; ``run`` is called once."""

    def __init__(
        self,
        reconnector: Reconnector,
        outbox: Outbox,
        subscriptions: Subscriptions,
        round_trips: RoundTrips,
        deadline: Deadline,
        report: Callable[[Exception], None] | None = None,
        leaver: object = None,
    ) -> None:
        self._reconnector = reconnector
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._round_trips = round_trips
        self._deadline = deadline
        self._report = report  # when nobody waits to receive what ``run`` raises
        self._leaver = leaver  # a greenlet that will read no more
        self._subs: list[Subscription] = []

    def run(self) -> None:
        """Drain and close. Raises DrainTimeoutError with what was left, ConnectionClosedError
        when the connection was closed meanwhile. Closes the connection in every case."""
        try:
            self._wait_for_link()
            self._drain_subscriptions()
            self._drain_publishes()
        except TimeoutError as exc:
            failure = self._timed_out(exc)
            if self._report is not None:
                self._report(failure)
            raise failure from exc
        finally:
            self._reconnector.request_close()

    def _wait_for_link(self) -> None:
        while self._status is not S.connected or self._reconnector.is_moving:
            if self._status in (S.closed, S.disconnected):
                raise ConnectionClosedError
            if not self._reconnector.status_changed.wait(self._deadline.remaining()):
                raise TimeoutError("there was no link")

    def _drain_subscriptions(self) -> None:
        self._enter(S.draining_subs)
        live = self._subscriptions.of_users()
        self._subs = self._subscriptions.unfinished()
        for sub in live:
            self._outbox.buffer.append_control(commands.unsub(sub.sid))
            self._subscriptions.stop_restoring(sub)
        self._confirm()
        for sub in live:
            sub.end(None)
        for sub in self._subs:
            if self._leaver is not None and sub.is_unread_without(self._leaver):
                sub.give_up()
            if not sub.await_handled(self._deadline):
                raise TimeoutError(sub.obstacle)

    def _drain_publishes(self) -> None:
        self._enter(S.draining_pubs)  # first: what a close has shut stays shut for its reason
        self._outbox.shut(lambda: ConnectionDrainingError("publish"))
        self._confirm()

    def _enter(self, stage: ConnectionStatus) -> None:
        """Move to *stage* now, or have the restore of a lost link do it."""
        if self._reconnector.is_closing:
            raise ConnectionClosedError
        self._reconnector.drain_stage = stage
        if self._status is not S.reconnecting:
            self._reconnector.status.to(stage)

    def _confirm(self) -> None:
        """A flush that outlives the loss of a link, within the deadline."""
        while True:
            try:
                self._round_trips.flush(self._deadline)
                return
            except FlushInterruptedError:
                continue

    @property
    def _status(self) -> ConnectionStatus:
        return self._reconnector.status.current

    def _timed_out(self, why: TimeoutError) -> DrainTimeoutError:
        subs = self._subs or self._subscriptions.unfinished()
        unhandled = sum(sub.unhandled for sub in subs)
        for sub in subs:
            sub.give_up()
        return DrainTimeoutError(
            self._deadline.seconds, unhandled, self._outbox.buffer.buffered, str(why)
        )
