"""One connection per process for a web application: when it begins, who waits for it, its end.

It decides when the connection is made (at first use, or ``start``), how long the first requests
wait for a link, and how a worker process lets go of it. It never decides how the link is kept:
that is the connection's own affair. Uses the public face of gnats only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, TypeVar, Union
from weakref import WeakSet

import gevent
from gevent.monkey import get_original, is_module_patched

import gnats

__all__ = [
    "Nats",
    "flush_all",
    "handlers_wait_for_start",
    "has_handlers",
    "health_app",
    "start_all",
    "stop_all",
]

logger = logging.getLogger("gnats")

Payload = Union[bytes, bytearray, memoryview, str]
HeaderSource = Union[gnats.Headers, Mapping[str, Any], Iterable["tuple[str, str]"]]
Servers = Union[str, Iterable[str], None]
Around = Callable[[gnats.Msg, Callable[[], Any]], Any]
H = TypeVar("H", bound=Callable[[gnats.Msg], Any])

#: Laid under the user's own: a worker lives for weeks and has nobody to start it again, and a web
#: request must not wait for ever.
DEFAULTS: dict[str, Any] = {
    "max_reconnect": -1,
    "ignore_auth_error_abort": True,
    "publish_timeout": 1.0,
}

# Patched, it tells greenlets apart.
_thread_ident: Callable[[], int] = get_original("_thread", "get_ident")

CONNECTING = gnats.ConnectionStatus.connecting
# Seconds by which a loop's timer may be early (libuv counts whole milliseconds): less is nothing.
GRAIN = 0.002
LOOK_EVERY = 0.02  # seconds, where nothing tells of what is waited for


class Nats:
    """The connection of a web application: make it at import, or in an app factory.

    ::

        nats = gnats.wsgi.Nats("nats://127.0.0.1:4222")

        @nats.subscription("orders.*", queue="workers")
        def handle(msg): ...

        def view(...):
            nats.publish("orders.new", b"...")

    Making it does no I/O. Each process gets one connection, at the first use or by ``start``, that
    all its greenlets share; forks are survived. It never gives up. The connection belongs to the
    thread that made this object, or that called ``start``; from others only ``publish`` works.

    Args:
        servers: as for ``gnats.connect``.
        options: a ``gnats.ConnectionOptions`` to begin with. What it leaves at gnats' own default
            gets the default of this class.
        connect_wait: seconds, from the first use in a process on, that calls wait for the first
            link, all together; 0: nobody waits.
        fail_fast: while there is no link, publish raises OutboundBufferLimitError, and request
            and flush raise ConnectionReconnectingError, at once, instead of using the buffer and
            their time.
        stop_timeout: seconds that ``stop`` gives to handlers and to what is not sent yet.
        fields: as for ``gnats.connect``; other defaults are ``max_reconnect=-1``,
            ``publish_timeout=1.0`` and ``ignore_auth_error_abort=True``.

    Raises OptionError and BadURLError, and TypeError for a field that does not exist.
    """

    def __init__(
        self,
        servers: Servers = None,
        *,
        options: gnats.ConnectionOptions | None = None,
        connect_wait: float = 2.0,
        fail_fast: bool = False,
        stop_timeout: float = 5.0,
        **fields: Any,
    ) -> None:
        self._prepare()
        self.configure(
            servers,
            options=options,
            connect_wait=connect_wait,
            fail_fast=fail_fast,
            stop_timeout=stop_timeout,
            **fields,
        )

    def _prepare(self) -> None:
        """What there is before it is known where to connect to."""
        self._home = _thread_ident()
        self._hub: Any = None  # of the thread that has begun the connection
        self._conn: gnats.Connection | None = None
        self._pid: int | None = None  # of the process that has used it last
        self._settled: int | None = None  # of the process where nobody waits any more
        self._wait_ends = 0.0  # on the clock of monotonic()
        self._told = False  # that there was no link in time
        self._declared: list[_Declared] = []
        self._waiting: list[_Declared] = []  # not subscribed in self._conn yet
        _living.add(self)

    def configure(
        self,
        servers: Servers = None,
        *,
        options: gnats.ConnectionOptions | None = None,
        connect_wait: float = 2.0,
        fail_fast: bool = False,
        stop_timeout: float = 5.0,
        **fields: Any,
    ) -> None:
        """Take other settings; the arguments are those of the class. Never switches.

        Raises what making it raises, and Error once the connection is in use.
        """
        if self._conn is not None and self._is_begun(self._conn):
            raise gnats.errors.Error("configure: the connection is in use, call stop() first")
        connect_wait = _seconds("connect_wait", connect_wait)
        stop_timeout = _seconds("stop_timeout", stop_timeout)
        if options is not None and not isinstance(options, gnats.ConnectionOptions):
            raise TypeError(f"options: ConnectionOptions is needed, not {type(options).__name__}")
        laid = _lay_under(options, fields, fail_fast)
        around = laid.get("around", options.around if options else None)
        if around is None or callable(around):
            around = self._surround(around)
        if around is not None:
            laid["around"] = around
        if servers is not None:
            laid["servers"] = servers
        self._take(gnats.Connection(options, **laid))
        self._connect_wait = connect_wait
        self._stop_timeout = stop_timeout
        self._fail_fast = fail_fast

    # -- the life of the connection --------------------------------------------------------

    @property
    def connection(self) -> gnats.Connection:
        """The connection of this process; begun, if it was not. Never switches."""
        if self._conn is not None and self._pid == os.getpid():
            return self._conn
        return self._begin()

    @property
    def is_bound(self) -> bool:
        """Whether it is known where to connect to. Adapters learn it later than at import."""
        return self._conn is not None

    def start(self) -> None:
        """Connect in the background now, and subscribe what was declared. Never switches.

        For the start of a worker process; without it the first use does the same. After ``stop``
        it begins anew, and during one as well, beside what still ends. A connection that begins is
        the calling thread's; one that is under way stays that of its own.
        """
        conn = self._bound()
        if conn.is_closed or conn.is_draining:
            conn = self._take(gnats.Connection(conn.options))
        if not self._is_begun(conn) or self._pid != os.getpid():
            self._home = _thread_ident()
        conn = self.connection
        if self._waiting:
            self._subscribe_declared(conn)

    def stop(self, timeout: float | None = None) -> None:
        """Finish what is under way, send what is buffered, close. Switches.

        *timeout* is in seconds, None is ``stop_timeout``; after it the last bytes get one more, and
        handlers that go on two. Where nothing was begun it does nothing, and a later use begins. A
        server that is away is no error: what was left behind is logged, at WARNING.
        Later calls raise ConnectionClosedError, until ``start``. Raises WrongThreadError in another
        thread than that of the connection.
        """
        if timeout is not None:
            timeout = _seconds("timeout", timeout)
        conn = self._conn
        if conn is None or not self._is_begun(conn):
            return
        self._pid = os.getpid()  # nobody begins anew what has been stopped here
        deadline = monotonic() + (self._stop_timeout if timeout is None else timeout)
        try:
            _await_handlers_without_link(conn, deadline)
            if _is_idle(conn):
                conn.close()
            else:
                conn.drain(max(0.0, deadline - monotonic()))
        except gnats.errors.WrongThreadError:
            raise
        except gnats.errors.Error as exc:
            logger.warning("gnats: stopped: %s", exc)

    def _stop_within(self, at_most: float | None) -> None:
        if self._conn is not None:
            own = self._stop_timeout
            try:
                self.stop(own if at_most is None else min(own, at_most))
            except gnats.errors.WrongThreadError as exc:
                logger.warning("gnats: not stopped: %s", exc)

    def _has_to_flush(self, linked_only: bool) -> bool:
        conn = self._conn
        if conn is None or not self._is_begun(conn):
            return False
        return conn.is_connected or (not linked_only and conn.stats.buffered > 0)

    def _flush_within(self, at_most: float) -> None:
        try:
            self.flush(at_most)
        except gnats.errors.Error as exc:
            logger.warning("gnats: the server has not confirmed yet: %s", exc)

    def _begin(self) -> gnats.Connection:
        """Have a connection under way in this process. Nothing here switches, so that any number
        of greenlets that come first begin one connection."""
        if self._home != _thread_ident():
            raise gnats.errors.WrongThreadError(
                "the first use of a Nats that was made elsewhere (call its start() in the thread "
                "whose loop runs; a web server needs gevent workers, not threads, as with "
                "`gunicorn -k gevent --reload`)"
            )
        if "gunicorn" in sys.modules and _arbiter != os.getpid():
            warn_of_blocking()
        gnats.after_fork()
        conn = self._bound()
        if conn.is_closed:  # stopped before the fork: this process has its own
            conn = self._take(gnats.Connection(conn.options))
        if conn.status == "disconnected":
            conn.connect()
        self._hub = gevent.get_hub()
        self._pid = os.getpid()
        self._wait_ends = monotonic() + self._connect_wait
        self._told = False
        if _arbiter != self._pid:
            self._subscribe_declared(conn)
        return conn

    def _bound(self) -> gnats.Connection:
        if self._conn is None:
            self._bind()
        assert self._conn is not None
        return self._conn

    def _bind(self) -> None:
        """For adapters: find the settings, and ``configure`` with them."""

    def _surround(self, around: Around | None) -> Around | None:
        """For adapters: what lies around each call of a handler, and around the user's own."""
        return around

    def _take(self, conn: gnats.Connection) -> gnats.Connection:
        self._conn = conn
        self._pid = self._settled = None
        self._waiting = list(self._declared)
        return conn

    @staticmethod
    def _is_begun(conn: gnats.Connection) -> bool:
        return conn.status != "disconnected" and not conn.is_closed

    def _linked(self, limit: float | None) -> gnats.Connection:
        """The connection, after what is left of the common wait for the first link, and not more
        than *limit* seconds of it."""
        if self._conn is not None and self._settled == os.getpid():
            return self._conn
        conn = self.connection
        if conn.status is not CONNECTING:
            self._settled = self._pid
            return conn
        left = self._wait_ends - monotonic()
        if limit is not None:
            left = min(left, limit)
        if left > 0 and gevent.getcurrent() is not self._hub and self._home == _thread_ident():
            try:
                conn.wait_for_status(gnats.ConnectionStatus.connected, left)
            except gnats.errors.TimeoutError:
                pass  # the call goes on without a link, as it would in an outage
        if not self._told and conn.status is CONNECTING and monotonic() >= self._wait_ends:
            self._told = True
            logger.warning(
                "gnats: no link within connect_wait (%g s), going on in the background: %s",
                self._connect_wait,
                conn.last_error or "no server has answered yet",
            )
        return conn

    # -- what a connection does --------------------------------------------------------------

    def publish(
        self,
        subject: str,
        payload: Payload = b"",
        reply: str = "",
        headers: HeaderSource | None = None,
    ) -> None:
        """``Connection.publish``. Switches while the first link is awaited, and while the
        connection is connected and full, at most ``publish_timeout`` seconds; else it does not."""
        self._linked(None).publish(subject, payload, reply, headers)

    def request(
        self,
        subject: str,
        payload: Payload = b"",
        timeout: float | None = 0.5,
        headers: HeaderSource | None = None,
    ) -> gnats.Msg:
        """``Connection.request``. Switches; *timeout* seconds are for all of it, the wait for the
        first link included. With ``fail_fast`` raises ConnectionReconnectingError at once while
        there is no link."""
        conn, left = self._in_time("request", timeout)
        return conn.request(subject, payload, left, headers)

    def request_many(
        self,
        subject: str,
        payload: Payload = b"",
        timeout: float | None = 0.5,
        headers: HeaderSource | None = None,
        *,
        stall: float | None = None,
        max_msgs: int = 0,
        sentinel: Callable[[gnats.Msg], bool] | bool | None = None,
    ) -> Iterator[gnats.Msg]:
        """``Connection.request_many``, within *timeout* as for ``request``. Switches."""
        conn, left = self._in_time("request_many", timeout)
        return conn.request_many(
            subject, payload, left, headers, stall=stall, max_msgs=max_msgs, sentinel=sentinel
        )

    def flush(self, timeout: float | None = 10.0) -> bool:
        """``Connection.flush``, within *timeout* as for ``request``. Switches.

        Before the response of a request it makes sure that the server has what was published,
        whatever becomes of this process."""
        conn, left = self._in_time("flush", timeout)
        return conn.flush(left)

    def subscribe(
        self,
        subject: str,
        queue: str = "",
        cb: Callable[[gnats.Msg], Any] | None = None,
        **limits: Any,
    ) -> gnats.Subscription:
        """``Connection.subscribe``, in the connection of this process. Never switches, waits for
        no link."""
        return self.connection.subscribe(subject, queue, cb, **limits)

    def subscription(self, subject: str, queue: str = "", **limits: Any) -> Callable[[H], H]:
        """A decorator: the function handles messages, in every process that uses this object.

        Arguments are those of ``Connection.subscribe``. Nothing is received before ``start`` or
        the first use. Give a *queue*, or each process handles every message. Raises
        BadSubjectError and OptionError when it is made.
        """

        def declare(handler: H) -> H:
            declared = _Declared(subject, queue, handler, limits)
            declared.check()
            self._declared.append(declared)
            self._waiting.append(declared)
            conn = self._conn
            if conn and not conn.is_closed and self._pid == os.getpid() != _arbiter:
                self._subscribe_declared(conn)
            return handler

        return declare

    def _subscribe_declared(self, conn: gnats.Connection) -> None:
        waiting, self._waiting = self._waiting, []
        for declared in waiting:
            declared.subscribe(conn)

    def _in_time(self, operation: str, timeout: float | None) -> tuple[gnats.Connection, Any]:
        """The connection, and what its first link has left of *timeout*."""
        if timeout is not None:
            timeout = _seconds("timeout", timeout)
        began = monotonic()
        conn = self._linked(timeout)
        if self._fail_fast and not conn.is_connected and not conn.is_closed:
            raise gnats.errors.ConnectionReconnectingError(operation)
        if timeout is None or not timeout > 0:
            return conn, timeout
        left = timeout - (monotonic() - began)
        if left <= (GRAIN if conn.status is CONNECTING else 0):
            raise gnats.errors.TimeoutError(f"{operation}: no link within {timeout} s", timeout)
        return conn, left

    # -- health ------------------------------------------------------------------------------

    def health(self) -> gnats.Health:
        """``Connection.health`` of this process. Never switches, costs no network.

        It begins the connection if nobody has: a worker that gets no requests until it is ready
        must be able to become so."""
        return self.connection.health()

    def health_app(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """A WSGI application that serves ``health()``: see the function of the same name."""
        return health_app(self)(environ, start_response)

    def __repr__(self) -> str:
        state = self._conn.status if self._conn is not None else "unbound"
        return f"<{type(self).__module__}.{type(self).__name__} {state}>"


@dataclasses.dataclass(frozen=True)
class _Declared:
    """A handler, and what it wants to be subscribed to."""

    subject: str
    queue: str
    handler: Callable[[gnats.Msg], Any]
    limits: dict[str, Any]

    def subscribe(self, conn: gnats.Connection) -> None:
        conn.subscribe(self.subject, self.queue, self.handler, **self.limits)

    def check(self) -> None:
        """Raise now what subscribing would raise later."""
        try:
            self.subscribe(gnats.Connection())
        except gnats.errors.ConnectionClosedError:
            pass  # not connected: the last thing to be looked at, all else is right


def handle_within(around: Around | None, msg: gnats.Msg, handle: Callable[[], Any]) -> None:
    """Have *msg* handled, within *around* if there is one. For adapters."""
    if around is None:
        handle()
    else:
        around(msg, handle)


_warned: int | None = None


def warn_of_blocking() -> None:
    """Say once in a process that its loop does not run beside the requests, if so. For adapters."""
    global _warned
    if _warned != os.getpid() and not is_module_patched("socket"):
        _warned = os.getpid()
        logger.warning(
            "gnats: this is no gevent worker: nothing is sent or received but while a call of "
            "gnats waits; set worker_class = 'gevent'"
        )


# -- every one of this process ---------------------------------------------------------------

_living: WeakSet[Nats] = WeakSet()
_arbiter: int | None = None


def handlers_wait_for_start() -> None:
    """In this process, not in its children, declared handlers wait for ``start``, and the first
    use does not start them. For a process that loads the application but only watches over
    workers: its loop does not run, and what is handed to it is handled by nobody."""
    global _arbiter
    _arbiter = os.getpid()


def start_all() -> None:
    """``start`` every Nats of this process. For the hook of a worker's start. Never switches."""
    for nats in list(_living):
        if nats.is_bound:
            nats.start()
        elif nats._declared:
            logger.warning("gnats: %r has handlers, but nobody has told it where to connect", nats)


def stop_all(at_most: float | None = None) -> None:
    """``stop`` every Nats of this process, all at once. For the hook of a worker's end. Switches.
    Each gets its ``stop_timeout``, and not more than *at_most* seconds; then one second more for
    its last bytes, and two for handlers that go on. Raises OptionError for what is no time."""
    if at_most is not None:
        at_most = _seconds("at_most", at_most)
    gevent.joinall([gevent.spawn(nats._stop_within, at_most) for nats in list(_living)])


def flush_all(at_most: float, linked_only: bool = False) -> None:
    """``flush`` every Nats of this process, all at once, each in *at_most* seconds. Switches.

    For a process whose loop stands still between tasks. One that has no link is waited for when it
    has something to send, and not at all with *linked_only*. A server that does not answer in time
    is told in one line of the log, at WARNING; what is not sent stays buffered.
    """
    asked = [nats for nats in list(_living) if nats._has_to_flush(linked_only)]
    gevent.joinall([gevent.spawn(nats._flush_within, at_most) for nats in asked])


def has_handlers() -> bool:
    """Whether any Nats of this process has declared handlers. Never switches."""
    return any(nats._declared for nats in list(_living))


def _is_idle(conn: gnats.Connection) -> bool:
    """Whether there is no link, nothing that would need one, and nothing to be handled."""
    health = conn.health()
    return not conn.is_connected and health.buffered == 0 and health.unhandled == 0


def _await_handlers_without_link(conn: gnats.Connection, deadline: float) -> None:
    """While there is no link, and no need of one: let the handlers end. A drain would wait for the
    link first, with nothing to send over it."""
    while not conn.is_connected and conn.health().buffered == 0:
        if monotonic() >= deadline or conn.health().unhandled == 0:
            return
        gevent.sleep(LOOK_EVERY)


# -- health over HTTP ------------------------------------------------------------------------

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def health_app(nats: Nats | gnats.Connection) -> Callable[[Environ, StartResponse], list[bytes]]:
    """A WSGI application that serves ``nats.health()`` as JSON.

    A path that ends in ``/live`` asks whether the process should be started again, any other
    one, such as ``/ready``, whether it should get requests: 200 is yes, 503 no. It names the
    server and the last error, so mount it where strangers do not come.
    """

    def serve(environ: Environ, start_response: StartResponse) -> list[bytes]:
        if environ.get("REQUEST_METHOD", "GET") not in ("GET", "HEAD"):
            return _respond(start_response, "405 Method Not Allowed", {}, [("Allow", "GET, HEAD")])
        health = nats.health()
        asks_live = environ.get("PATH_INFO", "").rstrip("/").endswith("/live")
        good = health.is_live if asks_live else health.is_ready
        status = "200 OK" if good else "503 Service Unavailable"
        body = _respond(start_response, status, health.as_dict())
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else body

    return serve


def _respond(
    start_response: StartResponse,
    status: str,
    report: dict[str, Any],
    more: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    body = json.dumps(report).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *more,
    ]
    start_response(status, headers)
    return [body]


# -- settings --------------------------------------------------------------------------------


def _lay_under(
    options: gnats.ConnectionOptions | None, fields: dict[str, Any], fail_fast: bool
) -> dict[str, Any]:
    """*fields*, with our defaults where neither they nor *options* say anything."""
    if fields.get("retry_on_failed_connect") is False:
        raise gnats.errors.OptionError(
            "retry_on_failed_connect", "it is always True here; connect_wait=0 does not wait"
        )
    if _said("reconnect_after_fork", options, fields) is False:
        raise gnats.errors.OptionError(
            "reconnect_after_fork", "each process has a connection of its own here: leave it True"
        )
    laid = {**fields, "retry_on_failed_connect": True}
    for name, value in DEFAULTS.items():
        if name not in fields and _said(name, options, fields) is None:
            laid[name] = value
    if not isinstance(fail_fast, bool):
        raise gnats.errors.OptionTypeError("fail_fast", f"True or False, not {fail_fast!r}")
    if fail_fast:
        if _said("reconnect_buf_size", options, fields):
            raise gnats.errors.OptionError("reconnect_buf_size", "fail_fast=True keeps nothing: 0")
        laid["reconnect_buf_size"] = 0
    return laid


def _said(name: str, options: gnats.ConnectionOptions | None, fields: dict[str, Any]) -> Any:
    """What the user says of *name*, flat, in a group or in *options*; None when it is nothing, or
    gnats' own default."""
    if name in fields:
        return fields[name]
    default: Any = gnats.ConnectionOptions()
    given: Any = options
    if hasattr(default.reconnect, name):
        given = fields.get("reconnect", options.reconnect if options is not None else None)
        default = default.reconnect
    value = getattr(given, name, None)
    return None if value == getattr(default, name) else value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise gnats.errors.OptionTypeError(name, f"seconds are needed, not {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise gnats.errors.OptionError(name, f"it must be 0 or more seconds, not {value}")
    return float(value)
