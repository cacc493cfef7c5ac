"""The end of a connection in a test: it is closed, and its books are."""

from __future__ import annotations

import gnats


def check_books(conn: gnats.Connection) -> None:
    stats = conn.stats
    assert stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered


def finish(conn: gnats.Connection) -> None:
    """Close *conn*; then nothing waits any more, neither a message nor a request."""
    conn.close()
    check_books(conn)
    assert conn.stats.buffered == conn.stats.buffered_bytes == 0
    assert conn._requests.waiting == 0
