"""What must be true: of the books, of the callbacks, of the server's journal, of what is left.

Every check returns what is wrong, in words, and changes nothing; the machine decides when to ask.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gevent

import gnats
from gnats.status import MOVES

from .world import Link

# Control frames count in buffered_bytes, too: SUBs, UNSUBs, PINGs.
CONTROL_SLACK = 8 * 1024
# A message above the limit goes when it is alone.
LARGEST = 66_000


# -- the books --------------------------------------------------------------------------------


class Books:
    """The counters, at every look: they close, they never go back, they stay within bounds."""

    def __init__(self, conn: gnats.Connection, keep: bool, limit: int) -> None:
        self._conn = conn
        self._keep = keep
        self._limit = limit
        self._last = conn.stats
        self._flushed = (0, 0)  # accepted, and uncertain, before a flush that succeeded

    def flushed(self, before: gnats.stats.Stats) -> None:
        """A flush has succeeded, *before* it the books were so: of what was accepted then nothing
        has become uncertain, and nothing will any more."""
        self._flushed = before.accepted, before.uncertain

    def audit(self) -> Iterator[str]:
        stats, last = self._conn.stats, self._last
        self._last = stats
        if stats.accepted != stats.sent + stats.uncertain + stats.dropped + stats.buffered:
            yield f"the books do not close: {stats}"
        if min(vars(stats).values()) < 0:
            yield f"a counter below zero: {stats}"
        for name in ("accepted", "uncertain", "dropped", "replayed", "connects", "disconnects"):
            if getattr(stats, name) < getattr(last, name):
                yield f"{name} went back from {getattr(last, name)}: {stats}"
        accepted, uncertain = self._flushed
        if stats.uncertain - uncertain > stats.accepted - accepted:
            yield f"of what a flush had confirmed something is uncertain: {stats}, {self._flushed}"
        if self._keep and stats.uncertain:
            yield f"uncertain under replay_unconfirmed: {stats}"
        if self._keep and stats.buffered_bytes > max(self._limit, LARGEST) + CONTROL_SLACK:
            yield f"more than reconnect_buf_size is held: {stats}"


# -- the callbacks ----------------------------------------------------------------------------

LETTERS = {
    "connected_cb": "C",
    "disconnected_cb": "D",
    "reconnected_cb": "R",
    "closed_cb": "X",
}


def callbacks(calls: list[tuple[str, tuple[Any, ...]]], stats: gnats.stats.Stats) -> Iterator[str]:
    """The whole word of a connection that is closed."""
    word = "".join(LETTERS[name] for name, _ in calls if name in LETTERS)
    if not re.fullmatch("C(DR)*D?X" if stats.connects else "X", word):
        yield f"no legal word of callbacks: {word}"
    if not calls or calls[-1][0] != "closed_cb":
        yield f"closed_cb was not the last: {calls[-3:]}"
    if word.count("D") != stats.disconnects:
        yield f"{word.count('D')} disconnected_cb for {stats.disconnects} losses"
    if word.count("R") != stats.reconnects:
        yield f"{word.count('R')} reconnected_cb for {stats.reconnects} returns"
    yield from _moves(calls)
    for name, args in calls:
        if name == "error_cb" and not isinstance(args[0], Exception):
            yield f"error_cb got {args!r}"


def _moves(calls: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[str]:
    status = gnats.ConnectionStatus.disconnected
    expected = {
        "connected_cb": ("connected", "draining_subs", "draining_pubs"),
        "disconnected_cb": ("reconnecting",),
        # A drain may have gone on by the time that the replay is written.
        "reconnected_cb": ("connected", "draining_subs", "draining_pubs"),
        "closed_cb": ("closed",),
    }
    for name, args in calls:
        if name == "status_cb":
            old, new = args
            if old != status or new not in MOVES[old]:
                yield f"an illegal move: {status}, then {old} -> {new}"
            status = new
        elif name in expected and status not in (*expected[name], "closed"):
            yield f"{name} while the last move was to {status}"


# -- the journal of the server ----------------------------------------------------------------


def journal(
    links: list[Link], position: Mapping[str, int], refused: set[str], keep: bool
) -> Iterator[str]:
    """What the server took. *position*: of each accepted message of known place, by subject."""
    seen: set[str] = set()
    newest = -1
    for number, link in enumerate(links):
        yield from _subscribed(number, link, links[:number])
        own = link.published
        if len(own) != len(set(own)):
            yield f"link {number}: twice on one link: {_doubles(own)}"
        for subject in refused.intersection(own):
            yield f"link {number}: {subject} was refused, and sent"
        places = [position[subject] for subject in own if subject in position]
        for before, after in zip(places, places[1:]):
            if after != before + 1:
                yield f"link {number}: message {after} came next after {before}"
        if places:
            if keep and places[0] > newest + 1:
                yield f"link {number} began with message {places[0]}, the last was {newest}"
            if not keep and places[0] <= newest:
                yield f"link {number} began with message {places[0]}, behind {newest}"
            newest = max(newest, places[-1])
        if not keep and not seen.isdisjoint(own):
            yield f"link {number}: sent again: {sorted(seen.intersection(own))}"
        seen.update(own)


def _subscribed(number: int, link: Link, earlier: list[Link]) -> Iterator[str]:
    sids = [sid for sid, _ in link.subscribed]
    if len(sids) != len(set(sids)):
        yield f"link {number}: subscribed twice: {_doubles(sids)}"
    known = {sid for before in earlier for sid, _ in before.subscribed}
    for sid, messages_before in link.subscribed:
        if sid in known and messages_before:
            yield f"link {number}: sid {sid} was restored behind {messages_before} messages"


def _doubles(items: list[str]) -> list[str]:
    return sorted({item for item in items if items.count(item) > 1})


# -- what is left -----------------------------------------------------------------------------

_spawned: weakref.WeakSet[gevent.Greenlet[..., Any]] = weakref.WeakSet()


def _remember(spawned: gevent.Greenlet[..., Any]) -> None:
    module = getattr(spawned._run, "__module__", None) or ""
    if module.startswith("gnats.") and not module.startswith("gnats.testing."):
        _spawned.add(spawned)


gevent.Greenlet.add_spawn_callback(_remember)


def greenlets() -> set[gevent.Greenlet[..., Any]]:
    """The living greenlets of gnats, those of gnats.testing not included."""
    return {one for one in set(_spawned) if not one.dead}


def sockets() -> set[str]:
    """The open sockets of this process; none where there is no /proc."""
    found = set()
    try:
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.add(target)
    except OSError:
        pass
    return found


def socket_of(descriptor: int) -> set[str]:
    """The name of one socket, as in ``sockets``."""
    try:
        return {os.readlink(f"/proc/self/fd/{descriptor}")}
    except OSError:
        return set()


def waiters(conn: gnats.Connection) -> dict[str, int]:
    """Who still waits, or is waited for, within a closed connection; all must be 0."""
    return {
        "requests": conn._requests.waiting,
        "publishers": len(conn._outbox._waiting),
        "awaited statuses": len(conn._reconnector._awaited),
        "status line": len(conn._reconnector.status_changed._parks),
        "subscriptions": len(conn._subscriptions.by_sid),
        "delivery greenlets": len(conn._subscriptions.delivery.greenlets),
        "callbacks": len(conn._callbacks._calls),
        "sessions": int(conn._reconnector.session is not None),
    }
