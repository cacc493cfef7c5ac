"""Mailbox and Sorter, both twins: limits, order, episodes, the handler's slice, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gnats.lines import PING, PONG
from gnats.mailbox import SLICE, Mailbox, PureMailbox, PureSorter, Sorter
from gnats.message import Msg

pytestmark = pytest.mark.sansio


def with_a_diary(kind: type) -> type:
    """A mailbox that writes down what it is asked to do, as a subscription would do it."""

    class Box(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.diary: list[str] = []
            self.failures: list[BaseException] = []

        def _start_delivery(self) -> None:
            self._running += 1
            self.diary.append("start")

        def _arrived(self) -> None:
            self.diary.append("arrived")

        def _overflowed(self) -> None:
            self.dropped += 1
            self.diary.append("slow" if not self._slow else "full")
            self._slow = True

        def _refused(self) -> None:
            self.diary.append("refused")

        def _filled(self) -> None:
            self._accepting = False
            self.diary.append("filled")

        def _failed(self, error: BaseException) -> None:
            self.failures.append(error)

    return Box


BOXES = {"pure": with_a_diary(PureMailbox), "used": with_a_diary(Mailbox)}


@pytest.fixture(params=list(BOXES))
def box(request: pytest.FixtureRequest) -> Any:
    return BOXES[request.param](4, 100, 1)


def msg(data: bytes = b"x", block: bytes | None = None) -> Msg:
    return Msg("a", 1, "", block, data)


def test_in_order_and_counted(box: Any) -> None:
    first, second = msg(b"12"), msg(b"345", b"NATS/1.0\r\n\r\n")
    box.push(first)
    box.push(second)
    assert (box.pending_msgs, box.pending_bytes, box._received) == (2, 17, 2)
    assert first.sub is None
    assert box.pop() is first
    assert first.sub is box
    assert (box.pending_msgs, box.pending_bytes, box.delivered) == (1, 15, 1)
    assert box.pop() is second
    assert (box.pending_msgs, box.pending_bytes, box.delivered) == (0, 0, 2)
    assert box.diary == ["start"]


def test_a_mailbox_without_messages_has_none_to_give(box: Any) -> None:
    with pytest.raises(IndexError, match="no message is queued"):
        box.pop()
    box.push(msg())
    box.pop()
    with pytest.raises(IndexError, match="no message is queued"):
        box.pop()
    assert (box.delivered, box.pending_bytes) == (1, 0)


@pytest.mark.parametrize("pure", ["0", "1"])
def test_nor_has_it_any_without_assertions(pure: str) -> None:
    program = "from gnats.mailbox import Mailbox; Mailbox(1, 1, 0).pop()"
    done = subprocess.run(
        [sys.executable, "-O", "-c", program],
        env={**os.environ, "GNATS_PURE_PYTHON": pure},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "IndexError: no message is queued" in done.stderr


def test_one_start_for_each_handler_that_may_run() -> None:
    for kind in BOXES.values():
        box = kind(10, 100, 3)
        for _ in range(5):
            box.push(msg())
        assert box.diary == ["start"] * 3
        idle = kind(10, 100, 0)
        idle.push(msg())
        assert idle.diary == []
        idle._watched = True
        idle.push(msg())
        assert idle.diary == ["arrived"]


def test_limits_and_episodes(box: Any) -> None:
    for _ in range(6):
        box.push(msg())
    assert (box.pending_msgs, box.dropped, box._received) == (4, 2, 6)
    assert box.diary == ["start", "slow", "full"]
    box.pop()
    assert box._slow  # three of four: the episode goes on
    box.pop()
    assert not box._slow
    box.push(msg(b"y" * 99))  # one byte too many
    assert box.diary[-1] == "slow"
    box.push(msg(b"y" * 98))
    assert box.pending_bytes == 100
    assert box.pending_msgs == 3
    box.pop()
    box.pop()
    assert box._slow  # few messages, but many bytes
    box.pop()
    assert not box._slow


def test_auto_unsubscribe(box: Any) -> None:
    box._max_msgs = 2
    for _ in range(4):
        box.push(msg())
    assert box.diary == ["start", "filled", "refused", "refused"]
    assert (box.pending_msgs, box._received) == (2, 2)


@pytest.mark.parametrize("kind", list(BOXES.values()), ids=list(BOXES))
def test_direct(kind: type) -> None:
    got: list[Any] = []
    box = kind(1, 1, 1, got.append)
    for _ in range(3):
        box.push(msg(b"more than a byte"))
    assert [one.sub for one in got] == [box] * 3
    assert (box.pending_msgs, box.dropped, box._received, box.diary) == (0, 0, 3, [])
    box._accepting = False
    box.push(msg())
    assert (len(got), box.diary) == (3, ["refused"])


def test_work_calls_the_handler_with_each(box: Any) -> None:
    got: list[bytes] = []
    for data in (b"1", b"2", b"3"):
        box.push(msg(data))
    assert box.work(lambda one: got.append(one.data), (Exception,)) is False
    assert got == [b"1", b"2", b"3"]
    assert box.work(lambda one: got.append(one.data), (Exception,)) is False


def test_errors_that_are_caught_and_others(box: Any) -> None:
    for _ in range(3):
        box.push(msg())
    errors = iter([ValueError("one"), KeyboardInterrupt(), KeyError("three")])

    def raises(_: Msg) -> None:
        raise next(errors)

    with pytest.raises(KeyboardInterrupt):
        box.work(raises, (Exception,))
    assert [type(error) for error in box.failures] == [ValueError]
    assert box.pending_msgs == 1
    assert box.work(raises, (Exception,)) is False
    assert [type(error) for error in box.failures] == [ValueError, KeyError]


def test_the_slice_ends(box: Any) -> None:
    for _ in range(2):
        box.push(msg())
    assert box.work(lambda _: time.sleep(SLICE * 1.2), (Exception,)) is True
    assert box.pending_msgs == 1


def test_a_handler_that_empties_the_box_or_fills_it(box: Any) -> None:
    for _ in range(3):
        box.push(msg())
    assert box.work(lambda _: box.empty(), (Exception,)) is False
    assert (box.delivered, box.pending_msgs, box.pending_bytes) == (1, 0, 0)
    again = iter([msg(b"again")])
    box.push(msg(b"first"))
    got: list[bytes] = []

    def handler(one: Msg) -> None:
        got.append(one.data)
        for more in again:
            box.push(more)

    box.work(handler, (Exception,))
    assert got == [b"first", b"again"]


def test_empty_and_shrink(box: Any) -> None:
    assert box._is_small
    assert box.empty() == 0
    box.push(msg())
    box.shrink()
    assert box.pending_msgs == 1
    assert box.empty() == 1
    assert (box.pending_msgs, box.pending_bytes) == (0, 0)
    box.push(msg())
    box.pop()
    box.shrink()
    assert box._is_small


@pytest.mark.parametrize("kind", list(BOXES.values()), ids=list(BOXES))
def test_long_queues_that_are_never_empty(kind: type) -> None:
    """What is in front and handed out is let go, in bounds, and order is kept."""
    box = kind(10**6, 10**9, 0)
    number = expected = 0
    for _ in range(40):
        for _ in range(300):
            box.push(msg(b"%d" % number))
            number += 1
        for _ in range(299):
            assert box.pop().data == b"%d" % expected
            expected += 1
    assert box.pending_msgs == number - expected == 40


class Both(RuleBasedStateMachine):
    """Whatever is done to both has the same outcome."""

    @initialize(
        limit=st.integers(1, 8),
        size=st.integers(1, 60),
        concurrency=st.integers(0, 2),
        most=st.integers(0, 30),
    )
    def begin(self, limit: int, size: int, concurrency: int, most: int) -> None:
        self.boxes = [kind(limit, size, concurrency) for kind in BOXES.values()]
        for one in self.boxes:
            one._max_msgs = most

    @rule(size=st.integers(0, 20), block=st.integers(0, 5), count=st.integers(1, 5))
    def push(self, size: int, block: int, count: int) -> None:
        for one in self.boxes:
            for _ in range(count):
                one.push(msg(b"x" * size, b"y" * block if block else None))

    @rule()
    def pop(self) -> None:
        if self.boxes[0].pending_msgs:
            first, second = (one.pop() for one in self.boxes)
            assert (first.data, first.block) == (second.data, second.block)

    @rule(fails=st.integers(0, 3))
    def work(self, fails: int) -> None:
        for one in self.boxes:
            counts = {"calls": 0}

            def handler(_: Msg, counts: dict[str, int] = counts) -> None:
                counts["calls"] += 1
                if counts["calls"] == fails:
                    raise ValueError

            one.work(handler, (Exception,))
            one._running = 0

    @rule()
    def empty(self) -> None:
        first, second = (one.empty() for one in self.boxes)
        assert first == second

    @rule(watched=st.booleans(), accepting=st.booleans())
    def turn(self, watched: bool, accepting: bool) -> None:
        for one in self.boxes:
            one._watched, one._accepting = watched, accepting
            one.shrink()

    @invariant()
    def same(self) -> None:
        if hasattr(self, "boxes"):
            facts = [
                (
                    *(one.pending_msgs, one.pending_bytes, one.delivered, one.dropped),
                    *(one._received, one._slow, one._running, one._is_small, one.diary),
                    len(one.failures),
                )
                for one in self.boxes
            ]
            assert facts[0] == facts[1]


Both.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBoth = Both.TestCase


# -- the sorter ------------------------------------------------------------------------------


@pytest.fixture(params=[PureSorter, Sorter], ids=["pure", "used"])
def sorter(request: pytest.FixtureRequest) -> Any:
    class Desk(request.param):  # type: ignore[misc]
        def __init__(self, sinks: dict[int, Any]) -> None:
            super().__init__(sinks)
            self.heard: list[Any] = []

        def on_event(self, event: Any) -> None:
            self.heard.append(event)
            if event is PONG:
                raise ValueError("a PONG")

    return Desk


class Sink:
    """Another thing than a mailbox."""

    def __init__(self) -> None:
        self.got: list[Msg] = []

    def push(self, one: Msg) -> None:
        self.got.append(one)


def test_each_to_its_own(sorter: Any) -> None:
    boxes, other = [kind(10, 1000, 0) for kind in BOXES.values()], Sink()
    desk = sorter({1: boxes[0], 2: boxes[1], 3: other})
    events = [Msg("a", sid, "", None, b"xy") for sid in (1, 2, 3, 4, 1)]
    desk.hand_on([events[0], PING, *events[1:], Msg("a", 3, "", b"h" * 12, b"z")])
    assert [one.pending_msgs for one in boxes] == [2, 1]
    assert len(other.got) == 2
    assert desk.heard == [PING]
    assert (desk.in_msgs, desk.in_bytes, desk.in_unknown) == (6, 23, 1)
    desk.hand_on(iter([events[0]]))
    desk.hand_on(())
    assert desk.in_msgs == 7


def test_sinks_that_come_and_go_meanwhile(sorter: Any) -> None:
    sinks: dict[int, Any] = {1: BOXES["used"](10, 100, 0)}
    desk = sorter(sinks)

    class Leaving(Sink):
        def push(self, one: Msg) -> None:
            super().push(one)
            sinks.clear()
            sinks[5] = self

    sinks[2] = leaving = Leaving()
    desk.hand_on([Msg("a", sid, "", None, b"") for sid in (2, 2, 1, 5)])
    assert len(leaving.got) == 2
    assert desk.in_unknown == 2


def test_other_sinks_count_from_the_next_batch_on(sorter: Any) -> None:
    first, second = Sink(), Sink()
    desk = sorter({1: first})
    desk.on_event = lambda _: setattr(desk, "_sinks", {1: second})
    desk.hand_on([msg(), PING, msg()])
    assert (len(first.got), len(second.got)) == (2, 0)
    desk.hand_on([msg()])
    assert (len(first.got), len(second.got)) == (2, 1)


def test_a_sink_that_fails_is_told(sorter: Any) -> None:
    class Failing(Sink):
        def push(self, one: Msg) -> None:
            super().push(one)
            raise ValueError("full")

    sink = Failing()
    desk = sorter({1: sink})
    with pytest.raises(ValueError, match="full"):
        desk.hand_on([msg(), msg()])
    assert len(sink.got) == 1


def test_a_sid_that_cannot_be_looked_up(sorter: Any) -> None:
    desk = sorter({})
    with pytest.raises(TypeError, match="unhashable"):
        desk.hand_on([Msg("a", [], "", None, b"")])  # type: ignore[arg-type]
    assert desk.in_unknown == 0


def test_an_event_that_fails_ends_the_batch(sorter: Any) -> None:
    box = BOXES["used"](10, 100, 0)
    desk = sorter({1: box})
    with pytest.raises(ValueError, match="a PONG"):
        desk.hand_on([msg(), PONG, msg()])
    assert box.pending_msgs == 1
