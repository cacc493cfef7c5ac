"""OpenTelemetry: the numbers of ``gnats.metrics``, and a span for what is published, asked and
handled. Never a subject in a metric; never an error of its own in the way of a message.

Names and kinds of spans are those of OpenTelemetry's semantic conventions for messaging. Without a
provider, all of it does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import gnats
from gnats.contrib.books import Books, Watcher
from gnats.metrics import METERS, Meter

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
except ImportError as exc:
    raise ImportError(
        "gnats.contrib.opentelemetry needs opentelemetry-api: pip install 'gnats[opentelemetry]'"
    ) from exc

__all__ = ["Metrics", "TracedConnection", "TracedReplies", "Tracing", "instrument"]

logger = logging.getLogger("gnats")

SCOPE = "gnats"

# -- metrics -------------------------------------------------------------------------------

# As UCUM writes units; what is merely counted is an annotation.
UNITS = {"bytes": "By", "seconds": "s", "ratio": "1", "1": "1"}


class _Global:
    """Stands for the global provider, whichever it will be."""


_GLOBAL = _Global()
# One set of instruments for each provider: the same instrument made twice would be ignored.
_BOOKS: WeakKeyDictionary[Any, Books] = WeakKeyDictionary()


class Metrics(Watcher):
    """The numbers of any number of connections, as observable instruments of *meter_provider*
    (None: the global one), named "gnats." and the name of the meter.

    ::

        conn = gnats.connect(..., observer=Metrics())  # or: Metrics().watch(conn)

    Every number has the attribute ``gnats.connection``: the name of the connection, or a number;
    see ``gnats.contrib.books.Books``. As an observer it also counts the events, in
    ``gnats.events`` by the attribute ``gnats.event``. Connections are held weakly; counters stay
    when they are gone, gauges go with them. All of one provider are the same one.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        super().__init__(_books_of(meter_provider))


def instrument(conn: gnats.Connection, meter_provider: MeterProvider | None = None) -> None:
    """Measure *conn*: ``Metrics(meter_provider).watch(conn)``."""
    Metrics(meter_provider).watch(conn)


def _books_of(provider: MeterProvider | None) -> Books:
    known: Any = provider
    present = metrics.get_meter_provider()
    if provider is None or provider is present:
        known = present if present in _BOOKS else _GLOBAL
    new = Books()
    books = _BOOKS.setdefault(known, new)
    if books is new:
        _furnish(books, metrics.get_meter(SCOPE, gnats.__version__, provider))
    return books


def _furnish(books: Books, meter: metrics.Meter) -> None:
    for one in METERS:
        what = (f"gnats.{one.name}", [_number(books, one)], _unit(one), one.description)
        if one.kind == "counter":
            meter.create_observable_counter(*what)
        else:
            meter.create_observable_gauge(*what)
    meter.create_observable_counter(
        "gnats.events", [_events(books)], "{event}", "Events told to observers, by their name"
    )


def _unit(meter: Meter) -> str:
    return UNITS.get(meter.unit, f"{{{meter.unit.removesuffix('s')}}}")


Callback = Callable[[CallbackOptions], Iterable[Observation]]


def _number(books: Books, meter: Meter) -> Callback:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for label, totals in books.read().items():
            numbers = totals.counters if meter.kind == "counter" else totals.gauges
            if meter.name in numbers:
                yield Observation(numbers[meter.name], {"gnats.connection": label})

    return observe


def _events(books: Books) -> Callback:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for label, totals in books.read().items():
            for event, count in totals.events.items():
                yield Observation(count, {"gnats.connection": label, "gnats.event": event})

    return observe


# -- traces --------------------------------------------------------------------------------

# Names of OpenTelemetry's attributes.
SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
TEMPLATE = "messaging.destination.template"
TEMPORARY = "messaging.destination.temporary"
ANONYMOUS = "messaging.destination.anonymous"
GROUP = "messaging.consumer.group.name"
CLIENT_ID = "messaging.client.id"
SERVER = "server.address"
PORT = "server.port"
ERROR = "error.type"

# What inboxes begin with where nobody has chosen another prefix.
INBOX = "_INBOX."


class Tracing:
    """Spans from *tracer_provider*, their context through *propagator* in the headers of messages
    (None: the global ones, as they are when they are needed).

    ::

        tracing = Tracing()
        conn = gnats.connect(..., around=tracing.around)
        traced = tracing.trace(conn)
        traced.publish("orders.new", b"two apples")
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        propagator: TextMapPropagator | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(SCOPE, gnats.__version__, tracer_provider)
        self._propagator = propagator

    def around(self, msg: gnats.Msg, handle: Callable[[], Any]) -> Any:
        """For the option ``around``, or that of ``subscribe``: handle *msg* in a span, the child of
        the one that published it; a root where the message has none, or a broken one. What
        *handle* raises is recorded and raised. Never switches by itself."""
        parent = self._extract(_headers_of(msg))
        attributes = _consumed(msg)
        span = self._tracer.start_span(
            _span_name(attributes), parent, SpanKind.CONSUMER, attributes, _links(parent)
        )
        token = context.attach(trace.set_span_in_context(span, parent))
        try:
            with _Ending(span):
                return handle()
        finally:
            context.detach(token)

    def trace(self, conn: Any) -> TracedConnection:
        """*conn*, a ``gnats.Connection`` or a ``gnats.wsgi.Nats``, as one that makes a span of all
        that it publishes and asks. *conn* itself stays as it is."""
        return TracedConnection(conn, self)

    def _begin(
        self, conn: Any, operation: str, kind: SpanKind, subject: str, headers: Any
    ) -> tuple[_Ending, Any]:
        """A span for a message to be sent, and the headers to send with it.

        Headers that bring a context of their own are left as they are, and linked: the message
        was made elsewhere, so the span is no ``PRODUCER`` then.
        """
        if headers is not None:
            headers = gnats.Headers(headers)  # it may be an iterator; it is not ours to change
        made = self._extract(headers)
        links = _links(made)
        if links:
            kind = SpanKind.CLIENT
        conn = getattr(conn, "connection", conn)
        attributes = _produced(conn, operation, subject)
        span = self._tracer.start_span(_span_name(attributes), None, kind, attributes, links)
        if span.is_recording() and conn.client_id is not None:
            span.set_attribute(CLIENT_ID, str(conn.client_id))
        info = conn.server_info
        if not links and (info is None or info.headers):
            headers = self._inject(span, headers)
        return _Ending(span), headers

    def _extract(self, headers: gnats.Headers | None) -> Context:
        """The context that *headers* bring, and nothing of the greenlet's own."""
        if headers is None:
            return Context()
        carrier: dict[str, list[str]] = {}
        for name, value in headers.pairs():
            # Some clients write names as HTTP likes them: Traceparent.
            carrier.setdefault(name.lower(), []).append(value)
        try:
            return self._propagation.extract(carrier, Context())
        except Exception as exc:  # a message is handled, whatever a peer has put into it
            logger.debug("gnats: no trace context could be read: %s", exc)
            return Context()

    def _inject(self, span: Span, headers: gnats.Headers | None) -> Any:
        carrier: dict[str, str] = {}
        try:
            self._propagation.inject(carrier, trace.set_span_in_context(span))
        except Exception as exc:  # a trace is not worth a message
            logger.warning("gnats: no trace context could be written: %s", exc)
            return headers
        if headers is None:
            return carrier or None
        given = {name.lower() for name, _ in headers.pairs()}
        for name, value in carrier.items():
            if name.lower() not in given:
                headers[name] = value
        return headers

    @property
    def _propagation(self) -> TextMapPropagator:
        return self._propagator or propagate.get_global_textmap()


class TracedConnection:
    """A connection whose ``publish``, ``request`` and ``request_many`` make a span each and send
    its context with the message. All else is the connection's own; so is what they return, raise,
    and when they switch. The answers of a handler (``msg.respond``) get no span of their own.
    """

    def __init__(self, conn: Any, tracing: Tracing) -> None:
        self._conn = conn
        self._tracing = tracing

    def publish(
        self, subject: str, payload: Any = b"", reply: str = "", headers: Any = None
    ) -> None:
        """``Connection.publish``, in a ``PRODUCER`` span that ends when it is accepted."""
        ending, headers = self._begin("publish", SpanKind.PRODUCER, subject, headers)
        with ending:
            self._conn.publish(subject, payload, reply, headers)

    def request(
        self, subject: str, payload: Any = b"", timeout: float | None = 0.5, headers: Any = None
    ) -> gnats.Msg:
        """``Connection.request``, in a ``CLIENT`` span (it waits) that ends with the answer."""
        ending, headers = self._begin("request", SpanKind.CLIENT, subject, headers)
        with ending:
            answer: gnats.Msg = self._conn.request(subject, payload, timeout, headers)
            return answer

    def request_many(
        self,
        subject: str,
        payload: Any = b"",
        timeout: float | None = 0.5,
        headers: Any = None,
        **limits: Any,
    ) -> TracedReplies:
        """``Connection.request_many``, in a ``CLIENT`` span that ends with the answers, or when
        they are closed or dropped."""
        ending, headers = self._begin("request_many", SpanKind.CLIENT, subject, headers)
        try:
            replies = self._conn.request_many(subject, payload, timeout, headers, **limits)
        except BaseException as exc:
            ending.end(exc)
            raise
        return TracedReplies(replies, ending)

    def _begin(
        self, operation: str, kind: SpanKind, subject: str, headers: Any
    ) -> tuple[_Ending, Any]:
        return self._tracing._begin(self._conn, operation, kind, subject, headers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._conn, name)

    def __enter__(self) -> TracedConnection:
        self._conn.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._conn.__exit__(kind, exc, tb)

    def __repr__(self) -> str:
        return f"<traced {self._conn!r}>"


class TracedReplies:
    """The answers to ``request_many``, and the span that they end."""

    def __init__(self, replies: Any, ending: _Ending) -> None:
        self._replies = replies
        self._ending = ending

    def __iter__(self) -> TracedReplies:
        return self

    def __next__(self) -> gnats.Msg:
        try:
            answer: gnats.Msg = next(self._replies)
        except StopIteration:
            self._ending.end()
            raise
        except BaseException as exc:
            self._ending.end(exc)
            raise
        return answer

    def close(self) -> None:
        """No more answers are wanted. Never switches."""
        self._replies.close()
        self._ending.end()

    def __del__(self) -> None:
        self._ending.end()


class _Ending:
    """The one place where a span ends, once, with the error that struck it. To be used with
    ``with``, or by hand."""

    __slots__ = ("_ended", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._ended = False

    def end(self, error: BaseException | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if error is not None and self._span.is_recording():
            self._span.record_exception(error)
            self._span.set_attribute(ERROR, _kind_of(error))
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end(exc)


def _links(made: Context) -> list[Link]:
    """A link to where a message was made, if that is known."""
    origin = trace.get_current_span(made).get_span_context()
    return [Link(origin)] if origin.is_valid else []


def _headers_of(msg: gnats.Msg) -> gnats.Headers | None:
    try:
        return msg.headers
    except gnats.errors.ProtocolError:
        return None


def _produced(conn: gnats.Connection, operation: str, subject: str) -> dict[str, Any]:
    """The attributes of sending to *subject*."""
    attributes = _attributes(operation, "send", subject, f"{conn.options.inbox_prefix}.")
    url = conn.connected_url
    if url is not None:
        attributes[SERVER] = url.host
        attributes[PORT] = url.port
    return attributes


def _consumed(msg: gnats.Msg) -> dict[str, Any]:
    """The attributes of handling *msg*. A subscription's subject with wildcards is what many
    subjects have in common; its queue is the group."""
    attributes = _attributes("process", "process", msg.subject, INBOX)
    sub = msg.sub
    if isinstance(sub, gnats.Subscription):
        if sub.queue:
            attributes[GROUP] = sub.queue
        if sub.subject != msg.subject and TEMPORARY not in attributes:
            attributes[TEMPLATE] = sub.subject
    return attributes


def _attributes(operation: str, kind: str, subject: str, inbox: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        SYSTEM: "nats",
        OPERATION_NAME: operation,
        OPERATION_TYPE: kind,
        DESTINATION: subject,
    }
    if isinstance(subject, str) and subject.startswith((INBOX, inbox)):
        attributes[TEMPORARY] = attributes[ANONYMOUS] = True
    return attributes


def _span_name(attributes: Mapping[str, Any]) -> str:
    """The operation and where to; not an inbox, which is another one each time."""
    operation: str = attributes[OPERATION_NAME]
    if TEMPORARY in attributes:
        return operation
    return f"{operation} {attributes.get(TEMPLATE, attributes[DESTINATION])}"


def _kind_of(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__
    return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"
