"""The status table: every pair of states, allowed or refused."""

from __future__ import annotations

import itertools
import pickle

import pytest

from gnats.status import MOVES, ConnectionStatus, IllegalMoveError, Status

pytestmark = pytest.mark.sansio

S = ConnectionStatus

# Written down a second time, from the life of a connection (DESIGN 3), not from the code.
ALLOWED = {
    # a first connect: it succeeds, or fails and may be called again; close() at any time
    (S.disconnected, S.connecting),
    (S.connecting, S.connected),
    (S.connecting, S.disconnected),
    # loss and return
    (S.connected, S.reconnecting),
    (S.reconnecting, S.connected),
    # drain: from a live link, or waiting for one; a loss interrupts it, the return resumes it
    (S.connected, S.draining_subs),
    (S.draining_subs, S.draining_pubs),
    (S.draining_subs, S.reconnecting),
    (S.draining_pubs, S.reconnecting),
    (S.reconnecting, S.draining_subs),
    (S.reconnecting, S.draining_pubs),
    # the end
    *((state, S.closed) for state in S if state is not S.closed),
}


def status_at(state: ConnectionStatus) -> tuple[Status, list[tuple[str, str]]]:
    moves: list[tuple[str, str]] = []
    status = Status(lambda old, new: moves.append((str(old), str(new))))
    status.current = state
    return status, moves


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)), ids=str)
def test_every_pair(old: ConnectionStatus, new: ConnectionStatus) -> None:
    status, moves = status_at(old)
    if (old, new) in ALLOWED:
        status.to(new)
        assert status.current is new
        assert moves == [(old.value, new.value)]
    else:
        with pytest.raises(IllegalMoveError, match=f"{old}.*{new}"):
            status.to(new)
        assert status.current is old
        assert moves == []


def test_it_begins_disconnected_and_tells_nobody() -> None:
    moves: list[object] = []
    assert Status(lambda *move: moves.append(move)).current is S.disconnected
    assert moves == []


def test_the_table_knows_every_state_and_closed_is_the_end() -> None:
    assert set(MOVES) == set(S)
    assert MOVES[S.closed] == frozenset()


def test_every_state_can_be_reached() -> None:
    reached = {S.disconnected}
    while True:
        more = reached | {new for old in reached for new in MOVES[old]}
        if more == reached:
            break
        reached = more
    assert reached == set(S)


def test_the_new_state_is_in_place_when_it_is_told() -> None:
    seen: list[ConnectionStatus] = []
    status = Status(lambda old, new: seen.append(status.current))
    status.to(S.connecting)
    assert seen == [S.connecting]


def test_an_illegal_move_is_a_bug_not_an_error_of_the_user() -> None:
    from gnats.errors import Error

    assert not issubclass(IllegalMoveError, Error)


@pytest.mark.parametrize("state", S)
def test_each_is_its_own_name(state: ConnectionStatus) -> None:
    assert state == state.name == state.value == str(state) == f"{state}"
    assert S(state.name) is state
    assert hash(state) == hash(state.name)
    assert pickle.loads(pickle.dumps(state)) is state


def test_the_names() -> None:
    assert [state.name for state in S] == [
        "disconnected",
        "connecting",
        "connected",
        "reconnecting",
        "draining_subs",
        "draining_pubs",
        "closed",
    ]
