"""The fault table: a diagonal of it in every run, the whole of it with ``tox run -e faults``.

What is done, when, and what is expected: ``faults/table.py``. What came out: docs/faults.md.
"""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from conftest import SEED
from faults import page
from faults.cell import run
from faults.natspy import compare
from faults.rig import Rigs
from faults.table import FAULTS, MODES, MOMENTS, Cell, Expected, cells, diagonal
from faults.verdict import Outcome, judge

import gnats
from gnats.testing import ChaosProxy, FakeClient, FakeServer, NatsServer, wait_until

DIAGONAL = diagonal()


@pytest.fixture(scope="module")
def rigs() -> Iterator[Rigs]:
    # pytest keeps the records of a test's log, and with them the errors that were logged: see the
    # last test here. What is left over in a cell must not depend on that.
    logger = logging.getLogger("gnats")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with Rigs() as rigs:
        yield rigs
    logger.setLevel(level)


def play(rigs: Rigs, cell: Cell) -> None:
    outcome = run(rigs, cell, SEED)
    complaints = judge(outcome, cell.fault.expected, cell.moment)
    assert not complaints, f"repeat with GNATS_SEED={SEED}; {complaints}; {outcome}"


@pytest.mark.once
@pytest.mark.parametrize("cell", DIAGONAL, ids=lambda cell: cell.name)
def test_the_diagonal(rigs: Rigs, cell: Cell) -> None:
    play(rigs, cell)


@pytest.mark.faults
@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.name)
def test_every_cell(rigs: Rigs, cell: Cell) -> None:
    play(rigs, cell)


# -- the table itself -----------------------------------------------------------------------------


def test_the_diagonal_meets_every_fault_twice_and_every_moment_four_times() -> None:
    faults = Counter(cell.fault.name for cell in DIAGONAL)
    moments = Counter(cell.moment.name for cell in DIAGONAL)
    assert all(faults[name] >= 2 for name in FAULTS)
    assert all(moments[name] >= 4 for name in MOMENTS), moments
    assert {cell.mode for cell in DIAGONAL} == set(MODES)


def test_no_file_of_gnats_asks_the_wall_clock() -> None:
    # Nothing that jumps with it may decide how long something has lasted.
    wall = re.compile(r"time\.time\(|from time import .*\btime\b|\bdatetime\b|localtime|gmtime")
    package = Path(gnats.__file__).parent
    found = {file.name for file in package.rglob("*.py") if wall.search(file.read_text("utf-8"))}
    told = {"health.py", "output.py", "payloads.py"}
    assert found == told, "those only tell people the time"


# -- the judgement: it must be able to find fault -------------------------------------------------


def met() -> Outcome:
    """An outcome without fault: lost once, returned, closed."""
    return Outcome(
        "rst",
        "idle",
        "default",
        accepted=10,
        links_lost=1,
        message_after=0.1,
        callbacks={"connected_cb": 1, "disconnected_cb": 1, "reconnected_cb": 1, "closed_cb": 1},
        life="cdrx",
        words=["connecting", "connected", "reconnecting", "connected", "closed"],
        ended="back",
    )


def test_an_outcome_without_fault_is_met() -> None:
    assert judge(met(), Expected(), MOMENTS["idle"]) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lost": 1}, "1 lost"),
        ({"lost_by_server": 1}, "1 lost"),
        ({"doubled": 1}, "1 doubled"),
        ({"mode": "at least once", "uncertain": 1}, "1 uncertain"),
        ({"dropped": 1}, "1 dropped"),
        ({"late": 1}, "1 out of order"),
        ({"altered": 1}, "1 altered"),
        ({"received_doubled": 1}, "received: 1 doubled"),
        ({"received_late": 1}, "received: 0 doubled, 1 out of order"),
        ({"illegal": ["connected: closed -> connected"]}, "illegal move"),
        ({"links_lost": 2}, "disconnected_cb 1 times, not 2"),
        ({"life": "cdxr"}, "in the order cdxr"),
        ({"noticed": False}, "not been noticed"),
        ({"calls": {"drain": {"ok": 1}}, "dropped": 1}, "drained, and 1 dropped"),
        ({"callbacks": {"closed_cb": 2}}, "closed_cb 2 times, not 1"),
        ({"overdue": ["flush in flight"]}, "overdue: flush in flight"),
        ({"ended": "closed"}, "it ended closed, not back"),
        ({"message_after": None}, "no message got through"),
        ({"message_after": 60.0}, "it took 60.00 s"),
        ({"calls": {"drain": {"DrainTimeoutError": 1}}}, "drain: "),
        ({"books_open": ["accepted=1"]}, "the books do not close"),
        ({"wrong": ["2 calls hang"]}, "2 calls hang"),
        ({"leftovers": ["1 greenlets"]}, "left: 1 greenlets"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_fault_is_found(changes: dict[str, object], complaint: str) -> None:
    outcome = met()
    for name, value in changes.items():
        setattr(outcome, name, value)
    assert any(complaint in one for one in judge(outcome, Expected(), MOMENTS["idle"]))


def test_an_error_that_must_be_told_is_missed() -> None:
    expected = Expected(tells=("AuthorizationError",))
    assert any("never heard" in one for one in judge(met(), expected, MOMENTS["idle"]))


# -- the page, and the column of comparison -------------------------------------------------------


def test_the_page_says_what_is_met_and_what_is_not() -> None:
    cell = Cell(FAULTS["rst"], MOMENTS["idle"], "default")
    other = Cell(FAULTS["fin"], MOMENTS["idle"], "default")
    text = page.write([page.Result(cell, met(), []), page.Result(other, met(), ["ill"])], [], "7")
    assert "2 cells, of which **1 are met**" in text
    assert re.search(r"^\| link reset \(RST\) \|.* ✓ 100 \|", text, re.MULTILINE)
    assert re.search(r"^\| link closed \(FIN\) \|.* ✗ \|", text, re.MULTILINE)
    assert "- **fin, idle, default**: ill" in text


@pytest.mark.once
def test_nats_py_meets_the_same_fault(rigs: Rigs) -> None:
    pytest.importorskip("nats", reason="nats-py is not installed: pip install '.[bench]'")
    compared = compare(rigs, FAULTS["rst"], SEED)
    assert compared.accepted > 200
    assert compared.events["connected"] == 1


# -- defects that the table has found -------------------------------------------------------------


def test_an_error_that_somebody_keeps_does_not_keep_the_connection() -> None:
    kept: list[Exception] = []
    gone = _broken_off(kept)
    assert isinstance(kept[0], gnats.errors.ProtocolError)
    gevent.sleep(0.01)
    gc.collect()
    assert gone() is None


def _broken_off(kept: list[Exception]) -> weakref.ref[gnats.Connection]:
    """A connection that a server has ended with rubbish behind a message, closed and let go."""

    def rude(client: FakeClient) -> None:
        client.handshake()
        client.expect("SUB ")
        client.send(b"MSG a 1 1\r\nx\r\nrubbish\r\n")
        client.stall()

    with FakeServer(rude) as server:
        conn = gnats.connect(
            server.url, allow_reconnect=False, error_cb=lambda _conn, error: kept.append(error)
        )
        conn.subscribe("a", cb=lambda _msg: None)
        wait_until(lambda: conn.is_closed)
        conn.close()
        return weakref.ref(conn)


def test_a_reset_is_called_a_reset_under_a_flood(shared_nats_server: NatsServer) -> None:
    with ChaosProxy(shared_nats_server.url) as proxy:
        conn = gnats.connect(proxy.url, max_reconnect=-1, reconnect_wait=0.01)
        for _ in range(20):
            for _ in range(20):
                conn.publish("a", b"x" * 50)
            gevent.sleep(0.001)
        proxy.reset()
        for _ in range(20):  # the flusher is woken before the reader
            conn.publish("a", b"x" * 50)
        conn.wait_for_status("reconnecting", timeout=5.0)
        error = conn.last_error
        conn.close()
    assert "reset" in str(error)
