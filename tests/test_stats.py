"""The books: a frozen snapshot with every counter of DESIGN 3.4."""

from __future__ import annotations

import dataclasses

import pytest

import gnats
from gnats.stats import Stats

pytestmark = pytest.mark.sansio

NAMES = [field.name for field in dataclasses.fields(Stats)]


def test_the_counters() -> None:
    books = ["accepted", "sent", "uncertain", "dropped", "buffered", "buffered_bytes", "replayed"]
    nats_py = ["in_msgs", "out_msgs", "in_bytes", "out_bytes", "reconnects", "errors_received"]
    assert set(books + nats_py) <= set(NAMES)


def test_a_snapshot() -> None:
    stats = Stats(**dict.fromkeys(NAMES, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.sent = 2  # type: ignore[misc]
    assert stats == Stats(**dict.fromkeys(NAMES, 1))


def test_of_a_connection_that_was_never_opened() -> None:
    conn = gnats.Connection()
    stats = conn.stats
    assert stats == Stats(**dict.fromkeys(NAMES, 0))
    assert conn.stats is not stats
    assert conn.stats == stats
