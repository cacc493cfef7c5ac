"""The life of a connection: the sole owner of connect, loss, retry, restore and close.

One greenlet. The first connect and every reconnect are one path:

    next server → dial and shake hands → SUBs → CONNECTED → what was pending → callbacks
    → (the link ends) → close the session → RECONNECTING → next server …

Others only leave a wish (close, force_reconnect, a new server) and ring the bell; they never
touch a session. So nothing here needs a lock, and a late failure finds an old session dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent import Greenlet
from gevent.event import Event

from .backoff import Backoff, Deadline
from .callbacks import CallbackQueue
from .errors import (
    ConnectionClosedError,
    Error,
    MaxPayloadError,
    NoServersError,
    PermissionsError,
    ReconnectForcedError,
    TransportError,
)
from .info import ServerInfo
from .options import ConnectionOptions
from .outbox import Outbox
from .pool import PoolServer, ServerPool
from .refusals import read_refusal
from .registry import Subscriptions
from .requests import Requests
from .session import Opened, Session, open_link
from .status import ConnectionStatus, Status
from .url import ServerURL
from .waiting import Line, Park

logger = logging.getLogger("gnats")

# A link that lived shorter than this (seconds) does not end the outage before it: a server
# that admits us and drops us at once must not be redialled in a tight loop.
SHORT_LIFE = 0.25
KILL_TIMEOUT = 1.0  # seconds, for a user's callable that resists
SHORT_LIVES_BORNE = 4  # in a row; a server killed and killed again deserves a few quick returns
# How long close() lets the last frames leave and waits for the server to confirm them.
CLOSE_FLUSH = 1.0

S = ConnectionStatus


class Reconnector:
    """Owns the session and the status. Every method but ``_run``'s own never switches."""

    def __init__(
        self,
        options: ConnectionOptions,
        pool: ServerPool,
        outbox: Outbox,
        subscriptions: Subscriptions,
        requests: Requests,
        callbacks: CallbackQueue,
        connect_fields: Callable[[ServerURL, ServerInfo], dict[str, Any]],
        tell: Callable[..., None],
    ) -> None:
        self._options = options
        self._pool = pool
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._requests = requests
        self._callbacks = callbacks
        self._connect_fields = connect_fields
        self._tell = tell  # tell("closed_cb", ...): post a user callback, the connection first
        self._backoff = Backoff(
            options.reconnect.reconnect_wait,
            options.reconnect.reconnect_max_wait,
            options.reconnect.reconnect_jitter,
        )
        self.status = Status(self._moved)
        self.status_changed = Line()
        self.session: Session | None = None
        self.info: ServerInfo | None = None
        self.last_error: Exception | None = None
        #: While a drain is under way: the state to come back to after a loss.
        self.drain_stage: ConnectionStatus | None = None
        self.attempts = self.connects = self.disconnects = self.errors_received = 0
        # Of sessions that are gone; the present one counts for itself.
        self._past = {"in_msgs": 0, "in_bytes": 0, "in_unknown": 0, "pings": 0}
        self._generation = 0
        self._short_lives = 0
        self._bell: Event | None = None
        self._greenlet: Greenlet[[], None] | None = None
        self._closing: Exception | None = None
        self._forced = False
        self._fails_fast = False  # in a first connect that gives each server one attempt
        self._failure: NoServersError | None = None  # of such a first connect
        self._awaited: list[tuple[ConnectionStatus, Park]] = []

    # -- wishes, from anyone -------------------------------------------------------------

    def start(self) -> None:
        """Begin the first connect, in the background."""
        self._failure = None
        self._bell = Event()
        self.status.to(S.connecting)
        self._outbox.open()
        self._greenlet = gevent.spawn(self._run)

    def request_close(self, cause: Exception | None = None) -> None:
        """Have the connection closed. Waiters hear of it when it is."""
        if self._closing is None:
            self._closing = cause or ConnectionClosedError()
        if self._greenlet is None:
            self._finish()
        self._ring()

    def request_reconnect(self) -> None:
        """Drop the present link, or cut the present wait short."""
        if self.session is not None:
            self.session.exit.fail(ReconnectForcedError())
        else:
            self._forced = True
        self._ring()

    def servers_changed(self) -> None:
        """The pool has a new server: a wait for the next cycle is over."""
        self._ring()

    def join(self, timeout: float | None) -> bool:
        """Wait for the greenlet to end: the connection is closed, or never came to be."""
        if self._greenlet is None or self._greenlet is gevent.getcurrent():
            return True
        self._greenlet.join(timeout)
        return self._greenlet.dead

    def await_status(self, wanted: ConnectionStatus, timeout: float | None) -> bool:
        """Wait until the status has been *wanted*, however briefly, or is closed; False when
        *timeout* seconds ran out first. Switches."""
        if self.status.current in (wanted, S.closed):
            return True
        entry = (wanted, Park())
        self._awaited.append(entry)
        try:
            return entry[1].wait(timeout)
        finally:
            self._awaited.remove(entry)

    def report(self, error: Exception) -> None:
        """Tell an error that belongs to no caller: log, ``last_error``, ``error_cb``."""
        self.last_error = error
        # Who has an error_cb need not be told twice.
        heard = self._options.callbacks.error_cb is not None
        logger.log(logging.DEBUG if heard else logging.WARNING, "gnats: %s", error)
        self._tell("error_cb", error)

    @property
    def is_closing(self) -> bool:
        """Whether the close has been asked for, and perhaps done."""
        return self._closing is not None

    @property
    def failure(self) -> NoServersError | None:
        """Why the first connect failed, when it did."""
        return self._failure

    def past_and_present(self, name: str) -> int:
        """A counter over all sessions."""
        present = 0
        if self.session is not None:
            present = self.session.pings.sent if name == "pings" else getattr(self.session, name)
        return self._past[name] + present

    # -- the greenlet --------------------------------------------------------------------

    def _run(self) -> None:
        first = True
        self._fails_fast = not self._options.reconnect.retry_on_failed_connect
        fresh = True  # a new outage, not the continuation of one
        try:
            while self._closing is None:
                if fresh:
                    self._pool.begin_outage()
                opened = self._find_link(first)
                if opened is None:
                    if self._fails_fast:
                        self._give_back()
                        return
                    break
                self._fails_fast = False
                session = self._restore(opened, first)
                first = False
                if not self._outlive(session):
                    break
                fresh = self._lived(session)
        except Exception as exc:  # a bug: say so, and never leave the connection half alive
            logger.exception("gnats: internal error, the connection is closed")
            self.report(exc)
        if self.status.current is not S.closed:
            self._finish()

    def _give_back(self) -> None:
        """The first connect failed fast: back to where it began, so that it can be tried again."""
        if self._closing is not None:
            self._finish()
            return
        self._failure = NoServersError(self._pool.last_errors())
        self._greenlet = None
        self._outbox.shut(lambda: ConnectionClosedError("not connected: connect() failed"))
        self._outbox.buffer.discard()
        self.status.to(S.disconnected)

    def _may_reconnect(self) -> bool:
        reconnect = self._options.reconnect
        return reconnect.allow_reconnect and reconnect.max_reconnect != 0

    # -- finding a link ------------------------------------------------------------------

    def _find_link(self, first: bool) -> Opened | None:
        """Try servers, cycle after cycle. None: nobody is left, or the connection closes."""
        cycle = 0
        while self._closing is None:
            server = self._pool.next(ignore_limit=first and cycle == 0)
            if server is not None:
                opened = self._attempt(server)
                if opened is not None:
                    return opened
                if self._must_abort(server):
                    self.last_error = server.last_error
                    return None
            elif self._fails_fast:
                return None
            elif self._pool.exhausted:
                self.report(NoServersError(self._pool.last_errors()))
                return None
            else:
                cycle += 1
                self._pause(cycle)
        return None

    def _attempt(self, server: PoolServer) -> Opened | None:
        self.attempts += 1
        opened = self._aside(self._open, server.url)
        if isinstance(opened, Opened):
            self._pool.succeeded(server)
            return opened
        if self._closing is None:
            self._attempt_failed(server, opened)
        return None

    def _open(self, url: ServerURL) -> Opened:
        return open_link(
            url,
            lambda info: self._connect_fields(url, info),
            Deadline(self._options.connect_timeout),
            self._options.write_timeout,
        )

    def _aside(self, run: Callable[..., Any], *args: Any) -> Any:
        """Call *run* in a greenlet of its own and wait, so that close() ends it at once and
        what the user gave us cannot hold the reconnector. A failure is returned, not raised."""
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(run(*args))
            except (Exception, gevent.Timeout) as exc:
                outcome.append(exc)

        greenlet = gevent.spawn(work)
        greenlet.link(lambda _: self._ring())
        try:
            while not greenlet.dead and self._closing is None:
                self._listen(None)
        finally:
            greenlet.kill(timeout=KILL_TIMEOUT)
        return outcome[0] if outcome else Error("the attempt was killed")

    def _attempt_failed(self, server: PoolServer, failure: object) -> None:
        error = failure if isinstance(failure, Exception) else Error(f"failed: {failure!r}")
        self._pool.failed(server, error)
        if self.disconnects == 0:
            self.last_error = error  # in a later outage it stays the cause of the loss
        if not self._fails_fast:
            self._tell("error_cb", error)
        logger.info("gnats: cannot connect to %s: %s", server.url, error)

    def _must_abort(self, server: PoolServer) -> bool:
        """The same auth error twice from one server: waiting will not make it better."""
        if self._options.reconnect.ignore_auth_error_abort or not server.repeated_auth_error:
            return False
        logger.warning("gnats: %s refused the credentials twice, giving up", server.url)
        return True

    def _pause(self, cycle: int) -> None:
        """The wait after a full cycle; close, force_reconnect and add_server cut it short."""
        deadline = Deadline(self._delay(cycle))
        self._forced = False
        while not deadline.expired and self._closing is None and not self._forced:
            if self._listen(deadline.remaining()) and self._pool.has_untried:
                return  # the new server has its turn in this cycle, before anyone's next
        self._pool.begin_cycle()

    def _delay(self, cycle: int) -> float:
        custom = self._options.reconnect.custom_reconnect_delay_cb
        if custom is not None:
            delay = self._aside(custom, cycle)
            if _is_delay(delay):
                return float(delay)
            if self._closing is None:
                self.report(_bad_delay(delay))
        return self._backoff.delay(cycle)

    # -- a link is up --------------------------------------------------------------------

    def _restore(self, opened: Opened, first: bool) -> Session:
        """SUBs, CONNECTED, then what was pending. Nothing here can switch before the status
        is set, so no publish comes in between."""
        self._generation += 1
        session = self.session = Session(
            opened,
            self._generation,
            self._outbox.buffer,
            self._subscriptions.by_sid,  # type: ignore[arg-type]
            self._options.ping_interval,
            self._options.max_pings_out,
            self._on_info,
            self._on_err,
            self._ring,
            self._outbox.room_made,
            self._ring,
        )
        self._take_info(opened.info)
        self._evict(opened.info.max_payload)
        self._outbox.buffer.restore(self._subscriptions.restore_frames())
        self._outbox.link()
        self.connects += 1
        self.status.to(self.drain_stage or S.connected)
        new = self._pool.discover(opened.info.connect_urls)
        session.start()
        logger.info("gnats: connected to %s", opened.url)
        self._await_replay(session)
        self._tell("connected_cb" if first else "reconnected_cb")
        if new and not first:
            self._tell("discovered_servers_cb")
        if opened.info.ldm:
            self._lame_duck(session)
        return session

    def _await_replay(self, session: Session) -> None:
        """Until the pending messages have been written, or the link fails under them."""
        if not self._outbox.buffer.frames:
            return
        while not session.written and session.exit.cause is None and self._closing is None:
            self._listen(None)

    def _evict(self, max_payload: int) -> None:
        """Messages that this server would close the link for cannot be replayed to it."""
        for size in self._outbox.buffer.evict_larger(max_payload):
            self.report(MaxPayloadError(size, max_payload))

    def _outlive(self, session: Session) -> bool:
        """Until the link ends. Returns whether another is to be sought."""
        while session.exit.cause is None and self._closing is None:
            self._listen(None)
        if self._closing is not None:
            return False
        self._lose(session)
        return self._may_reconnect()

    # -- a link is lost ------------------------------------------------------------------

    def _lose(self, session: Session) -> None:
        """Close the session, settle its books, and say so."""
        cause = self._cause(session)
        self.last_error = cause
        self.disconnects += 1
        self._end_session(session)
        self._outbox.unlink()
        self._pool.lost()
        logger.warning("gnats: lost %s: %s", session.url, cause)
        if self._may_reconnect():
            self.status.to(S.reconnecting)
        if not isinstance(cause, ReconnectForcedError):
            self._tell("error_cb", cause)
        self._tell("disconnected_cb")

    def _lived(self, session: Session) -> bool:
        """Whether the link lived long enough to end the outage before it."""
        if session.lifetime > min(SHORT_LIFE, self._options.reconnect.reconnect_wait):
            self._short_lives = 0
        else:
            self._short_lives += 1
        return self._short_lives < SHORT_LIVES_BORNE

    def _cause(self, session: Session) -> Exception:
        cause = session.exit.cause
        assert cause is not None
        if isinstance(cause, TransportError) and session.parting_words is not None:
            return session.parting_words
        return cause

    def _end_session(self, session: Session) -> None:
        # First the session stops touching the buffer, then the buffer is settled.
        session.close()
        self._past["in_msgs"] += session.in_msgs
        self._past["in_bytes"] += session.in_bytes
        self._past["in_unknown"] += session.in_unknown
        self._past["pings"] += session.pings.sent
        self.session = None
        self._outbox.buffer.lost()

    # -- the end -------------------------------------------------------------------------

    def _finish(self) -> None:
        """Close for good: waiters fail, CLOSED, closed_cb last."""
        cause = self._closing or ConnectionClosedError()
        self._closing = cause
        self._outbox.shut(ConnectionClosedError)
        if self.session is not None:
            self._last_flush(self.session)
            self._end_session(self.session)
        left = self._outbox.buffer.discard()
        if left:
            logger.warning("gnats: closed with %d messages never written", left)
        closed = ConnectionClosedError()
        self._requests.fail_all(closed)
        self._subscriptions.end_all(closed)
        self.status.to(S.closed)
        self._tell("closed_cb")

    def _last_flush(self, session: Session) -> None:
        """What was published before close() goes out, if the server takes it in time."""
        answered: list[bool] = []

        def on_pong(arrived: bool) -> None:
            answered.append(arrived)
            self._ring()

        session.pings.ping(on_pong)
        deadline = Deadline(CLOSE_FLUSH)
        while not answered and session.exit.cause is None and not deadline.expired:
            self._listen(deadline.remaining())

    # -- what a session tells ------------------------------------------------------------

    def _on_info(self, session: Session, info: ServerInfo) -> None:
        session.info = info
        self._take_info(info)
        if self._pool.discover(info.connect_urls):
            self._tell("discovered_servers_cb")
        if info.ldm:
            self._lame_duck(session)

    def _take_info(self, info: ServerInfo) -> None:
        self.info = info
        self._outbox.buffer.max_payload = info.max_payload

    def _lame_duck(self, session: Session) -> None:
        if not session.lame_duck:
            session.lame_duck = True
            logger.warning("gnats: %s is going away (lame duck mode)", session.url)
            self._tell("lame_duck_cb")

    def _on_err(self, session: Session, text: str) -> None:
        self.errors_received += 1
        refusal = read_refusal(text)
        if refusal.closes:
            session.exit.fail(refusal.error)
            return
        if isinstance(refusal.error, PermissionsError):
            self._permission_refused(refusal.error)
        else:
            session.heard(refusal.error)
        self.report(refusal.error)

    def _permission_refused(self, error: PermissionsError) -> None:
        if error.operation != "subscription":
            return
        self._subscriptions.refused(error.subject, error.queue, error)
        if self._requests.listens_to(error.subject):
            self._requests.fail_all(error)

    # -- inside --------------------------------------------------------------------------

    def _moved(self, old: ConnectionStatus, new: ConnectionStatus) -> None:
        self.status_changed.wake_all()
        for wanted, park in self._awaited:
            if new in (wanted, S.closed):
                park.wake()
        self._tell("status_cb", old, new)

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()

    def _listen(self, timeout: float | None) -> bool:
        """Wait for the bell; False when *timeout* seconds ran out first."""
        assert self._bell is not None
        rung = self._bell.wait(timeout)
        self._bell.clear()
        return bool(rung)


def _is_delay(delay: object) -> bool:
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        return False
    return 0 <= delay < 1e9  # NaN and infinity are no delays


def _bad_delay(delay: object) -> Exception:
    if isinstance(delay, Exception):
        return delay
    return Error(f"custom_reconnect_delay_cb must return 0 or more seconds, not {delay!r}")
