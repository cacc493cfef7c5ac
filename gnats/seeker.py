"""The search for a link: server after server, cycle after cycle, until one lets us in.

The pool says which server is next, this file dials it and does the waiting between cycles; it
runs in the reconnector's greenlet and nowhere else.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import gevent

from .backoff import Backoff, Deadline
from .errors import Error, NoServersError
from .info import ServerInfo
from .options import ConnectionOptions
from .pool import PoolServer, ServerPool
from .session import Opened, open_link
from .url import ServerURL
from .waiting import Bell

logger = logging.getLogger("gnats")

KILL_TIMEOUT = 1.0  # seconds, for a user's callable that resists
# Seconds before a server that has failed is dialled again, though select_server_cb asks for none:
# a refused dial takes microseconds, and would keep the process from everything else.
LEAST_PAUSE = 0.01
# Seconds that a server in lame duck mode is stayed with at most: it waits ten, by default, before
# it puts the first client out.
LONGEST_STAY = 5.0

ConnectFields = Callable[[ServerURL, ServerInfo], "dict[str, Any]"]


class Seeker:
    """Finds the next link. *bell* cuts its waits short; *is_closing* ends the search."""

    def __init__(
        self,
        options: ConnectionOptions,
        pool: ServerPool,
        connect_fields: ConnectFields,
        bell: Bell,
        is_closing: Callable[[], bool],
        on_failure: Callable[[Exception], None],
        info: Callable[[], ServerInfo | None],
    ) -> None:
        self._options = options
        self._pool = pool
        self._connect_fields = connect_fields
        self._bell = bell
        self._is_closing = is_closing
        self._on_failure = on_failure  # an attempt, or the user's delay callback, has failed
        self._info = info  # the last server's
        self._secure = False  # a link of this connection was TLS
        self._hurried = False
        self._cut_short = False
        self._tired = False
        self.attempts = 0
        #: Why the last search ended without a link.
        self.gave_up: Exception | None = None

    def hurry(self) -> None:
        """Cut the present wait short and begin the next cycle. Never switches."""
        self._hurried = True
        self._bell.ring()

    def find(self, *, first: bool, one_cycle: bool, tired: bool = False) -> Opened | None:
        """The next link; None when nobody is left, or the connection closes. Switches.

        *first*: every server gets an attempt, whatever ``max_reconnect`` is. *one_cycle*: and
        no more than that one. *tired*: links have ended as soon as they were made, so each server
        that ``select_server_cb`` chooses is waited for.
        """
        cycle = 0
        self._tired = tired
        self._hurried = self._cut_short = False
        while not self._is_closing():
            server = None if first else self._selected()
            if server is None:
                server = self._pool.next(ignore_limit=first and cycle == 0)
            if server is not None:
                opened = self._attempt(server)
                if opened is not None:
                    return opened
                if self._must_give_up(server):
                    return None
            elif self._cut_short:
                # The wait of this cycle is over since a new server came, and that has had its turn.
                self._cut_short = False
                self._pool.begin_cycle()
            elif one_cycle or self._pool.exhausted:
                self.gave_up = NoServersError(self._pool.last_errors())
                return None
            else:
                cycle += 1
                self._pause(cycle)
        return None

    def find_other(
        self, present: ServerURL, is_over: Callable[[], bool]
    ) -> tuple[PoolServer, Opened] | None:
        """A link to a server that stays, beside the *present* one that does not; None when there
        is none, or when *is_over* says so, which is asked whenever the bell rings. Quiet: nothing
        is lost yet, so nobody is told of a failure. Switches."""
        for server in self._others(present, is_over):
            if self._is_closing() or is_over():
                return None
            self.attempts += 1
            outcome = self._aside(self._open, server.url, is_over=is_over)
            if isinstance(outcome, Opened):
                if not outcome.info.ldm:
                    return server, outcome
                outcome.transport.close()
            else:
                logger.info("gnats: cannot move to %s: %s", server.url, outcome)
        return None

    def _others(self, present: ServerURL, is_over: Callable[[], bool]) -> list[PoolServer]:
        """Whom to try: the one that ``select_server_cb`` chooses, or all in line."""
        others = self._pool.others(present)
        select = self._options.reconnect.select_server_cb
        if select is None or not others:
            return others
        choice = self._aside(select, [one.url for one in others], self._info(), is_over=is_over)
        chosen = _chosen(choice)
        server = next((one for one in others if chosen and one.url == chosen), None)
        if server is None:
            if not self._is_closing() and not is_over():
                self._on_failure(_bad_choice(choice))
            return others
        deadline = Deadline(float(choice[1]))
        while not deadline.expired and not self._is_closing() and not is_over():
            self._bell.listen(deadline.remaining())
        return [server]

    def spread(self) -> float:
        """Seconds, at random: many clients leave one server, and shall not arrive at once."""
        most = self._options.reconnect.reconnect_wait + self._jitter
        return random.uniform(0.0, min(most, LONGEST_STAY))

    # -- one attempt ---------------------------------------------------------------------

    def _attempt(self, server: PoolServer) -> Opened | None:
        self.attempts += 1
        outcome = self._aside(self._open, server.url)
        if isinstance(outcome, Opened):
            self._pool.succeeded(server)
            return outcome
        if not self._is_closing():
            error = outcome if isinstance(outcome, Exception) else Error(f"failed: {outcome!r}")
            self._pool.failed(server, error)
            logger.info("gnats: cannot connect to %s: %s", server.url, error)
            self._on_failure(error)
        return None

    def _open(self, url: ServerURL) -> Opened:
        opened = open_link(
            url, lambda info: self._connect_fields(url, info), self._options, self._secure
        )
        # Once it was TLS, it stays TLS: a server that offers none any more is not believed.
        self._secure = self._secure or opened.secure
        return opened

    def _must_give_up(self, server: PoolServer) -> bool:
        """The same auth error twice from one server: waiting will not make it better."""
        if self._options.reconnect.ignore_auth_error_abort or not server.repeated_auth_error:
            return False
        logger.warning("gnats: %s refused the credentials twice, giving up", server.url)
        self.gave_up = server.last_error
        return True

    # -- the user's own choice -----------------------------------------------------------

    def _selected(self) -> PoolServer | None:
        """The server of ``select_server_cb``, once its wait is over; None: the line decides."""
        select = self._options.reconnect.select_server_cb
        if select is None or self._pool.exhausted:
            return None
        choice = self._aside(select, self._pool.eligible, self._info())
        if self._is_closing():
            return None
        chosen = _chosen(choice)
        server = self._pool.take(chosen) if chosen is not None else None
        if server is None:
            self._on_failure(_bad_choice(choice))
            return None
        least = LEAST_PAUSE if server.failures > 0 else 0.0
        if self._tired:
            least = self._options.reconnect.reconnect_wait
        self._wait(Deadline(max(float(choice[1]), least)))
        return server if server in self._pool else None  # set_servers() may have come in between

    def _wait(self, deadline: Deadline) -> None:
        while not deadline.expired and not self._is_closing() and not self._hurried:
            self._bell.listen(deadline.remaining())
        self._hurried = False

    # -- the wait between two cycles -----------------------------------------------------

    def _pause(self, cycle: int) -> None:
        """The wait after a full cycle; close, force_reconnect and add_server cut it short."""
        deadline = Deadline(self._delay(cycle))
        while not deadline.expired and not self._is_closing() and not self._hurried:
            if self._pool.has_untried:
                self._cut_short = True  # the new server is tried first, then the next cycle begins
                return
            self._bell.listen(deadline.remaining())
        self._hurried = False
        self._pool.begin_cycle()

    def _delay(self, cycle: int) -> float:
        custom = self._options.reconnect.custom_reconnect_delay_cb
        if custom is not None:
            delay = self._aside(custom, cycle)
            if _is_delay(delay):
                return float(delay)
            if not self._is_closing():
                self._on_failure(_bad_delay(delay))
        reconnect = self._options.reconnect
        backoff = Backoff(reconnect.reconnect_wait, reconnect.reconnect_max_wait, self._jitter)
        return backoff.delay(cycle)

    @property
    def _jitter(self) -> float:
        """TLS costs a server more: a thousand clients come back over a longer time."""
        secure = (
            self._secure
            or self._options.tls is not None
            or any(url.is_secure for url in self._pool.servers)
        )
        reconnect = self._options.reconnect
        return reconnect.reconnect_jitter_tls if secure else reconnect.reconnect_jitter

    # -- what may block ------------------------------------------------------------------

    def _aside(
        self, run: Callable[..., Any], *args: Any, is_over: Callable[[], bool] = lambda: False
    ) -> Any:
        """Call *run* in a greenlet of its own and wait, so that close() ends it at once, as
        *is_over* does, and what the user gave us cannot hold the reconnector. A failure is
        returned, not raised."""
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(run(*args))
            except (Exception, gevent.Timeout) as exc:
                outcome.append(exc)

        greenlet = gevent.spawn(work)
        greenlet.link(lambda _: self._bell.ring())
        try:
            while not greenlet.dead and not self._is_closing() and not is_over():
                self._bell.listen(None)
        finally:
            greenlet.kill(timeout=KILL_TIMEOUT)
        return outcome[0] if outcome else Error("the attempt was killed")


def _is_delay(delay: object) -> bool:
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        return False
    return 0 <= delay < 1e9  # NaN and infinity are no delays


def _chosen(choice: object) -> ServerURL | None:
    """The server of a choice that is one."""
    if isinstance(choice, tuple) and len(choice) == 2 and isinstance(choice[0], ServerURL):
        return choice[0] if _is_delay(choice[1]) else None
    return None


def _bad_choice(choice: object) -> Exception:
    if isinstance(choice, Exception):
        return choice
    return Error(
        "select_server_cb must return one of the servers it was given and 0 or more seconds, "
        f"not {choice!r:.80}"
    )


def _bad_delay(delay: object) -> Exception:
    if isinstance(delay, Exception):
        return delay
    return Error(f"custom_reconnect_delay_cb must return 0 or more seconds, not {delay!r}")
