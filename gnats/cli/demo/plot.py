"""The timeline of a demonstration, by matplotlib. ImportError where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from gnats.cli.demo.record import Record

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot

_WIDTH, _HEIGHT = 9.0, 5.2  # inches
_PUBLISHED, _DELIVERED, _BUFFERED, _OUTAGE = "#1f5fa8", "#d9822b", "#6a4c93", "#d64545"


def draw(record: Record, path: Path) -> None:
    """Write the picture to *path*; its ending says how."""
    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (above, below) = pyplot.subplots(
            2,
            sharex=True,
            figsize=(_WIDTH, _HEIGHT),
            gridspec_kw={"height_ratios": (3, 2)},
            layout="constrained",
        )
        try:
            _counts(above, record)
            _buffered(below, record)
            for axes in (above, below):
                _shade(axes, record)
            _acts(above, record)
            figure.savefig(path, dpi=150)
        finally:
            pyplot.close(figure)


def _counts(axes: Any, record: Record) -> None:
    times = [sample.time for sample in record.samples]
    published = [sample.published for sample in record.samples]
    delivered = [sample.delivered for sample in record.samples]
    axes.plot(times, published, color=_PUBLISHED, linewidth=2, label="published")
    axes.plot(times, delivered, color=_DELIVERED, linewidth=2, linestyle="--", label="delivered")
    axes.set_ylabel("messages")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False)


def _buffered(axes: Any, record: Record) -> None:
    times = [sample.time for sample in record.samples]
    kept = [sample.buffered for sample in record.samples]
    axes.fill_between(times, kept, color=_BUFFERED, alpha=0.35, step="post")
    axes.plot(times, kept, color=_BUFFERED, linewidth=1.5, drawstyle="steps-post")
    axes.set_ylabel("kept in the buffer")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(times, default=1.0))


def _shade(axes: Any, record: Record) -> None:
    """The outages; those of milliseconds are a line."""
    end = record.samples[-1].time if record.samples else record.now
    for outage in record.outages:
        last = outage[1] if len(outage) == 2 else end
        axes.axvspan(outage[0], last, color=_OUTAGE, alpha=0.15, linewidth=0)
        axes.axvline(outage[0], color=_OUTAGE, alpha=0.5, linewidth=0.8)


def _acts(axes: Any, record: Record) -> None:
    """A number where each act begins; the words stand in the title below each other."""
    acts = [event for event in record.events if event.kind == "act"]
    top = axes.get_ylim()[1]
    for number, act in enumerate(acts, 1):
        axes.axvline(act.time, color="0.6", linewidth=0.6, linestyle=":")
        axes.annotate(
            str(number), (act.time, top), xytext=(3, -10), textcoords="offset points", color="0.4"
        )
    words = [f"{number} {act.text}" for number, act in enumerate(acts, 1)]
    lines = ["   ".join(words[index : index + 2]) for index in range(0, len(words), 2)]
    axes.set_title("\n".join(lines), fontsize=8, color="0.3", loc="left")
