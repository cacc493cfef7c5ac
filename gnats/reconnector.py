"""The life of a connection: the sole owner of connect, loss, retry, restore and close.

One greenlet. The first connect and every reconnect are one path:

    next server → dial and shake hands → SUBs → CONNECTED → what was pending → callbacks
    → (the link ends) → close the session → RECONNECTING → next server …

Others only leave a wish (close, force_reconnect, a new server) and ring the bell; they never
touch a session. So nothing here needs a lock, and a late failure finds an old session dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from copy import copy

import gevent
from gevent import Greenlet

from .backoff import Deadline
from .errors import (
    ConnectionClosedError,
    Error,
    NoServersError,
    PermissionsError,
    ReconnectForcedError,
    TransportError,
)
from .info import ServerInfo
from .move import Move
from .options import ConnectionOptions
from .outbox import Outbox
from .pool import ServerPool
from .refusals import read_refusal
from .registry import Subscriptions
from .requests import Requests
from .restore import Restore
from .seeker import ConnectFields, Seeker
from .session import Opened, Session
from .status import ConnectionStatus, Status
from .waiting import Bell, Line, Park

logger = logging.getLogger("gnats")

# A link that lived shorter than this (seconds) does not end the outage before it: a server
# that admits us and drops us at once must not be redialled in a tight loop.
SHORT_LIFE = 0.25
SHORT_LIVES_BORNE = 4  # in a row; a server killed and killed again deserves a few quick returns
# How long close() lets the last frames leave and waits for the server to confirm them.
CLOSE_FLUSH = 1.0
# Seconds until a move that found no server, or failed, is tried again.
MOVE_AGAIN = 1.0

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
        connect_fields: ConnectFields,
        tell: Callable[..., None],
    ) -> None:
        self._options = options
        self._pool = pool
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._requests = requests
        self._tell = tell  # tell("closed_cb", ...): post a user callback, the connection first
        self.status = Status(self._moved)
        self.status_changed = Line()
        self.session: Session | None = None
        self.info: ServerInfo | None = None
        self.last_error: Exception | None = None
        #: While a drain is under way: the state to come back to after a loss.
        self.drain_stage: ConnectionStatus | None = None
        self._since = time.monotonic()  # when the present status began
        self.connects = self.moves = self.disconnects = self.errors_received = 0
        self._bell = Bell()
        self.seeker = Seeker(
            options,
            pool,
            connect_fields,
            self._bell,
            lambda: self.is_closing,
            self._attempt_failed,
            lambda: self.info,
        )
        self._restores = Restore(outbox.buffer, subscriptions, self.report)
        # Of sessions that are gone; the present one counts for itself.
        self._past = {"in_msgs": 0, "in_bytes": 0, "in_unknown": 0, "pings": 0}
        self._generation = 0
        self._moves_at: Deadline | None = None  # the server is leaving: when we do
        self._present_move: Move | None = None
        self._short_lives = 0
        self._greenlet: Greenlet[[], None] | None = None
        self._closing: Exception | None = None
        self._fails_fast = False  # in a first connect that gives each server one attempt
        self._failure: Exception | None = None  # of such a first connect
        self._awaited: list[tuple[ConnectionStatus, Park]] = []

    # -- wishes, from anyone -------------------------------------------------------------

    def start(self, patient: bool) -> None:
        """Begin the first connect, in the background; *patient*: not for one attempt each only."""
        self._fails_fast = not patient
        self._failure = None
        self.status.to(S.connecting)
        self._outbox.open()
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.rawlink(self._ended)

    def request_close(self) -> None:
        """Have the connection closed. Waiters hear of it when it is."""
        if self._closing is not None:
            return
        self._closing = ConnectionClosedError()
        if self._greenlet is None:
            self._finish()
        self._bell.ring()

    def request_reconnect(self) -> None:
        """Drop the present link, or cut the present wait short."""
        if self.session is not None:
            self.session.exit.fail(ReconnectForcedError())
        else:
            self.seeker.hurry()

    def disown(self, cause: ConnectionClosedError) -> None:
        """In a forked child: this life is the parent's. Nobody hears of it any more, its greenlets
        end in the next turn of the loop, and who waits for it looks again, or raises *cause*."""
        self._closing = cause
        self._tell = _nothing
        self._outbox.disown()
        self.status.current = S.closed
        self._outbox.shut(lambda: copy(cause))
        self._requests.fail_all(cause)
        if self.session is not None:
            self.session.disown()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self.status_changed.wake_all()
        for _, park in self._awaited:
            park.wake()

    def bury(self, cause: ConnectionClosedError) -> None:
        """Be closed because of *cause*, without a word."""
        self._closing = cause
        self._outbox.shut(lambda: copy(cause))
        self._subscriptions.end_all(cause)
        self.status.current = S.closed

    def gone(self) -> ConnectionClosedError:
        """Why the connection cannot be used any more: to be raised."""
        if isinstance(self._closing, ConnectionClosedError):
            return copy(self._closing)
        return ConnectionClosedError()

    def servers_changed(self) -> None:
        """The pool has a new server: a wait for the next cycle is over."""
        self._bell.ring()

    def join(self, timeout: float | None) -> bool:
        """Wait for the greenlet to end: the connection is closed, or never came to be."""
        if self._greenlet is None or self._greenlet is gevent.getcurrent():
            return True
        self._greenlet.join(timeout)
        return self._greenlet.dead

    def await_status(self, wanted: ConnectionStatus, timeout: float | None) -> bool:
        """Wait until the status has been *wanted*, however briefly, or a connect has failed, or
        the connection is closed; False when *timeout* seconds ran out first. Switches."""
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
        if self.status.current is S.closed:
            # closed_cb was the last callback; a handler that the close woke may still complain.
            logger.info("gnats: after the close: %s", error)
            return
        # Who has an error_cb need not be told twice.
        heard = self._options.callbacks.error_cb is not None
        logger.log(logging.DEBUG if heard else logging.WARNING, "gnats: %s", error)
        self._tell("error_cb", error)

    @property
    def is_closing(self) -> bool:
        """Whether the close has been asked for, and perhaps done."""
        return self._closing is not None

    @property
    def is_moving(self) -> bool:
        """Whether a move is under way that must come to its end before anything is drained."""
        return self._present_move is not None and self._present_move.is_binding

    @property
    def failure(self) -> Exception | None:
        """Why the first connect failed, when it did."""
        return self._failure

    @property
    def age(self) -> float:
        """Seconds since the present status began."""
        return time.monotonic() - self._since

    @property
    def outage(self) -> float:
        """Seconds without a link until now, while one is sought."""
        return self.age if self.status.current in (S.connecting, S.reconnecting) else 0.0

    def past_and_present(self, name: str) -> int:
        """A counter over all sessions."""
        session = self.session  # another thread may be looking
        if session is None:
            return self._past[name]
        return self._past[name] + (
            session.pings.sent if name == "pings" else getattr(session, name)
        )

    # -- the greenlet --------------------------------------------------------------------

    def _run(self) -> None:
        first = True
        fresh = True  # a new outage, not the continuation of one
        try:
            while self._closing is None:
                if fresh:
                    self._pool.begin_outage()
                opened = self.seeker.find(first=first, one_cycle=self._fails_fast, tired=not fresh)
                if opened is None:
                    if self._fails_fast:
                        self._give_back()
                        return
                    self._give_up()
                    break
                self._fails_fast = False
                session = self._restore(opened, first)
                first = False
                last = self._outlive(session)
                if last is None:
                    break
                fresh = self._lived(last)
        except Exception as exc:  # a bug: say so, and never leave the connection half alive
            logger.exception("gnats: internal error, the connection is closed")
            self.report(exc)
        if self.status.current is not S.closed:
            self._finish()

    def _ended(self, greenlet: object) -> None:
        """In the hub. A reconnector that somebody killed leaves nobody to keep the connection:
        it is closed, so that everyone who waits hears of it."""
        if greenlet is not self._greenlet or self.status.current is S.closed:
            return
        logger.error("gnats: the connection's own greenlet was killed, the connection is closed")
        self._closing = self._closing or ConnectionClosedError()
        self._greenlet = gevent.spawn(self._finish)

    def _give_back(self) -> None:
        """The first connect failed fast: back to where it began, so that it can be tried again."""
        self._outbox.end()
        if self._closing is not None:
            self._finish()
            return
        self._failure = self.seeker.gave_up
        self._outbox.shut(lambda: ConnectionClosedError("not connected: connect() failed"))
        self._outbox.buffer.discard()
        self._requests.fail_all(ConnectionClosedError("connect() failed meanwhile"))
        with self._outbox.handed.lock:  # from here on another thread may close it
            self._greenlet = None
            self._outbox.handed.owner.release()
            self.status.to(S.disconnected)
        self._outbox.handed.wake_all()

    def _give_up(self) -> None:
        """Nobody is left to try: the connection will be closed, and this is why."""
        why = self.seeker.gave_up
        if self._closing is not None or why is None:
            return
        if isinstance(why, NoServersError):
            self.report(why)
        else:
            self.last_error = why  # it was told when the attempt failed

    def _attempt_failed(self, error: Exception) -> None:
        if self.disconnects == 0:
            self.last_error = error  # in a later outage it stays the cause of the loss
        if not self._fails_fast:
            if self.seeker.attempts == 1 and self._options.callbacks.error_cb is None:
                logger.warning("gnats: no server yet, going on in the background: %s", error)
            self._tell("error_cb", error)

    def _may_reconnect(self) -> bool:
        reconnect = self._options.reconnect
        return reconnect.allow_reconnect and reconnect.max_reconnect != 0

    # -- a link is up --------------------------------------------------------------------

    def _restore(self, opened: Opened, first: bool) -> Session:
        """SUBs, CONNECTED, then what was pending. Nothing here can switch before the status
        is set, so no publish comes in between."""
        session = self._new_session(opened)
        self._take_info(opened.info)
        self._outbox.pour()  # so that it is measured as what waited longer is
        self._restores.fill(opened.info, session.pings)
        self._outbox.link()
        self.connects += 1
        self.status.to(self.drain_stage or S.connected)
        new = self._pool.discover(opened.info.connect_urls)
        session.start()
        # Who hears of a loss must hear of its end.
        level = logging.INFO if first else logging.WARNING
        logger.log(level, "gnats: connected to %s (link %d)", opened.url, session.generation)
        self._await_proof(session, opened)
        self._await_replay(session)
        self._tell("connected_cb" if first else "reconnected_cb")
        if new and not first:
            self._tell("discovered_servers_cb")
        if opened.info.ldm:
            self._lame_duck(session)
        return session

    def _new_session(self, opened: Opened) -> Session:
        self._generation += 1
        self.session = Session(
            opened,
            self._generation,
            self._outbox.buffer,
            self._subscriptions.by_sid,
            self._options.ping_interval,
            self._options.max_pings_out,
            self._on_info,
            self._on_err,
            self._bell.ring,
            self._outbox.bytes_moved,
            self._bell.ring,
        )
        return self.session

    def _await_proof(self, session: Session, opened: Opened) -> None:
        """Servers that were named in clear, in front of TLS, join only if the server says nothing
        of them inside: behind its first PONG it names them all, or is of an older kind, which
        names them again only when they change."""

        def on_pong(arrived: bool) -> None:
            if arrived and session.info is opened.info and self._pool.discover(opened.unproven):
                self._tell("discovered_servers_cb")

        if opened.unproven:
            session.pings.ping(on_pong)

    def _await_replay(self, session: Session) -> None:
        """Until the pending messages have been written, or the link fails under them."""
        if not self._outbox.buffer.frames:
            return
        while not session.restored and session.exit.cause is None and self._closing is None:
            self._bell.listen(None)

    def _outlive(self, session: Session) -> Session | None:
        """Until the link ends, or the last of those that took its place. Returns that one, or
        None when no other is to be sought."""
        while session.exit.cause is None and self._closing is None:
            if self._moves_at is None:
                self._bell.listen(None)
            elif not self._moves_at.expired:
                self._bell.listen(self._moves_at.remaining())
            else:
                session = self._move(session)
        if self._closing is not None:
            return None
        self._lose(session)
        return session if self._may_reconnect() else None

    # -- the server goes away, and we before it ---------------------------------------------

    def _move(self, old: Session) -> Session:
        """To another server, without a gap; where that fails, the *old* link stays while it
        lives."""
        self._moves_at = Deadline(MOVE_AGAIN)
        if self.drain_stage is not None:
            return old
        found = self.seeker.find_other(old.url, lambda: old.exit.cause is not None)
        if found is None:
            return old
        server, opened = found
        taken = False
        try:
            move = self._present_move = Move(
                old,
                opened,
                self._subscriptions.to_keep,
                self._bell,
                lambda: self.is_closing,
                lambda: self.drain_stage is not None or server not in self._pool,
                self._options.no_echo,
            )
            opened.early = move.run()
            self._pool.lost()
            self._pool.succeeded(server)
            old.left = True
            self._end_session(old)
            taken = True
        except Error as exc:
            logger.warning("gnats: the move from %s to %s failed: %s", old.url, opened.url, exc)
            return old
        finally:
            self._present_move = None
            if not taken:
                opened.transport.close()
                self.status_changed.wake_all()
        return self._settle_in(opened, move)

    def _settle_in(self, opened: Opened, move: Move) -> Session:
        """The new link is subscribed already. Nothing here switches."""
        self._moves_at = None
        session = self._new_session(opened)
        self._take_info(opened.info)
        self._outbox.pour()
        self._restores.take_over(opened.info, move, opened.early)
        self._outbox.link()
        self.connects += 1
        self.moves += 1
        move.follow(session)
        session.start()
        self._await_proof(session, opened)
        if self._pool.discover(opened.info.connect_urls):
            self._tell("discovered_servers_cb")
        self.status_changed.wake_all()
        logger.info("gnats: moved to %s (link %d)", opened.url, session.generation)
        return session

    # -- a link is lost ------------------------------------------------------------------

    def _lose(self, session: Session) -> None:
        """Close the session, settle its books, and say so."""
        cause = self._cause(session)
        self.last_error = cause
        self.disconnects += 1
        self._end_session(session)
        self._moves_at = None
        self._outbox.unlink()
        self._pool.lost()
        logger.warning("gnats: lost %s: %s", session.url, cause)
        if self._may_reconnect():
            self.status.to(S.reconnecting)
        told = cause is not session.exit.cause  # parting words were told when they came
        if not told and not isinstance(cause, ReconnectForcedError):
            self._tell("error_cb", cause)
        self._tell("disconnected_cb")
        self._restores.ended(cause)

    def _lived(self, session: Session) -> bool:
        """Whether the link lived long enough to end the outage before it."""
        if isinstance(session.exit.cause, ReconnectForcedError):
            return True  # whoever asks for a new link means now
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
        with self._outbox.handed.lock:  # who counts from another thread counts nothing twice
            self._past["in_msgs"] += session.in_msgs
            self._past["in_bytes"] += session.in_bytes
            self._past["in_unknown"] += session.in_unknown
            self._past["pings"] += session.pings.sent
            self.session = None
        self._outbox.buffer.lost()

    # -- the end -------------------------------------------------------------------------

    def _finish(self) -> None:
        """Close for good: waiters fail, CLOSED, closed_cb last."""
        self._closing = self._closing or ConnectionClosedError()
        self._outbox.shut(ConnectionClosedError)
        if self.session is not None:
            self._last_flush(self.session)
            self._end_session(self.session)
        left = self._outbox.buffer.discard()
        if left:
            messages = "1 message" if left == 1 else f"{left} messages"
            logger.warning("gnats: closed with %s never written", messages)
        closed = ConnectionClosedError()
        self._requests.fail_all(closed)
        self._subscriptions.end_all(closed)
        self.status.to(S.closed)
        self._outbox.end()
        self._tell("closed_cb")

    def _last_flush(self, session: Session) -> None:
        """What was published before close() goes out, if the server takes it in time."""
        answered: list[bool] = []

        def on_pong(arrived: bool) -> None:
            answered.append(arrived)
            self._bell.ring()

        session.pings.ping(on_pong)
        deadline = Deadline(CLOSE_FLUSH)
        while not answered and session.exit.cause is None and not deadline.expired:
            self._bell.listen(deadline.remaining())

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
            if self._options.reconnect.lame_duck_move and self._may_reconnect():
                self._moves_at = Deadline(self.seeker.spread())
                self._bell.ring()

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
        if error.operation == "publish":
            self._requests.fail_subject(error.subject, error)
            return
        self._subscriptions.refused(error.subject, error.queue, error)
        if self._requests.listens_to(error.subject):
            self._requests.fail_all(error)

    # -- inside --------------------------------------------------------------------------

    def _moved(self, old: ConnectionStatus, new: ConnectionStatus) -> None:
        self._since = time.monotonic()
        self.status_changed.wake_all()
        for wanted, park in self._awaited:
            if new in (wanted, S.closed, S.disconnected):
                park.wake_across()  # who waits for a connect may wait in another thread
        self._tell("status_cb", old, new)


def _nothing(*_: object) -> None:
    pass
