"""The greenlets that hand messages to handlers; they exist only while there are messages.

A greenlet serves the subscriptions that have messages one after the other, as long as no handler
waits: a thousand of them cost a thousand calls then, and not a thousand greenlets. A handler that
waits has its greenlet for itself, and the others get another one.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent import get_hub, getcurrent

from .mailbox import SLICE
from .waiting import turn


class Client(Protocol):
    """What a greenlet works for."""

    def deliver(self) -> None:
        """Hand on until nothing is left; switches where handlers do."""

    def handled(self) -> None:
        """A greenlet has ended its work here, done or not. Never switches."""

    def abandon(self) -> None:
        """A greenlet that was to come will not. Never switches."""


class Delivery:
    """Who has messages, and which greenlet works for whom. Never switches, but in ``_run``.

    While anyone is ready, either ``_look`` is about to be called, or a greenlet rests that will go
    on with them.
    """

    def __init__(self) -> None:
        self.ready: deque[Any] = deque()  # once per greenlet that they want
        self.at_work: dict[Any, Any] = {}  # by greenlet
        self.greenlets: set[Any] = set()  # that have not ended
        self._watch: object = None  # the loop in which ``_look`` is called soon
        self._resting = 0  # greenlets that let others in, between two of the ready

    def start(self, client: Client) -> None:
        """Have a greenlet work for *client*, soon."""
        self.ready.append(client)
        loop = get_hub().loop
        if self._watch is not loop and not self._resting:
            self._begin(loop)

    def _begin(self, loop: Any) -> None:
        self._watch = loop
        greenlet = gevent.spawn(self._run)
        # A link, not a finally: a greenlet killed before it ran has no finally.
        greenlet.rawlink(self._ended)
        self.greenlets.add(greenlet)
        loop.run_callback(self._look)  # behind the greenlet's own start

    def _look(self) -> None:
        """In the hub: the last greenlet has been through with all, or rests, or its handler
        waits."""
        self._watch = None
        # Another one instead of one that rests would take the time that it has left to others.
        if self.ready and not self._resting:
            self._begin(get_hub().loop)

    def _run(self) -> None:
        me, ready, at_work = getcurrent(), self.ready, self.at_work
        until = monotonic() + SLICE
        while ready:
            client = at_work[me] = ready.popleft()
            client.deliver()
            client.handled()
            if ready and monotonic() > until:
                del at_work[me]
                self._rest()
                until = monotonic() + SLICE
        at_work.pop(me, None)

    def _rest(self) -> None:
        self._resting += 1
        try:
            turn()
        finally:
            self._resting -= 1
        loop = get_hub().loop
        if self._watch is not loop:
            self._watch = loop
            loop.run_callback(self._look)

    def _ended(self, greenlet: object) -> None:
        """In the hub. Where it was killed in its work, that is not done."""
        self.greenlets.discard(greenlet)
        client = self.at_work.pop(greenlet, None)
        if client is not None:
            client.handled()
        elif self.ready and not self._watch and not self._resting:
            self._begin(get_hub().loop)  # it was killed in its rest

    def inherit(self) -> None:
        """In a forked child: the handlers that run are the parent's, but for the caller's own; they
        end in the next turn of the loop."""
        current = getcurrent()
        gevent.killall([one for one in self.greenlets if one is not current], block=False)
        while self.ready:
            self.ready.popleft().abandon()
        self._watch = None
        self._resting = 0
