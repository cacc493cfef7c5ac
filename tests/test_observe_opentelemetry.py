"""OpenTelemetry: every number, and the way of a context through a real server."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import gnats
import gnats.wsgi
from gnats import errors
from gnats.contrib.opentelemetry import Metrics, TracedConnection, Tracing, instrument
from gnats.metrics import METERS
from gnats.testing import NatsServer, wait_until

pytestmark = pytest.mark.frameworks

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}
ORIGIN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # as W3C writes a context

_subjects = itertools.count()


@pytest.fixture
def subject() -> str:
    return f"telemetry.s{next(_subjects)}"


# -- metrics -------------------------------------------------------------------------------


class Dashboard:
    """What a reader collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader])

    def families(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        ours = [scope for scope in scopes if scope.scope.name == "gnats"]  # some SDKs add theirs
        return {metric.name: metric for scope in ours for metric in scope.metrics}

    def numbers(self) -> dict[tuple[str, ...], float]:
        return {
            (name, *point.attributes.values()): point.value
            for name, metric in self.families().items()
            for point in metric.data.data_points
        }


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    one = Dashboard()
    yield one
    one.provider.shutdown()


def test_every_number(shared_nats_server: NatsServer, dashboard: Dashboard, subject: str) -> None:
    with gnats.connect(shared_nats_server.url, name="shop") as conn:
        instrument(conn, dashboard.provider)
        instrument(conn, dashboard.provider)
        conn.publish(subject, b"12345")
        conn.flush()
        families, numbers = dashboard.families(), dashboard.numbers()
    assert set(families) == {f"gnats.{meter.name}" for meter in METERS}
    assert numbers["gnats.accepted", "shop"] == 1
    assert numbers["gnats.out_bytes", "shop"] == 5
    assert numbers["gnats.ready", "shop"] == 1
    assert families["gnats.accepted"].data.is_monotonic
    units = {name: families[f"gnats.{name}"].unit for name in ("accepted", "in_bytes", "rtt")}
    assert units == {"accepted": "{message}", "in_bytes": "By", "rtt": "s"}
    (point,) = families["gnats.rtt"].data.data_points
    assert dict(point.attributes) == {"gnats.connection": "shop"}


def test_numbers_over_an_outage(nats_server: NatsServer, dashboard: Dashboard) -> None:
    conn = gnats.connect(nats_server.url, name="shop", observer=Metrics(dashboard.provider), **FAST)
    conn.flush()
    before = dashboard.numbers()
    nats_server.kill()
    conn.wait_for_status("reconnecting", timeout=5.0)
    conn.publish("telemetry.outage")
    during = dashboard.numbers()
    assert during["gnats.ready", "shop"] == 0
    assert during["gnats.buffered", "shop"] == during["gnats.disconnects", "shop"] == 1
    assert during["gnats.outage", "shop"] > 0
    nats_server.restart()
    conn.wait_for_status("connected", timeout=10.0)
    conn.flush()
    wait_until(lambda: ("gnats.events", "shop", "reconnected") in dashboard.numbers())
    after = dashboard.numbers()
    assert after["gnats.ready", "shop"] == after["gnats.reconnects", "shop"] == 1
    assert after["gnats.buffered", "shop"] == 0
    counters = {f"gnats.{meter.name}" for meter in METERS if meter.kind == "counter"}
    for earlier, later in ((before, during), (during, after)):
        for key, value in earlier.items():
            assert key[0] not in counters or later[key] >= value, key
    conn.close()


def test_several_and_those_that_are_gone(
    shared_nats_server: NatsServer, dashboard: Dashboard, subject: str
) -> None:
    def live() -> weakref.ref[gnats.Connection]:
        observer = Metrics(dashboard.provider)  # another each time, of the same books
        with gnats.connect(shared_nats_server.url, name="brief", observer=observer) as conn:
            conn.publish(subject)
        return weakref.ref(conn)

    with gnats.connect(shared_nats_server.url) as conn:
        instrument(conn, dashboard.provider)
        for _ in range(2):
            ref = live()
            wait_until(lambda ref=ref: gc.collect() >= 0 and ref() is None)
        numbers = dashboard.numbers()
    assert numbers["gnats.accepted", "brief"] == 2
    assert numbers["gnats.events", "brief", "closed"] == 2
    assert ("gnats.ready", "brief") not in numbers
    assert numbers["gnats.accepted", "1"] == 0
    assert numbers["gnats.ready", "1"] == 1


def test_without_a_provider_nothing_happens(shared_nats_server: NatsServer, subject: str) -> None:
    tracing = Tracing()
    heard: list[gnats.Msg] = []
    with gnats.connect(shared_nats_server.url, around=tracing.around, observer=Metrics()) as conn:
        instrument(conn)
        conn.subscribe(subject, cb=heard.append)
        tracing.trace(conn).publish(subject, b"1")
        wait_until(lambda: bool(heard))
    assert heard[0].block is None  # not a byte more on the wire


# -- traces --------------------------------------------------------------------------------


class Traces:
    """A tracing, and the spans that it has ended."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self.provider)
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans if span.name == name)
        return span

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.spans) >= count)
        assert len(self.spans) == count


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
def conn(shared_nats_server: NatsServer, traces: Traces) -> Iterator[gnats.Connection]:
    with gnats.connect(shared_nats_server.url, around=traces.tracing.around) as conn:
        yield conn


@pytest.fixture
def traced(conn: gnats.Connection, traces: Traces) -> TracedConnection:
    return traces.tracing.trace(conn)


def test_from_publisher_to_subscriber(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str
) -> None:
    inside: list[Any] = []
    conn.subscribe(subject, queue="workers", cb=lambda msg: inside.append(trace.get_current_span()))
    with traces.tracer.start_as_current_span("view") as view:
        traced.publish(subject, b"1")
        assert trace.get_current_span() is view
    traces.wait(3)
    sent, handled = traces.one(f"publish {subject}"), traces.one(f"process {subject}")
    assert sent.parent.span_id == view.get_span_context().span_id
    assert handled.parent.span_id == sent.context.span_id
    assert handled.context.trace_id == view.get_span_context().trace_id
    assert [link.context.span_id for link in handled.links] == [sent.context.span_id]
    assert inside[0].get_span_context() == handled.context
    assert (sent.kind, handled.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    url = conn.connected_url
    assert dict(sent.attributes) == {
        "messaging.system": "nats",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": subject,
        "messaging.client.id": str(conn.client_id),
        "server.address": url.host,
        "server.port": url.port,
    }
    assert dict(handled.attributes) == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": subject,
        "messaging.consumer.group.name": "workers",
    }
    assert {sent.status.status_code, handled.status.status_code} == {StatusCode.UNSET}
    assert sent.instrumentation_scope.name == "gnats"


def test_wildcards_name_the_span(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str
) -> None:
    conn.subscribe(f"{subject}.*", cb=lambda msg: None)
    traced.publish(f"{subject}.17")
    traces.wait(2)
    handled = traces.one(f"process {subject}.*")
    assert handled.attributes["messaging.destination.name"] == f"{subject}.17"
    assert handled.attributes["messaging.destination.template"] == f"{subject}.*"


def test_request_and_reply(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str
) -> None:
    conn.subscribe(subject, cb=lambda msg: msg.respond(msg.data[::-1]))
    assert traced.request(subject, b"ab", timeout=2.0).data == b"ba"
    traces.wait(2)
    asked, handled = traces.one(f"request {subject}"), traces.one(f"process {subject}")
    assert handled.parent.span_id == asked.context.span_id
    assert asked.kind is SpanKind.CLIENT
    assert asked.attributes["messaging.operation.type"] == "send"
    assert asked.start_time <= handled.start_time
    assert not asked.parent


def test_a_handler_that_publishes_goes_on_with_the_trace(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str
) -> None:
    conn.subscribe(subject, cb=lambda msg: traced.publish(f"{subject}.next"))
    conn.subscribe(f"{subject}.next", cb=lambda msg: None)
    traced.publish(subject)
    traces.wait(4)
    assert len({span.context.trace_id for span in traces.spans}) == 1
    middle, last = traces.one(f"process {subject}"), traces.one(f"publish {subject}.next")
    assert last.parent.span_id == middle.context.span_id


def test_inboxes_name_no_span(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces
) -> None:
    inbox = conn.new_inbox()
    conn.subscribe(inbox, cb=lambda msg: None)
    traced.publish(inbox)
    traces.wait(2)
    for name in ("publish", "process"):
        span = traces.one(name)
        assert span.attributes["messaging.destination.name"] == inbox
        assert span.attributes["messaging.destination.temporary"] is True
        assert span.attributes["messaging.destination.anonymous"] is True


def test_headers_are_kept(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str
) -> None:
    heard: list[Any] = []
    conn.subscribe(subject, cb=lambda msg: heard.append(msg.headers))
    mine = {"X-Shop": ["a", "b"], "baggage": "mine=1"}
    ours = gnats.Headers(mine)
    for headers in (mine, ours, iter([("X-Shop", "a"), ("X-Shop", "b"), ("baggage", "mine=1")])):
        token = context.attach(baggage.set_baggage("other", "2"))
        try:
            traced.publish(subject, headers=headers)
        finally:
            context.detach(token)
    wait_until(lambda: len(heard) == 3)
    assert mine == {"X-Shop": ["a", "b"], "baggage": "mine=1"}
    assert ours == mine
    for received in heard:
        assert received.get_all("X-Shop") == ["a", "b"]
        assert received.get_all("baggage") == ["mine=1"]
        assert len(received.get_all("traceparent")) == 1


def test_baggage_goes_along(conn: gnats.Connection, traced: TracedConnection, subject: str) -> None:
    heard: list[Any] = []
    conn.subscribe(subject, cb=lambda msg: heard.append(baggage.get_baggage("tenant")))
    token = context.attach(baggage.set_baggage("tenant", "seven"))
    traced.publish(subject)
    context.detach(token)
    wait_until(lambda: heard == ["seven"])


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
def test_a_message_made_elsewhere_keeps_its_context(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str, name: str
) -> None:
    heard: list[Any] = []
    conn.subscribe(subject, cb=lambda msg: heard.append(msg.headers))
    traced.publish(subject, headers={name: ORIGIN})
    traces.wait(2)
    sent, handled = traces.one(f"publish {subject}"), traces.one(f"process {subject}")
    assert list(heard[0].pairs()) == [(name, ORIGIN)]
    origin = int("b7ad6b7169203331", 16)
    assert sent.kind is SpanKind.CLIENT
    assert [link.context.span_id for link in sent.links] == [origin]
    assert handled.parent.span_id == origin


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {"X": "1"},
        {"traceparent": "broken"},
        {"traceparent": ""},
        {"traceparent": ["00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x"]},
        {"traceparent": "ÿ" * 1000, "tracestate": "=,=", "baggage": "%%%;;;==,,"},
    ],
)
def test_no_context_or_a_broken_one(
    shared_nats_server: NatsServer, traces: Traces, subject: str, headers: Any
) -> None:
    # Connected inside of a span: whatever greenlets began there, it is no parent of a handler.
    with traces.tracer.start_as_current_span("view"):
        conn = gnats.connect(shared_nats_server.url)
    heard: list[Any] = []
    with conn:
        conn.subscribe(subject, cb=lambda msg: heard.append(msg.data), around=traces.tracing.around)
        conn.publish(subject, b"1", headers=headers)
        traces.wait(2)
    handled = traces.one(f"process {subject}")
    assert heard == [b"1"]
    assert handled.parent is None
    assert not handled.links


def test_a_header_block_that_is_none(traces: Traces) -> None:
    msg = gnats.Msg("telemetry.broken", 1, "", b"HTTP/1.1", b"")
    assert traces.tracing.around(msg, lambda: 7) == 7
    assert traces.one("process telemetry.broken").parent is None


def test_a_propagator_that_raises_costs_no_message(traces: Traces) -> None:
    class Broken(TraceContextTextMapPropagator):
        def extract(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("no")

    msg = gnats.Msg("telemetry.raises", 1, "", b"NATS/1.0\r\na: b\r\n\r\n", b"")
    assert Tracing(traces.provider, Broken()).around(msg, lambda: 7) == 7


@pytest.mark.parametrize("error", [ValueError("no apples"), gevent.Timeout(3, "slow")])
def test_a_handler_that_raises(
    shared_nats_server: NatsServer, traces: Traces, subject: str, error: BaseException
) -> None:
    told: list[Exception] = []
    heard: list[gnats.Msg] = []

    def handle(msg: gnats.Msg) -> None:
        heard.append(msg)
        if len(heard) == 1:
            raise error

    with gnats.connect(
        shared_nats_server.url,
        around=traces.tracing.around,
        error_cb=lambda conn, exc: told.append(exc),
    ) as conn:
        conn.subscribe(subject, cb=handle)
        traces.tracing.trace(conn).publish(subject)
        wait_until(lambda: len(told) == 1)  # raised on, as without tracing
        conn.publish(subject)
        traces.wait(3)
        assert not trace.get_current_span().get_span_context().is_valid
    failed, fine = (span for span in traces.spans if span.name.startswith("process"))
    assert failed.status.status_code is StatusCode.ERROR
    kind = "ValueError" if isinstance(error, ValueError) else "gevent.timeout.Timeout"
    assert failed.attributes["error.type"] == kind
    assert [event.name for event in failed.events] == ["exception"]
    assert fine.status.status_code is StatusCode.UNSET
    assert "error.type" not in fine.attributes


def failing_calls() -> list[Any]:
    return [
        pytest.param(lambda c, s: c.request(s, timeout=2.0), errors.NoRespondersError, id="nobody"),
        pytest.param(lambda c, s: list(c.request_many(s)), errors.NoRespondersError, id="many"),
        pytest.param(lambda c, s: c.request_many(s, max_msgs=-1), errors.OptionError, id="option"),
        pytest.param(lambda c, s: c.publish(s + " "), errors.BadSubjectError, id="subject"),
        pytest.param(lambda c, s: c.publish(s, 7), TypeError, id="payload"),
    ]


@pytest.mark.parametrize(("call", "kind"), failing_calls())
def test_what_fails_is_told(
    traced: TracedConnection,
    traces: Traces,
    subject: str,
    call: Callable[[TracedConnection, str], Any],
    kind: type[Exception],
) -> None:
    with pytest.raises(kind):
        call(traced, subject)
    (span,) = traces.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"].rpartition(".")[2] == kind.__name__
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize("end", ["all", "close", "drop"])
def test_many_answers(
    conn: gnats.Connection, traced: TracedConnection, traces: Traces, subject: str, end: str
) -> None:
    def answer(msg: gnats.Msg) -> None:
        for number in range(3):
            msg.respond(b"%d" % number)

    conn.subscribe(subject, cb=answer)
    replies = traced.request_many(subject, b"?", 2.0, {"X": "1"}, max_msgs=3)
    assert next(replies).data == b"0"
    wait_until(lambda: len(traces.spans) == 1)  # the handler's; ours is not over
    if end == "all":
        assert [msg.data for msg in replies] == [b"1", b"2"]
    elif end == "close":
        replies.close()
    del replies
    gc.collect()
    traces.wait(2)
    asked = traces.one(f"request_many {subject}")
    assert traces.one(f"process {subject}").parent.span_id == asked.context.span_id
    assert asked.kind is SpanKind.CLIENT
    assert asked.status.status_code is StatusCode.UNSET


def test_not_sampled_is_told_on(shared_nats_server: NatsServer, subject: str) -> None:
    traces = Traces(sampler=ALWAYS_OFF)
    heard: list[Any] = []
    with gnats.connect(shared_nats_server.url, around=traces.tracing.around) as conn:
        conn.subscribe(subject, cb=lambda msg: heard.append(msg.headers["traceparent"]))
        traces.tracing.trace(conn).publish(subject)
        wait_until(lambda: bool(heard))
    assert not int(heard[0].rpartition("-")[2], 16) & 1  # the flag "sampled"
    assert traces.spans == []


def test_another_propagator(shared_nats_server: NatsServer, traces: Traces, subject: str) -> None:
    class Own(TraceContextTextMapPropagator):
        def inject(self, carrier: Any, *args: Any, **kwargs: Any) -> None:
            carrier["x-own"] = "1"

    heard: list[Any] = []
    with gnats.connect(shared_nats_server.url) as conn:
        conn.subscribe(subject, cb=lambda msg: heard.append(list(msg.headers.pairs())))
        Tracing(traces.provider, Own()).trace(conn).publish(subject)
        wait_until(lambda: heard == [[("x-own", "1")]])


def test_a_trace_through_an_outage(nats_server: NatsServer, traces: Traces, subject: str) -> None:
    with gnats.connect(nats_server.url, around=traces.tracing.around, **FAST) as conn:
        conn.subscribe(subject, cb=lambda msg: None)
        nats_server.kill()
        conn.wait_for_status("reconnecting", timeout=5.0)
        traces.tracing.trace(conn).publish(subject)
        nats_server.restart()
        conn.wait_for_status("connected", timeout=10.0)
        traces.wait(2)
    sent, handled = traces.one(f"publish {subject}"), traces.one(f"process {subject}")
    assert "server.address" not in sent.attributes
    assert handled.parent.span_id == sent.context.span_id


def test_all_else_is_the_connections_own(
    shared_nats_server: NatsServer, traces: Traces, subject: str
) -> None:
    conn = gnats.connect(shared_nats_server.url)
    with traces.tracing.trace(conn) as traced:
        assert traced.status is conn.status
        sub = traced.subscribe(subject)
        traced.publish(subject, b"1", reply="some.where")
        assert sub.next_msg(1.0).reply == "some.where"
        assert repr(traced) == f"<traced {conn!r}>"
        assert copy.copy(traced).stats.accepted == 1
        with pytest.raises(AttributeError):
            traced.telepathy  # noqa: B018 (the point is that it raises)
    assert conn.is_closed


def test_the_connection_of_a_web_application(
    shared_nats_server: NatsServer, traces: Traces, subject: str
) -> None:
    nats = gnats.wsgi.Nats(shared_nats_server.url, around=traces.tracing.around)
    traced = traces.tracing.trace(nats)
    nats.subscription(subject)(lambda msg: msg.respond(b"1"))
    try:
        assert traced.request(subject, timeout=2.0).data == b"1"
        assert [m.data for m in traced.request_many(subject, timeout=2.0, max_msgs=1)] == [b"1"]
        traces.wait(4)
    finally:
        nats.stop(1.0)
    asked = traces.one(f"request {subject}")
    handled = next(span for span in traces.spans if span.name == f"process {subject}")
    assert handled.parent.span_id == asked.context.span_id


def test_headers_that_the_server_does_not_take(
    fake_server: Callable[..., Any], traces: Traces
) -> None:
    server = fake_server(lambda c: (c.handshake(headers=False), c.serve()))
    with gnats.connect(server.url) as conn:
        traces.tracing.trace(conn).publish("telemetry.old", b"1")
        conn.flush()
    assert traces.one("publish telemetry.old").status.status_code is StatusCode.UNSET


def test_the_global_propagator_is_asked_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, traces: Traces
) -> None:
    asked: list[Any] = []

    class Own(TraceContextTextMapPropagator):
        def extract(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return super().extract(*args, **kwargs)

    monkeypatch.setattr(propagate, "get_global_textmap", Own)
    msg = gnats.Msg("telemetry.global", 1, "", b"NATS/1.0\r\na: b\r\n\r\n", b"")
    traces.tracing.around(msg, lambda: None)
    assert len(asked) == 1
