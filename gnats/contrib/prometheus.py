"""Prometheus: how the numbers of ``gnats.metrics`` are named there. Never labels by subject.

Nothing is counted here, and nothing is sent: whoever scrapes reads, in his own thread or greenlet.
"""

from __future__ import annotations

from collections.abc import Iterable

from gnats.contrib.books import Books, Watcher
from gnats.metrics import METERS, Meter

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as exc:
    raise ImportError(
        "gnats.contrib.prometheus needs prometheus_client: pip install 'gnats[prometheus]'"
    ) from exc

__all__ = ["NatsCollector"]

# Units in the narrow sense end the name; what is merely counted does not.
SUFFIXES = ("bytes", "seconds", "ratio")


class NatsCollector(Watcher):
    """The numbers of any number of connections, as a collector in *registry* (None: register it
    yourself), named *prefix*, "_" and the name of the meter.

    ::

        metrics = NatsCollector()
        conn = gnats.connect(..., observer=metrics)  # or: metrics.watch(conn)

    Every series has the label ``connection``: the name of the connection, or a number; see
    ``gnats.contrib.books.Books``. As an observer it also counts the events, in
    ``<prefix>_events_total`` by the label ``event``. Connections are held weakly; counters stay
    when they are gone, gauges go with them. Raises ValueError when *registry* has these names
    already: one collector is enough for a process.
    """

    def __init__(
        self, registry: CollectorRegistry | None = REGISTRY, prefix: str = "gnats"
    ) -> None:
        super().__init__(Books())
        self._prefix = prefix
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """The families, without a sample."""
        return [*(self._family(meter) for meter in METERS), self._event_family()]

    def collect(self) -> Iterable[Metric]:
        """The families, with a sample for each connection. Never switches; may be called from any
        thread."""
        families = {meter.name: self._family(meter) for meter in METERS}
        events = self._event_family()
        for label, totals in self._books.read().items():
            for name, value in {**totals.counters, **totals.gauges}.items():
                families[name].add_metric([label], value)
            for name, count in totals.events.items():
                events.add_metric([label, name], count)
        return [*families.values(), events]

    def _family(self, meter: Meter) -> CounterMetricFamily | GaugeMetricFamily:
        kind = CounterMetricFamily if meter.kind == "counter" else GaugeMetricFamily
        unit = meter.unit if meter.unit in SUFFIXES else ""
        name = f"{self._prefix}_{meter.name}"
        return kind(name, meter.description, labels=["connection"], unit=unit)

    def _event_family(self) -> CounterMetricFamily:
        return CounterMetricFamily(
            f"{self._prefix}_events",
            "Events told to observers, by their name",
            labels=["connection", "event"],
        )
