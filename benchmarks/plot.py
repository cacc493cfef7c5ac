"""Figures to a picture: four charts of bars, the same clients in each. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import KEPT, OURS, PURE, SOCKET
from benchmarks.peers import CLIENTS

__all__ = ["draw"]

# Figure, title, and how a value is written. All but the last: longer is better.
CHARTS = (
    ("publish", "publish, million messages/s", 1e6),
    ("receive", "receive, million messages/s", 1e6),
    ("100 requesters", "100 requesters, thousand requests/s", 1e3),
    ("serial request", "one request after the other, µs (shorter is better)", 1.0),
)
_OURS = "#1f6f8b"
_PURE = "#7fb3c4"
_OTHERS = "#c9c9c9"
_CEILING = "#8a8a8a"
_COLOURS = {OURS: _OURS, PURE: _PURE, SOCKET: _CEILING}


def draw(document: dict[str, Any], file: Path) -> None:
    """Draw what ``--json`` wrote; the kind of picture is told by the file's ending. Raises
    ImportError without matplotlib, ValueError when none of the figures is in there."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    charts = [
        (title, bars) for name, title, scale in CHARTS if (bars := _bars(document, name, scale))
    ]
    if not charts:
        raise ValueError(
            "there is nothing to draw: none of publish, receive, requests was measured"
        )
    heights = [len(bars) + 1.2 for _, bars in charts]
    with pyplot.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "gnats"}):
        size = (8, 0.27 * sum(heights) + 0.9)
        picture, axes = pyplot.subplots(
            len(charts), 1, figsize=size, height_ratios=heights, squeeze=False
        )
        for axis, (title, bars) in zip(axes[:, 0], charts):
            _chart(axis, title, bars)
        picture.text(0.01, 0.008, _caption(document["facts"]), fontsize=7, color="#666666")
        picture.tight_layout(rect=(0, 0.03, 1, 1))
        picture.savefig(file, dpi=160, metadata=_no_date(file))
        pyplot.close(picture)


def _bars(document: dict[str, Any], name: str, scale: float) -> list[tuple[str, float]]:
    for figure in document["figures"]:
        if figure["name"] == name and figure["medians"]:
            medians = figure["medians"]
            return [(c, medians[c] / scale) for c in CLIENTS if c in medians and c != KEPT]
    return []


def _chart(axis: Any, title: str, bars: list[tuple[str, float]]) -> None:
    names = [name for name, _ in bars]
    lengths = [length for _, length in bars]
    colours = [_COLOURS.get(name, _OTHERS) for name in names]
    drawn = axis.barh(names, lengths, color=colours, height=0.72)
    texts = [f"{length:,.0f}" if length >= 9.95 else f"{length:.2f}" for length in lengths]
    axis.bar_label(drawn, texts, padding=4)
    axis.invert_yaxis()
    axis.set_xlim(0, max(lengths) * 1.12)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    for label in axis.get_yticklabels():
        if label.get_text().startswith(OURS):
            label.set_fontweight("bold")


def _caption(facts: dict[str, str]) -> str:
    machine = facts["machine"].split(", load")[0]
    return (
        f"16-byte payloads, medians; {facts['python']}, gevent {facts['gevent']}, "
        f"nats-server {facts['nats-server']}; {machine}"
    )


def _no_date(file: Path) -> dict[str, Any] | None:
    """The same figures give the same bytes."""
    return {"Date": None} if file.suffix == ".svg" else None
