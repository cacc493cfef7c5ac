"""The totals of a process, over connections that come and go: under which name each one counts,
and that what was counted stays counted. Never keeps a connection alive, costs no network.

For the adapters to libraries of metrics. Every method may be called from any thread, and none
switches.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gnats

__all__ = ["Books", "Totals", "Watcher"]


@dataclass
class Totals:
    """What one name stands for: counters and events of all who ever had it in this process,
    gauges of the connection that has it now; none when that one is gone."""

    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)

    def add(self, account: _Account) -> None:
        """Count *account* in. Gauges are the last one's: a name is given on only at a close."""
        for name, value in account.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        self.gauges = dict(account.gauges)


class _Account:
    """One connection, and what it said last. An observer (``gnats.metrics``)."""

    def __init__(self, conn: gnats.Connection, label: str) -> None:
        self.ref = weakref.ref(conn)
        self.label = label
        self.counters: dict[str, int] = {}
        self.gauges: dict[str, float] = {}

    def counter(self, name: str, value: int) -> None:
        self.counters[name] = value

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def event(self, conn: Any, name: str, facts: Mapping[str, Any]) -> None:
        """Nothing: ``Books`` count them."""

    def read(self) -> None:
        conn = self.ref()
        if conn is None:
            self.gauges = {}
        else:
            conn.observe(self)

    @property
    def is_open(self) -> bool:
        conn = self.ref()
        return conn is not None and not conn.is_closed


class _Process:
    """The books of one process: a fork begins new ones, with a lock that nobody holds."""

    def __init__(self, conns: Iterable[tuple[gnats.Connection, str]] = ()) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.accounts = [_Account(conn, label) for conn, label in conns]
        self.past: dict[str, Totals] = {}  # those who are gone; the events of all

    def heir(self) -> _Process:
        """The books of the child: the connections that live on there, counted from zero."""
        held = [(account.ref(), account.label) for account in self.accounts]
        return _Process((c, label) for c, label in held if c is not None and not c.is_closed)

    def account(self, conn: gnats.Connection) -> _Account:
        for account in self.accounts:
            if account.ref() is conn:
                return account
        self.settle()
        account = _Account(conn, self._free_label(conn.options.name))
        self.accounts.append(account)
        return account

    def settle(self) -> None:
        """Those who are gone are counted among the past."""
        for account in self.accounts:
            if account.ref() is None:
                account.gauges = {}
                self.totals(account.label).add(account)
        self.accounts = [account for account in self.accounts if account.ref() is not None]

    def totals(self, label: str) -> Totals:
        return self.past.setdefault(label, Totals())

    def _free_label(self, name: str) -> str:
        taken = {account.label for account in self.accounts if account.is_open}
        number = 1
        label = name or "1"
        while label in taken:
            number += 1
            label = f"{name}-{number}" if name else str(number)
        return label


class Books:
    """Counts connections together under their names.

    The name is the connection's ``name``, or the lowest free number, from "1" on, when it has
    none; while one connection has a name, the next is "name-2". A name that a closed connection
    leaves is taken again, and its counters go on. One that was used stays: with names from a fixed
    set there are no more than were in use at once. What a connection counted between the last
    ``read`` and its garbage collection is lost, unless ``event`` was told that it is ``closed``.
    """

    def __init__(self) -> None:
        self._process = _Process()

    def watch(self, conn: gnats.Connection) -> None:
        """Count *conn* from now on, once, and what it has counted before."""
        process = self._here()
        with process.lock:
            process.account(conn)

    def event(self, conn: gnats.Connection, name: str) -> None:
        """Count an event of *conn*, and watch it."""
        process = self._here()
        with process.lock:
            account = process.account(conn)
            events = process.totals(account.label).events
            events[name] = events.get(name, 0) + 1
            if name == "closed":
                account.read()  # it may be gone at the next look

    def read(self) -> dict[str, Totals]:
        """The totals as of now, by name."""
        process = self._here()
        with process.lock:
            for account in process.accounts:
                account.read()
            process.settle()
            now = {
                label: Totals(dict(past.counters), {}, dict(past.events))
                for label, past in process.past.items()
            }
            for account in process.accounts:
                now.setdefault(account.label, Totals()).add(account)
            return now

    def _here(self) -> _Process:
        if self._process.pid != os.getpid():
            self._process = self._process.heir()
        return self._process


class Watcher:
    """An observer that enters into *books* each connection that tells it an event."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def watch(self, conn: gnats.Connection) -> None:
        """Count *conn* too, which has another observer. Twice is once. Never switches; may be
        called from any thread."""
        self._books.watch(conn)

    def counter(self, name: str, value: int) -> None:
        """Nothing: every number is read when it is asked for."""

    def gauge(self, name: str, value: float) -> None:
        """Nothing: every number is read when it is asked for."""

    def event(
        self,
        conn: gnats.Connection,
        name: str,
        facts: Mapping[str, Any],  # noqa: ARG002 (an error's text is no label)
    ) -> None:
        """Count the event *name*, and watch *conn* from its first one on."""
        self._books.event(conn, name)
