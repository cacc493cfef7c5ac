"""The states of a connection and the moves between them: one table, nothing else.

A move outside the table is a bug of gnats and raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class ConnectionStatus(str, Enum):
    """Where a connection is in its life. Each compares equal to its own name as a str."""

    disconnected = "disconnected"
    connecting = "connecting"
    connected = "connected"
    reconnecting = "reconnecting"
    draining_subs = "draining_subs"
    draining_pubs = "draining_pubs"
    closed = "closed"

    def __str__(self) -> str:
        return self.value


_S = ConnectionStatus

#: From each state, the states that may follow. A drain that loses its link reconnects and
#: then goes on where it was; a first connect that fails goes back to where it began.
MOVES: dict[ConnectionStatus, frozenset[ConnectionStatus]] = {
    _S.disconnected: frozenset({_S.connecting, _S.closed}),
    _S.connecting: frozenset({_S.connected, _S.disconnected, _S.closed}),
    _S.connected: frozenset({_S.reconnecting, _S.draining_subs, _S.closed}),
    _S.reconnecting: frozenset({_S.connected, _S.draining_subs, _S.draining_pubs, _S.closed}),
    _S.draining_subs: frozenset({_S.draining_pubs, _S.reconnecting, _S.closed}),
    _S.draining_pubs: frozenset({_S.reconnecting, _S.closed}),
    _S.closed: frozenset(),
}


class IllegalMoveError(RuntimeError):
    """gnats tried a move that its own table does not have: a bug, please report it."""


class Status:
    """The current state. ``to`` moves it by the table and tells *on_move*; never switches."""

    __slots__ = ("_on_move", "current")

    def __init__(self, on_move: Callable[[ConnectionStatus, ConnectionStatus], None]) -> None:
        self.current = ConnectionStatus.disconnected
        self._on_move = on_move

    def to(self, new: ConnectionStatus) -> None:
        """Move to *new*. Raises IllegalMoveError when the table has no such move."""
        old = self.current
        if new not in MOVES[old]:
            raise IllegalMoveError(f"connection status cannot move from {old} to {new}")
        self.current = new
        self._on_move(old, new)
