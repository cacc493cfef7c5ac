"""The face of gnats: what a user holds. It builds the parts, checks the input, delegates.

Everything that decides lives in a room of its own; see docs/architecture.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent

from . import commands, farewell, forks, metrics, websocket
from ._version import __version__
from .auth import Credentials
from .backoff import LONGEST, Deadline
from .buffer import OutboundBuffer
from .callbacks import CallbackQueue
from .drain import Drain
from .errors import (
    BadURLError,
    CallbackError,
    ConnectionClosedError,
    ConnectionDrainingError,
    DrainTimeoutError,
    Error,
    ForkedConnectionError,
    HeaderError,
    OptionError,
    OutboundBufferLimitError,
    SlowConsumerError,
    TimeoutError,
)
from .headers import HeaderSource, encode_headers
from .health import Health, calendar
from .info import ServerInfo
from .intake import Publisher
from .mailbox import Handler
from .message import Msg
from .metrics import Observer
from .nuid import NUID
from .options import LARGEST, ConnectionOptions, check_callable, from_fields
from .outbox import Outbox
from .payload import Payload, to_bytes
from .pool import ServerPool
from .reconnector import Reconnector
from .registry import Subscriptions
from .requests import Collector, Replies, Requests, Sentinel, empty_payload
from .roundtrip import RoundTrips
from .stats import Stats
from .status import ConnectionStatus
from .subjects import (
    check_control_line,
    encode_filter,
    encode_queue,
    encode_reply,
    encode_subject,
)
from .subscription import Around, Host, Subscription, enclose
from .threads import Owner, new_local
from .url import Servers, ServerURL, check_one_kind, parse_servers, parse_url
from .waiting import check_timeout, in_hub, refuse_in_hub

logger = logging.getLogger("gnats")

S = ConnectionStatus

# How long close() waits for the callbacks and handlers that still run, in seconds.
CLOSE_JOIN = 2.0
# The reconnector's own bounds (last flush, killing a session) add up to less than this.
CLOSE_BOUND = 5.0


class Connection(Publisher):
    """A connection to a NATS deployment that survives the loss of its server.

    Make it with ``gnats.connect(...)``, or as ``Connection(options)`` and then ``connect``. It
    belongs to the thread that connects it, and may be shared by any number of its greenlets; from
    other threads ``publish``, ``Msg.respond`` and ``close`` work, and what only looks (``status``,
    ``stats``, ``health``); the rest raises WrongThreadError. As a context manager it drains when it
    is left. Making it does no I/O and creates nothing on a hub.
    """

    _buffer: OutboundBuffer

    def __init__(self, options: ConnectionOptions | None = None, **fields: Any) -> None:
        super().__init__(new_local())
        self._options = options = from_fields(options, fields)
        self._publish_timeout = options.publish_timeout
        self._owner = Owner()
        self._nuid = NUID()
        host = Host(
            self._answer,
            lambda timeout: self._round_trips.settle(Deadline(timeout)),
            self._report,
            self._send_control,
            lambda: self.is_closed,
            lambda: self._reconnector.gone(),
            options.drain_timeout,
            self._owner.check,
        )
        self._subscriptions = Subscriptions(host)
        self._pool = ServerPool(
            options.reconnect.max_reconnect,
            options.reconnect.randomize_servers,
            options.reconnect.ignore_discovered_servers,
        )
        if options.servers is not None:
            self._pool.replace(_checked(parse_servers(options.servers)))
        self._credentials = Credentials(options)
        self._credentials.check()
        self._furnish()
        forks.watch(self)
        farewell.watch(self)

    def _furnish(self) -> None:
        """Make the parts that belong to one process."""
        options = self._options
        self._buffer = OutboundBuffer(keep=options.reconnect.replay_unconfirmed)
        self._outbox = Outbox(self._buffer, options.reconnect.reconnect_buf_size, self._owner)
        self._callbacks = CallbackQueue(self._callback_failed)
        self._requests = Requests(self.new_inbox, self._listen_to_inbox)
        self._reconnector = Reconnector(
            options,
            self._pool,
            self._outbox,
            self._subscriptions,
            self._requests,
            self._connect_fields,
            self._tell,
        )
        self._round_trips = RoundTrips(self._reconnector, self._outbox)
        self._drain: Drain | None = None

    def _settle_here(self) -> None:
        """It belongs to the calling thread from now on."""
        if self._owner.claim():  # callbacks of an attempt there are called there, these here
            self._callbacks = CallbackQueue(self._callback_failed)
        self._move_in(new_local())

    # -- connect -------------------------------------------------------------------------

    def connect(self, servers: Servers = None) -> Connection:
        """Connect to the first server that answers. Switches. Returns the connection itself.

        *servers* are put before those of the options and of ``add_server``; with none at all it
        is nats://127.0.0.1:4222. Each server gets one attempt of at most ``connect_timeout``
        seconds; when all fail, NoServersError carries each one's own failure, and ``connect``
        may be called again. With ``retry_on_failed_connect`` it returns at once and goes on in
        the background. Raises BadURLError, ConnectionClosedError once closed, and Error when
        it is connected already.
        """
        self._check_unconnected()
        refuse_in_hub("connect")
        self._add_first(servers)
        patient = self._options.reconnect.retry_on_failed_connect
        with self._outbox.handed.lock:  # another thread may connect or close it at this moment
            self._check_unconnected()
            self._settle_here()
            self._reconnector.start(patient)
        if patient:
            return self
        try:
            self._await_first_link()
        except BaseException:
            # A time-out or a kill struck the caller: nobody holds this attempt any more.
            self._reconnector.request_close()
            raise
        if self._reconnector.failure is not None:
            raise self._reconnector.failure
        if self.is_closed:
            raise self._reconnector.gone()
        return self

    def _check_unconnected(self) -> None:
        if self.status is not S.disconnected:
            if self.is_closed:
                raise self._reconnector.gone()
            raise Error(f"connect: the connection is {self.status} already")

    def _add_first(self, servers: Servers) -> None:
        first = _checked(parse_servers(servers)) if servers is not None else []
        urls: dict[str, ServerURL] = {}
        for url in [*first, *self._pool.servers]:
            urls.setdefault(url.address, url)  # the credentials given last count
        check_one_kind(urls.values())
        self._pool.replace(list(urls.values()) or parse_servers(None))

    def _await_first_link(self) -> None:
        while self.status is S.connecting:
            self._reconnector.status_changed.wait()

    @property
    def _is_at_home(self) -> bool:
        """Whether it is alive, on the hub of the calling thread."""
        return self.status not in (S.disconnected, S.closed)

    def _after_fork(self) -> None:
        """In a forked child, called by the fork itself: begin anew, with the same subscriptions.
        What waits to be sent, called or handled is the parent's. Never switches."""
        if self.status is S.disconnected or self.is_closed:
            self._outbox.disown()
            self._nuid.reset()
            return
        ending = self._drain is not None or self._reconnector.is_closing
        cause = ForkedConnectionError()
        self._reconnector.disown(cause)
        self._callbacks.disown()
        self._subscriptions.inherit()
        self._pool.inherit()
        self._nuid.reset()
        self._furnish()
        self._settle_here()
        if ending:
            self._reconnector.bury(ConnectionClosedError())
        elif not self._options.reconnect.reconnect_after_fork:
            self._reconnector.bury(cause)
        else:
            self._reconnector.start(patient=True)

    def add_server(self, url: str) -> None:
        """Add a server at the back of the pool; a wait for the next cycle ends. Never switches.
        Raises BadURLError, ConnectionClosedError."""
        self._owner.check("add_server")
        if self.is_closed:
            raise self._reconnector.gone()
        added = parse_url(url)
        check_one_kind(_checked([*self._pool.servers, added]))
        if self._pool.add(added):
            self._reconnector.servers_changed()

    def set_servers(self, urls: Servers) -> None:
        """Replace the configured servers; the present link stays. Never switches. Raises
        BadURLError, ConnectionClosedError."""
        self._owner.check("set_servers")
        if self.is_closed:
            raise self._reconnector.gone()
        if urls is None:
            raise BadURLError("set_servers needs at least one")
        servers = _checked(parse_servers(urls))
        check_one_kind([*servers, *self._pool.discovered])
        self._pool.replace(servers)
        self._reconnector.servers_changed()

    def force_reconnect(self) -> None:
        """Give up the present link, or cut a wait short, and connect anew. Never switches.
        Raises ConnectionClosedError, ConnectionDrainingError."""
        self._owner.check("force_reconnect")
        if self.is_closed or self.status is S.disconnected:
            raise self._reconnector.gone()
        if self.is_draining:
            raise ConnectionDrainingError("force_reconnect")
        self._reconnector.request_reconnect()

    # -- publish: what happens seldom; the rest is in intake ---------------------------------

    @property
    def _is_elsewhere(self) -> bool:
        return not self._owner.is_here

    def _hand_over(
        self, subject: str, payload: Payload, reply: str, headers: HeaderSource | None
    ) -> None:
        head = commands.pub_head(encode_subject(subject))
        frame, size = self._full_frame(subject, head, to_bytes(payload), reply, headers)
        self._check_size(size, subject)
        self._outbox.hand_over(frame, size, self._publish_timeout)

    def _answer(self, reply: str, payload: Payload, headers: HeaderSource | None) -> None:
        """Publish to a reply subject: it is used once, so its head is not worth keeping."""
        if not self._owner.is_here:
            self._hand_over(reply, payload, "", headers)
            return
        head = commands.pub_head(encode_subject(reply))
        data = payload if payload.__class__ is bytes else to_bytes(payload)
        if headers is None:
            frame, size = commands.pub(head, b"", data), len(data)
        else:
            frame, size = self._full_frame(reply, head, data, "", headers)
        self._accept(frame, size, reply, None)

    def _make_room(self, length: int, deadline: Deadline | None) -> None:
        own, left = self._publish_timeout, deadline.remaining() if deadline is not None else None
        if left is None or (own is not None and own <= left):
            self._outbox.make_room(length, own)
            return
        assert deadline is not None
        try:
            self._outbox.make_room(length, left)  # what nobody waits for any more is not sent
        except OutboundBufferLimitError as exc:
            if not self._outbox.linked:
                raise  # not the time, but the link is over
            raise TimeoutError(
                f"the request found no room to be sent within {deadline.seconds} s",
                deadline.seconds,
            ) from exc

    def _full_frame(
        self, subject: str, head: bytes, payload: bytes, reply: str, headers: HeaderSource | None
    ) -> tuple[bytes, int]:
        wire = b""
        if reply != "":
            wire = encode_reply(reply)
            check_control_line(subject.encode(), wire)
        if headers is None:
            return commands.pub(head, wire, payload), len(payload)
        info = self._reconnector.info
        if info is not None and not info.headers:
            raise HeaderError(f"the server ({info.version}) takes no headers: publish without")
        block = encode_headers(headers)
        return commands.hpub(head, wire, block, payload), len(block) + len(payload)

    # -- subscribe -----------------------------------------------------------------------

    def subscribe(
        self,
        subject: str,
        queue: str = "",
        cb: Handler | None = None,
        *,
        max_msgs: int = 0,
        pending_msgs_limit: int | None = None,
        pending_bytes_limit: int | None = None,
        concurrency: int = 1,
        around: Around | None = None,
    ) -> Subscription:
        """Subscribe, optionally in a *queue* group. Never switches.

        With *cb*, each message is handed to ``cb(msg)`` in order in a greenlet of the
        subscription, or up to *concurrency* at once without order; without, read it with
        ``next_msg`` or a ``for``. It ends by itself after *max_msgs* messages (0: never).
        Messages over the pending limits (messages, bytes) are dropped, counted and reported.
        ``around(msg, handle)`` is called in the place of *cb* and calls ``handle()``, which calls
        it; it stands inside of the option of the same name. Raises BadSubjectError, OptionError,
        ConnectionClosedError, ConnectionDrainingError.
        """
        wire = encode_filter(subject)
        if queue != "":
            check_control_line(wire, encode_queue(queue))
        check_callable("cb", cb)
        check_callable("around", around)
        options = self._options
        cb = enclose(enclose(cb, around), options.around)
        msgs_limit = (
            options.pending_msgs_limit if pending_msgs_limit is None else pending_msgs_limit
        )
        bytes_limit = (
            options.pending_bytes_limit if pending_bytes_limit is None else pending_bytes_limit
        )
        _check_count("max_msgs", max_msgs, 0, commands.LARGEST_LIMIT)
        _check_count("concurrency", concurrency, 1)
        _check_count("pending_msgs_limit", msgs_limit, 1)
        _check_count("pending_bytes_limit", bytes_limit, 1)
        self._check_open("subscribe")
        return self._subscriptions.add(
            subject, queue, cb, msgs_limit, bytes_limit, concurrency, max_msgs
        )

    # -- request -------------------------------------------------------------------------

    def request(
        self,
        subject: str,
        payload: Payload = b"",
        timeout: float | None = 0.5,
        headers: HeaderSource | None = None,
    ) -> Msg:
        """Publish and wait for one answer, *timeout* seconds at most, outages included.

        Switches. Raises NoRespondersError when nobody listens, TimeoutError, PermissionsError,
        and what ``publish`` raises.
        """
        if timeout.__class__ is not float or not 0 <= timeout < LONGEST:
            timeout = check_timeout(timeout)
        if not self._is_ready:
            self._check_open("request")
        waiter = self._requests.ask(subject, timeout)
        try:
            self._ask(subject, payload, waiter.to, headers, waiter)
            return waiter.wait()
        finally:
            self._requests.close(waiter.to)

    def request_many(
        self,
        subject: str,
        payload: Payload = b"",
        timeout: float | None = 0.5,
        headers: HeaderSource | None = None,
        *,
        stall: float | None = None,
        max_msgs: int = 0,
        sentinel: Sentinel | bool | None = None,
    ) -> Replies:
        """Publish once and iterate over many answers (ADR-47). Switches as it is iterated.

        It ends, without an error, *timeout* seconds after the call, *stall* seconds after the
        last answer, after *max_msgs* answers, or at the *sentinel*: ``True`` for a message
        without a payload, or a function of the message; the sentinel itself is not given out.
        Raises NoRespondersError, and what ``publish`` raises, when it is called or iterated.
        """
        deadline = Deadline(check_timeout(timeout))
        check_timeout(stall, "stall")
        _check_count("max_msgs", max_msgs, 0)
        if sentinel is True:
            sentinel = empty_payload
        if sentinel is not False:
            check_callable("sentinel", sentinel)
        self._check_open("request_many")
        collector = Collector(subject, self._options.pending_msgs_limit, self._replies_full)
        reply = self._requests.open(collector)
        replies = Replies(
            collector,
            lambda: self._requests.close(reply),
            subject,
            deadline,
            stall,
            max_msgs,
            sentinel or None,
            self._owner.check,
        )
        try:
            self._ask(subject, payload, reply, headers, deadline)
        except BaseException:
            replies.close()
            raise
        return replies

    def _replies_full(self, collector: Collector) -> None:
        waiting = len(collector.queue)
        size = sum(len(msg.data) for msg in collector.queue)
        self._report(SlowConsumerError(collector.subject, 0, waiting, size))

    def new_inbox(self) -> str:
        """A unique subject to receive answers on. Never switches."""
        return f"{self._options.inbox_prefix}.{self._nuid.next()}"

    # -- flush ---------------------------------------------------------------------------

    def flush(self, timeout: float | None = 10.0) -> bool:
        """True once the server has processed all that was published before. Switches.

        *timeout* is in seconds. While there is no link it waits for one within that time; what
        a loss before the call has made uncertain stays so. Raises TimeoutError,
        FlushInterruptedError when the link is lost meanwhile (under ``replay_unconfirmed`` it
        waits for the replay instead), ConnectionClosedError.
        """
        deadline = Deadline(check_timeout(timeout))
        self._check_open("flush", draining=True)
        refuse_in_hub("flush")
        self._round_trips.flush(deadline)
        return True

    def rtt(self, timeout: float | None = 10.0) -> float:
        """Seconds that a PING takes to the server and back, behind all that is pending.
        Switches. Raises what ``flush`` raises, and ConnectionReconnectingError when there is no
        link to measure."""
        deadline = Deadline(check_timeout(timeout))
        self._check_open("rtt", draining=True)
        refuse_in_hub("rtt")
        return self._round_trips.once("rtt", deadline)

    # -- the end -------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> None:
        """End every subscription, let queued messages be handled, flush, close. Switches.

        *timeout* is in seconds, None is ``drain_timeout``. While reconnecting it waits for the
        link within that time. It always closes; it raises DrainTimeoutError, with what was
        left behind, when time ran out first. Called in a handler, a callback or a hub callback
        it starts the drain and returns: it cannot wait there. On a closed connection it does
        nothing. Leaving the context manager drains too, but does not wait for messages that only
        the leaving greenlet would have read: those are counted as dropped.
        """
        self._drain_now(check_timeout(timeout))

    def _drain_now(self, timeout: float | None, leaver: object = None) -> None:
        self._owner.check("drain")
        if self.is_closed:
            if isinstance(gone := self._reconnector.gone(), ForkedConnectionError):
                raise gone
            return
        if self.status is S.disconnected:
            self.close()
            return
        deadline = Deadline(self._options.drain_timeout if timeout is None else timeout)
        if self._drain is not None:
            if not self._is_ours() and not in_hub():
                self._await_drain(deadline)
            return
        ours = self._is_ours() or in_hub()
        self._drain = Drain(
            self._reconnector,
            self._outbox,
            self._subscriptions,
            self._round_trips,
            deadline,
            self._report if ours else None,
            leaver,
        )
        if ours:
            gevent.spawn(self._drain_behind)
        else:
            self._run_drain()

    def _run_drain(self) -> None:
        assert self._drain is not None
        try:
            self._drain.run()
        finally:
            self._join_close()

    def _drain_behind(self) -> None:
        try:
            self._run_drain()
        except Error as exc:
            logger.info("gnats: the drain that a handler began ended: %s", exc)

    def _await_drain(self, deadline: Deadline) -> None:
        """Another greenlet's drain is under way: wait for its end, within our own time."""
        if not self._reconnector.await_status(S.closed, deadline.remaining()):
            unhandled = sum(sub.unhandled for sub in self._subscriptions.unfinished())
            raise DrainTimeoutError(
                deadline.seconds, unhandled, self._buffer.buffered, "another drain goes on"
            )

    def close(self) -> None:
        """Close now. Switches, except in a hub callback; bounded, whatever the server does.

        What was published is still written and confirmed if the server takes it within a
        second; the rest is counted as dropped. Everyone who waits gets ConnectionClosedError;
        ``closed_cb`` is the last callback. Waits up to two seconds for handlers and callbacks
        that still run. Closing twice is no error. Another thread than the connection's has it
        closed there, and blocks until it is; it raises TimeoutError when the loop there does not
        turn.
        """
        with self._outbox.handed.lock:  # while nobody has it, another thread may connect it
            ours = self._owner.is_here
            if ours:
                self._reconnector.request_close()
        if not ours:
            self._close_from_afar()
        elif not in_hub():
            self._join_close()

    def _close_from_afar(self) -> None:
        handed, deadline = self._outbox.handed, Deadline(CLOSE_BOUND)
        try:
            handed.call(self._reconnector.request_close)
        except ConnectionClosedError:
            if not self._owner.is_alive:
                raise
        # Its first connect may fail meanwhile: then it is nobody's, and ours to close.
        over = handed.wait(lambda: self.is_closed or self.status is S.disconnected, deadline)
        if self.status is S.disconnected:
            self.close()
        elif not over and deadline.expired:
            raise TimeoutError(
                f"close: the loop of the connection's thread did not turn for {CLOSE_BOUND} s: it "
                "is blocked, and will close it when it goes on",
                CLOSE_BOUND,
            )

    def _join_close(self) -> None:
        self._reconnector.join(CLOSE_BOUND)
        if self._is_ours():
            return  # the caller is one of those that would be waited for
        deadline = Deadline(CLOSE_JOIN)
        gevent.joinall(list(self._subscriptions.delivery.greenlets), deadline.remaining())
        self._callbacks.join(deadline.remaining() or 0.0)

    def _begin_farewell(self) -> bool:
        """The process ends, see ``farewell``."""
        if not self._owner.can_say_farewell or self.status in (S.disconnected, S.closed):
            return False
        self._reconnector.request_close()
        return True

    def _end_farewell(self, deadline: Deadline) -> None:
        self._reconnector.join(deadline.remaining())
        gevent.joinall(list(self._subscriptions.delivery.greenlets), deadline.remaining())
        self._callbacks.join(deadline.remaining() or 0.0)

    def _is_ours(self) -> bool:
        """Whether the caller runs in a greenlet that the connection itself started."""
        return (
            self._callbacks.is_current
            or gevent.getcurrent() in self._subscriptions.delivery.at_work
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None and not self.is_connected:
            self.close()  # nobody waits for a link with an error, or a Ctrl-C, on the way out
            return
        try:
            self._drain_now(None, leaver=gevent.getcurrent())
        except Error as failure:
            if exc is None:
                raise
            logger.warning("gnats: drain failed behind another error: %s", failure)

    # -- what is known -------------------------------------------------------------------

    def wait_for_status(self, status: ConnectionStatus | str, timeout: float | None = None) -> bool:
        """True once the connection is, or since the call has been, in *status*. Switches.

        *timeout* is in seconds; None waits for ever. Raises TimeoutError, ConnectionClosedError
        when it is closed and can never get there, ValueError for an unknown status.
        """
        wanted = S(status)
        self._owner.check("wait_for_status")
        refuse_in_hub("wait_for_status")
        deadline = Deadline(check_timeout(timeout))
        life = None
        while life is not self._reconnector:  # a fork begins another one
            life = self._reconnector
            if not life.await_status(wanted, deadline.remaining()):
                raise TimeoutError(
                    f"the status is {self.status}, and was not {wanted} within {timeout} s", timeout
                )
        if self.status is not wanted and self.status in (S.closed, S.disconnected):
            if isinstance(gone := self._reconnector.gone(), ForkedConnectionError):
                raise gone
            raise ConnectionClosedError(f"the connection is {self.status} and not {wanted}")
        return True

    @property
    def status(self) -> ConnectionStatus:
        """Where the connection is in its life."""
        return self._reconnector.status.current

    @property
    def is_connected(self) -> bool:
        """Whether there is a live link."""
        return self.status in (S.connected, S.draining_subs, S.draining_pubs)

    @property
    def is_reconnecting(self) -> bool:
        """Whether the link was lost and another is being sought."""
        return self.status is S.reconnecting

    @property
    def is_draining(self) -> bool:
        """Whether a drain is under way, with or without a link."""
        return self._drain is not None and not self.is_closed

    @property
    def is_closed(self) -> bool:
        """Whether it is closed for good."""
        return self.status is S.closed

    @property
    def stats(self) -> Stats:
        """The books, as of now; they close at every moment. In another thread than the
        connection's each counter is true, and the books may be off by what happens meanwhile."""
        with self._outbox.handed.lock:  # what comes from other threads is here or there
            return self._count()

    def _count(self) -> Stats:
        buffer, life, handed = self._buffer, self._reconnector, self._outbox.handed
        waiting = len(handed.frames)
        return Stats(
            accepted=buffer.accepted + waiting,
            sent=buffer.sent,
            uncertain=buffer.uncertain,
            dropped=buffer.dropped,
            buffered=buffer.buffered + waiting,
            buffered_bytes=buffer.held + handed.size,
            replayed=buffer.replayed,
            in_msgs=life.past_and_present("in_msgs"),
            in_bytes=life.past_and_present("in_bytes"),
            out_msgs=buffer.accepted + waiting,
            out_bytes=buffer.accepted_bytes + handed.payload,
            in_dropped=self._subscriptions.in_dropped
            + self._requests.late
            + life.past_and_present("in_unknown"),
            attempts=life.seeker.attempts,
            connects=life.connects,
            reconnects=max(0, life.connects - life.moves - 1),
            disconnects=life.disconnects,
            errors_received=life.errors_received,
            pings_sent=life.past_and_present("pings"),
        )

    def health(self) -> Health:
        """How it is, in a few facts, for a probe or a page. Costs no network, never switches."""
        life, stats, url = self._reconnector, self.stats, self.connected_url
        error, session = life.last_error, life.session
        return Health(
            status=self.status,
            server=str(url) if url is not None else None,
            since=calendar(life.age),
            last_error=f"{type(error).__name__}: {error}" if error is not None else None,
            rtt=session.pings.rtt if session is not None else None,
            buffered=stats.buffered,
            buffered_bytes=stats.buffered_bytes,
            buffer_fill=self._outbox.fill,
            unhandled=self._subscriptions.unhandled,
            abandoned=not self._owner.is_alive,
            outage=life.outage,
        )

    def observe(self, observer: Observer) -> None:
        """Tell *observer* every counter and gauge, as of now; see ``gnats.metrics``. Never switches
        by itself. The option ``observer`` is another thing: it is told the events."""
        metrics.tell(observer, self.stats, self.health())

    @property
    def last_error(self) -> Exception | None:
        """The last error of the connection's life: the cause of a loss, a failed attempt, or
        what was told to ``error_cb``."""
        return self._reconnector.last_error

    @property
    def connected_url(self) -> ServerURL | None:
        """The server of the live link, or None."""
        session = self._reconnector.session
        return session.url if session is not None and self.is_connected else None

    @property
    def servers(self) -> list[ServerURL]:
        """The pool, in the order in which servers would be tried."""
        return self._pool.servers

    @property
    def discovered_servers(self) -> list[ServerURL]:
        """Those of the pool that a server announced."""
        return self._pool.discovered

    @property
    def server_info(self) -> ServerInfo | None:
        """INFO of the present or last server; None before the first link."""
        return self._reconnector.info

    @property
    def client_id(self) -> int | None:
        """Our id at the present or last server; None before the first link."""
        info = self._reconnector.info
        return info.client_id if info is not None else None

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload that the present or last server takes per message."""
        return self._buffer.max_payload

    @property
    def options(self) -> ConnectionOptions:
        """What the connection was made with."""
        return self._options

    def __repr__(self) -> str:
        url = self.connected_url
        return f"<gnats.Connection {self.status}{f' to {url}' if url else ''}>"

    # -- handed down to the rooms below --------------------------------------------------

    def _send_control(self, frame: bytes) -> None:
        """A SUB or UNSUB, if there is a link; without one the restore takes care of it."""
        if self._outbox.linked:
            self._buffer.append_control(frame)

    def _listen_to_inbox(self, subject: str) -> None:
        self._check_open("request")
        self._subscriptions.add_inbox(subject, self._requests.deliver)

    def _connect_fields(self, url: ServerURL, info: ServerInfo) -> dict[str, Any]:
        options = self._options
        fields: dict[str, Any] = {
            "verbose": options.verbose,
            "pedantic": options.pedantic,
            "tls_required": url.is_secure or options.tls is not None or info.tls_required,
            "name": options.name,
            "lang": "python-gevent",
            "version": __version__,
            "protocol": 1,
            "echo": not options.no_echo,
            "headers": info.headers,
            "no_responders": info.headers,
        }
        fields.update(self._credentials.connect_fields(url, info.nonce))
        return fields

    def _tell(self, name: str, *args: Any) -> None:
        """Post the user's callback *name*, if there is one, and then the observer's event."""
        callback: Callable[..., Any] | None = getattr(self._options.callbacks, name)
        observer = self._options.observer
        event = observer.event if observer is not None else None
        facts = event and self._facts(name, args)
        if name == "error_cb":
            self._callbacks.post_error(callback, self, *args)
            self._callbacks.post_bounded(event, self, "error", facts)
        elif name == "discovered_servers_cb":
            self._callbacks.post_bounded(callback, self)
            self._callbacks.post_bounded(event, self, "discovered_servers", facts)
        else:
            self._callbacks.post(callback, self, *args)
            self._callbacks.post(event, self, name[: -len("_cb")], facts)

    def _facts(self, name: str, args: tuple[Any, ...]) -> dict[str, Any]:
        if name == "status_cb":
            return dict(zip(("old", "new"), args))
        if name == "disconnected_cb":
            return {"error": self.last_error}
        return {"error": args[0]} if name == "error_cb" else {}

    def _report(self, error: Exception) -> None:
        self._reconnector.report(error)

    def _callback_failed(self, callback: Callable[..., Any], exc: BaseException) -> None:
        logger.error("gnats: callback %r raised", callback, exc_info=exc)
        # error_cb that fails is not told of its own failure: that would never end.
        error_cb = self._options.callbacks.error_cb
        if callback is not error_cb:
            error = exc if isinstance(exc, Exception) else CallbackError(exc)
            # Before what waits already: closed_cb, if it is queued, stays the last.
            self._callbacks.post_next(error_cb, self, error)

    def _check_open(self, operation: str, draining: bool = False) -> None:
        self._owner.check(operation)
        if self._outbox.linked and self._drain is None and not self._reconnector.is_closing:
            return
        if self.is_closed or self._reconnector.is_closing:
            raise self._reconnector.gone()
        if self.status is S.disconnected:
            raise ConnectionClosedError(f"{operation}: not connected yet, call connect() first")
        if self.is_draining and not draining:
            if "request" in operation and self._reconnector.drain_stage is not S.draining_pubs:
                return  # a handler that finishes its work may ask for what it needs
            raise ConnectionDrainingError(operation)


def connect(
    servers: Servers = None, *, options: ConnectionOptions | None = None, **fields: Any
) -> Connection:
    """Connect, and return the connection. Switches.

    *servers* is one URL, several joined by commas, or a list; by default
    nats://127.0.0.1:4222. *fields* are any fields of ConnectionOptions or of its groups, laid
    over *options*. Raises NoServersError with each server's own failure, BadURLError,
    OptionError, and TypeError for a field that no group has.
    """
    return Connection(options, **fields).connect(servers)


def _checked(urls: list[ServerURL]) -> list[ServerURL]:
    """Refuse WebSocket servers now, not at each attempt, when the package for it is missing."""
    if any(url.is_websocket for url in urls):
        websocket.require()
    return urls


def _check_count(name: str, value: object, at_least: int, at_most: int = LARGEST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise OptionError(name, f"an int of {at_least} to {at_most} is needed, not {value!r}")
