"""The outbound buffer: no frame lost, none doubled, and the books that prove it.

A naive model that follows every single message judges the buffer at each step of random walks.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import gnats.buffer
from gnats import commands
from gnats.buffer import OutboundBuffer
from gnats.commands import is_larger

pytestmark = pytest.mark.sansio

each_keep = pytest.mark.parametrize("keep", [False, True], ids=["at most once", "keep"])


def pub(payload: bytes, subject: bytes = b"a") -> bytes:
    return b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)


def hpub(payload: bytes) -> bytes:
    block = b"NATS/1.0\r\nA: b\r\n\r\n"
    return b"HPUB a r %d %d\r\n%b%b\r\n" % (len(block), len(block) + len(payload), block, payload)


def publish(buffer: OutboundBuffer, frame: bytes) -> None:
    """What Connection.publish does."""
    buffer.frames.append(frame)
    buffer.size += len(frame)
    buffer.accepted += 1
    if buffer.wake is not None:
        buffer.wake()


def write(buffer: OutboundBuffer) -> bytes:
    """What the flusher does."""
    data = buffer.take()
    buffer.offset = len(data)
    buffer.written()
    return data


def books(buffer: OutboundBuffer) -> dict[str, int]:
    names = ("accepted", "sent", "uncertain", "dropped", "buffered", "replayed")
    return {name: getattr(buffer, name) for name in names if getattr(buffer, name)}


def check_books(buffer: OutboundBuffer) -> None:
    total = buffer.sent + buffer.uncertain + buffer.dropped + buffer.buffered
    assert buffer.accepted == total, books(buffer)


# -- the plain road ----------------------------------------------------------------------


@each_keep
def test_new_is_empty(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    assert buffer.take() == b""
    assert books(buffer) == {}
    assert (buffer.held, buffer.position, buffer.unconfirmed) == (0, 0, 0)


@each_keep
def test_everything_is_taken_in_order_in_one_piece(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    frames = [pub(b"1"), b"SUB a 1\r\n", hpub(b"2"), b"PING\r\n", pub(b"")]
    publish(buffer, frames[0])
    buffer.append_control(frames[1])
    publish(buffer, frames[2])
    buffer.append_control(frames[3])
    publish(buffer, frames[4])
    assert buffer.pending_messages == 3
    assert buffer.held == len(b"".join(frames))
    assert buffer.take() == b"".join(frames)
    assert buffer.take() == b""


@each_keep
def test_what_comes_during_a_write_is_in_the_next_batch(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    assert buffer.take() == pub(b"1")
    publish(buffer, pub(b"2"))
    buffer.append_control(b"PING\r\n")
    assert buffer.pending_messages == 1
    assert books(buffer) == {"accepted": 2, "buffered": 2}
    buffer.written()
    assert buffer.take() == pub(b"2") + b"PING\r\n"
    check_books(buffer)


def test_what_is_written_frees_its_bytes() -> None:
    buffer = OutboundBuffer()
    publish(buffer, pub(b"1"))
    buffer.append_control(b"PING\r\n")
    buffer.take()
    publish(buffer, pub(b"22"))
    assert buffer.held == len(pub(b"1") + b"PING\r\n" + pub(b"22"))
    buffer.written()
    assert buffer.held == len(pub(b"22"))
    assert books(buffer) == {"accepted": 2, "sent": 1, "buffered": 1}


def test_kept_what_is_written_holds_its_bytes_until_confirmed() -> None:
    buffer = OutboundBuffer(keep=True)
    publish(buffer, pub(b"1"))
    position = buffer.position
    write(buffer)
    assert buffer.held == len(pub(b"1"))
    assert books(buffer) == {"accepted": 1, "buffered": 1}
    assert buffer.unconfirmed == 1
    buffer.confirm(position)
    assert buffer.held == 0
    assert books(buffer) == {"accepted": 1, "sent": 1}
    assert buffer.unconfirmed == 0


def test_kept_control_frames_alone_are_not_kept() -> None:
    buffer = OutboundBuffer(keep=True)
    buffer.append_control(b"PING\r\n")
    write(buffer)
    assert (buffer.held, buffer.unconfirmed) == (0, 0)


@each_keep
def test_wake_is_called_for_messages_and_control_frames(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    calls: list[int] = []
    buffer.wake = lambda: calls.append(1)
    buffer.append_control(b"PONG\r\n")
    assert len(calls) == 1
    buffer.wake = None
    buffer.append_control(b"PONG\r\n")
    assert len(calls) == 1


# -- positions and confirmation ----------------------------------------------------------


@each_keep
def test_position_counts_messages_only_wherever_they_are(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    buffer.append_control(b"PING\r\n")
    assert buffer.position == 1
    buffer.take()
    publish(buffer, pub(b"2"))
    assert buffer.position == 2
    buffer.written()
    assert buffer.position == 2
    write(buffer)
    publish(buffer, pub(b"3"))
    assert buffer.position == 3
    buffer.lost()
    assert buffer.position == buffer.pending_messages


@each_keep
def test_a_confirmation_never_goes_back(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    for n in range(3):
        publish(buffer, pub(b"%d" % n))
    write(buffer)
    buffer.confirm(2)
    buffer.confirm(1)
    assert buffer.unconfirmed == 1
    buffer.confirm(3)
    assert buffer.unconfirmed == 0


@each_keep
def test_a_server_that_answers_unasked_confirms_nothing_unwritten(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    buffer.confirm(1)
    buffer.take()
    buffer.confirm(1)
    buffer.offset = len(pub(b"1")) - 1
    buffer.confirm(1)
    buffer.lost()
    assert buffer.frames == [pub(b"1")]
    assert books(buffer) == {"accepted": 1, "buffered": 1}


@each_keep
def test_a_pong_in_the_middle_of_a_write_confirms_what_has_left(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    position = buffer.position
    buffer.append_control(b"PING\r\n")
    publish(buffer, pub(b"2"))
    publish(buffer, pub(b"3"))
    buffer.take()
    buffer.offset = len(pub(b"1") + b"PING\r\n" + pub(b"2")) + 3
    buffer.confirm(position)
    check_books(buffer)
    buffer.lost()
    check_books(buffer)
    if keep:
        assert buffer.frames == [pub(b"2"), pub(b"3")]
        assert books(buffer) == {"accepted": 3, "sent": 1, "buffered": 2}
    else:
        assert buffer.frames == [pub(b"3")]
        assert books(buffer) == {"accepted": 3, "sent": 1, "uncertain": 1, "buffered": 1}


def test_kept_a_batch_confirmed_before_it_is_written_out_frees_its_bytes() -> None:
    # The PONG came while the batch's last control frame was still being written. If its bytes
    # stayed, a publisher could wait for room for ever: no barrier will ask again.
    buffer = OutboundBuffer(keep=True)
    publish(buffer, pub(b"1"))
    position = buffer.position
    buffer.append_control(b"PING\r\n")
    buffer.append_control(b"SUB a 1\r\n")
    data = buffer.take()
    buffer.offset = len(data) - 2
    buffer.confirm(position)
    buffer.offset = len(data)
    buffer.written()
    assert buffer.unconfirmed == 0
    assert books(buffer) == {"accepted": 1, "sent": 1}
    assert buffer.held == 0


def test_kept_a_batch_confirmed_in_part_is_replayed_in_part() -> None:
    buffer = OutboundBuffer(keep=True)
    for n in range(4):
        publish(buffer, pub(b"%d" % n))
    write(buffer)
    for n in range(4, 6):
        publish(buffer, pub(b"%d" % n))
    write(buffer)
    buffer.confirm(3)
    publish(buffer, pub(b"6"))
    buffer.lost()
    assert buffer.frames == [pub(b"%d" % n) for n in (3, 4, 5, 6)]
    assert books(buffer) == {"accepted": 7, "sent": 3, "buffered": 4}
    assert buffer.held == 4 * len(pub(b"0"))


# -- a link that dies at every byte of a batch -------------------------------------------

_BATCH = [
    (True, pub(b"first")),
    (False, b"SUB a.b q 17\r\n"),
    (True, hpub(b"second")),
    (True, pub(b"")),
    (False, b"PING\r\n"),
    (False, b"UNSUB 17 2\r\n"),
    (True, pub(b"\r\nPING\r\nPUB x 1\r\n")),
    (False, b"PONG\r\n"),
]
_LENGTH = sum(len(frame) for _, frame in _BATCH)


def _batched(keep: bool) -> OutboundBuffer:
    buffer = OutboundBuffer(keep)
    for is_message, frame in _BATCH:
        publish(buffer, frame) if is_message else buffer.append_control(frame)
    return buffer


@each_keep
@pytest.mark.parametrize("offset", range(_LENGTH + 1))
def test_lost_at_each_byte(keep: bool, offset: int) -> None:
    buffer = _batched(keep)
    assert len(buffer.take()) == _LENGTH
    publish(buffer, pub(b"newer"))
    buffer.offset = offset
    buffer.lost()

    taken, rest, end = [], [], 0
    for is_message, frame in _BATCH:
        end += len(frame)
        if is_message:
            (taken if end <= offset else rest).append(frame)
    again = taken if keep else []
    assert buffer.frames == [*again, *rest, pub(b"newer")]
    assert buffer.held == len(b"".join(buffer.frames))
    assert buffer.uncertain == (0 if keep else len(taken))
    assert buffer.sent == 0
    assert buffer.pending_messages == len(buffer.frames)
    check_books(buffer)


@each_keep
def test_lost_before_anything_is_taken(keep: bool) -> None:
    buffer = _batched(keep)
    buffer.lost()
    assert buffer.frames == [frame for is_message, frame in _BATCH if is_message]
    assert books(buffer) == {"accepted": 4, "buffered": 4}


@each_keep
def test_lost_twice_is_lost_once(keep: bool) -> None:
    buffer = _batched(keep)
    write(buffer)
    publish(buffer, pub(b"x"))
    buffer.lost()
    once = (list(buffer.frames), buffer.held, books(buffer))
    buffer.lost()
    assert (buffer.frames, buffer.held, books(buffer)) == once


@each_keep
def test_a_late_wake_of_the_old_link_is_gone(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    buffer.wake = lambda: pytest.fail("the old flusher was woken")
    buffer.lost()
    publish(buffer, pub(b"1"))


def test_confirmed_before_the_loss_is_sent_the_rest_uncertain() -> None:
    buffer = OutboundBuffer()
    for n in range(5):
        publish(buffer, pub(b"%d" % n))
        write(buffer)
    buffer.confirm(2)
    assert buffer.unconfirmed == 3
    assert books(buffer) == {"accepted": 5, "sent": 5}
    buffer.lost()
    assert books(buffer) == {"accepted": 5, "sent": 2, "uncertain": 3}
    assert (buffer.unconfirmed, buffer.held) == (0, 0)


@each_keep
def test_positions_begin_anew_with_each_link(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    write(buffer)
    buffer.confirm(1)
    buffer.lost()
    buffer.restore([])
    publish(buffer, pub(b"2"))
    assert buffer.position == 1
    write(buffer)
    assert buffer.unconfirmed == 1
    buffer.confirm(1)
    assert buffer.unconfirmed == 0
    buffer.lost()
    assert books(buffer) == {"accepted": 2, "sent": 2}


# -- restore -----------------------------------------------------------------------------


@each_keep
def test_restore_puts_control_frames_first(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    buffer.lost()
    buffer.restore([b"SUB a 1\r\n", b"UNSUB 1 3\r\n"])
    publish(buffer, pub(b"2"))
    assert buffer.pending_messages == 2
    assert buffer.held == len(b"SUB a 1\r\nUNSUB 1 3\r\n" + pub(b"1") + pub(b"2"))
    assert write(buffer) == b"SUB a 1\r\nUNSUB 1 3\r\n" + pub(b"1") + pub(b"2")
    buffer.confirm(2)
    assert buffer.held == 0
    assert books(buffer) == {"accepted": 2, "sent": 2, "replayed": 1}


@each_keep
def test_replayed_counts_each_time_a_message_is_written_late(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    publish(buffer, pub(b"2"))
    buffer.lost()
    buffer.restore([b"SUB a 1\r\n"])
    data = buffer.take()
    assert buffer.replayed == 0
    buffer.offset = len(data) - 1  # the first has left, the second has not
    buffer.lost()
    assert buffer.replayed == 1
    buffer.restore([b"SUB a 1\r\n"])
    write(buffer)
    assert buffer.replayed == (3 if keep else 2)
    publish(buffer, pub(b"3"))
    write(buffer)
    assert buffer.replayed == (3 if keep else 2)
    check_books(buffer)


@each_keep
def test_a_restore_that_never_reached_the_wire_leaves_no_trace(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    publish(buffer, pub(b"1"))
    for _ in range(3):
        buffer.lost()
        buffer.restore([b"SUB a 1\r\n"])
    buffer.lost()
    assert buffer.frames == [pub(b"1")]
    assert buffer.held == len(pub(b"1"))
    assert books(buffer) == {"accepted": 1, "buffered": 1}


@each_keep
@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (0, b"CMPMPMPM"),  # behind every frame
        (1, b"CPMPMPM"),
        (26, b"CPPMPM"),  # a message frame has 13 bytes
        (1000, b"CPPPM"),
    ],
)
def test_milestones_of_a_restore(keep: bool, stride: int, expected: bytes) -> None:
    buffer = OutboundBuffer(keep)
    for number in range(3):
        publish(buffer, pub(b"%d" % number))
    positions = []

    def milestone() -> None:
        positions.append(buffer.position)
        buffer.append_control(b"PING\r\n")

    buffer.restore([b"SUB a 1\r\n"], milestone, stride)
    letters = {b"PUB": b"P", b"PIN": b"M", b"SUB": b"C"}
    assert b"".join(letters[frame[:3]] for frame in buffer.frames) == expected
    assert positions == [
        expected[:at].count(b"P") for at, letter in enumerate(expected) if letter == ord("M")
    ]
    assert buffer.held == sum(map(len, buffer.frames))
    assert (buffer.pending_messages, buffer.buffered) == (3, 3)
    write(buffer)
    buffer.confirm(positions[0])
    buffer.lost()
    kept = 3 - positions[0] if keep else 0
    assert (buffer.pending_messages, buffer.uncertain) == (kept, 0 if keep else 3 - positions[0])
    check_books(buffer)


# -- giving up ---------------------------------------------------------------------------


@each_keep
def test_evict_looks_at_headers_and_payload_not_at_the_frame(keep: bool) -> None:
    buffer = OutboundBuffer(keep)
    fits, over = pub(b"x" * 30), pub(b"x" * 31)
    with_headers = hpub(b"y" * 13)  # 18 bytes of headers: 31
    for frame in (fits, over, with_headers, hpub(b"y" * 12)):
        publish(buffer, frame)
    assert buffer.evict(lambda frame: is_larger(frame, 30)) == [over, with_headers]
    assert buffer.frames == [fits, hpub(b"y" * 12)]
    assert buffer.held == len(b"".join(buffer.frames))
    assert books(buffer) == {"accepted": 4, "dropped": 2, "buffered": 2}
    assert buffer.evict(lambda frame: is_larger(frame, 30)) == []


def test_evict_is_not_misled_by_a_payload() -> None:
    buffer = OutboundBuffer()
    publish(buffer, pub(b"PUB a 9999\r\n 9999", subject=b"s" * 200))
    assert buffer.evict(lambda frame: is_larger(frame, 100)) == []


def test_evict_first() -> None:
    buffer = OutboundBuffer()
    first, second = pub(b"1"), pub(b"22")
    publish(buffer, first)
    publish(buffer, second)
    buffer.lost()
    assert buffer.evict_first() == first
    assert (buffer.frames, buffer.held) == ([second], len(second))
    assert books(buffer) == {"accepted": 2, "dropped": 1, "buffered": 1}


def test_evicted_messages_do_not_make_newer_ones_late() -> None:
    buffer = OutboundBuffer()
    publish(buffer, pub(b"x" * 50))
    publish(buffer, pub(b"1"))
    buffer.lost()
    buffer.evict(lambda frame: is_larger(frame, 20))
    buffer.restore([])
    publish(buffer, pub(b"2"))
    write(buffer)
    assert books(buffer) == {"accepted": 3, "sent": 2, "dropped": 1, "replayed": 1}


@each_keep
def test_discard(keep: bool) -> None:
    buffer = _batched(keep)
    write(buffer)
    buffer.confirm(1)
    publish(buffer, pub(b"pending"))
    buffer.lost()
    assert buffer.discard() == (4 if keep else 1)
    assert (buffer.frames, buffer.held) == ([], 0)
    assert buffer.discard() == 0
    if keep:
        assert books(buffer) == {"accepted": 5, "sent": 1, "dropped": 4}
    else:
        assert books(buffer) == {"accepted": 5, "sent": 1, "uncertain": 3, "dropped": 1}


# -- random walks against a naive model --------------------------------------------------


class Frame(NamedTuple):
    wire: bytes
    is_message: bool


class Books(RuleBasedStateMachine):
    """A buffer, and beside it lists of single frames that know what became of each."""

    keep = False
    cut = False

    @initialize()
    def begin(self) -> None:
        self.buffer = OutboundBuffer(self.keep)
        self.count = 0
        self.linked = True
        self.pending: list[Frame] = []
        self.batch: list[Frame] | None = None
        self.offset = 0
        self.taken: list[list[Frame]] = []  # batches of this link, whole
        self.confirmed = 0  # messages
        self.settled = self.uncertain = self.dropped = self.replayed = 0
        self.late: set[bytes] = set()
        self.pings: list[int] = []
        self.restored = 0  # frames of the last restore that are not written yet

    # what the model knows

    @property
    def left(self) -> list[Frame]:
        """Frames of the batch that the kernel has wholly taken."""
        frames, end = [], 0
        for frame in self.batch or []:
            end += len(frame.wire)
            if end <= self.offset:
                frames.append(frame)
        return frames

    @staticmethod
    def messages(frames: list[Frame]) -> list[Frame]:
        return [frame for frame in frames if frame.is_message]

    @property
    def written_messages(self) -> list[Frame]:
        return self.messages([frame for batch in self.taken for frame in batch])

    def count_late(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.wire in self.late:
                self.late.discard(frame.wire)
                self.replayed += 1

    # what happens

    @rule(size=st.integers(0, 30), headers=st.booleans())
    def publish(self, size: int, headers: bool) -> None:
        self.count += 1
        payload = b"%d:" % self.count + b"x" * size
        frame = Frame(hpub(payload) if headers else pub(payload), True)
        publish(self.buffer, frame.wire)
        self.pending.append(frame)

    @precondition(lambda self: self.linked)
    @rule(frame=st.sampled_from([b"SUB a 1\r\n", b"UNSUB 1\r\n", b"PONG\r\n"]))
    def control(self, frame: bytes) -> None:
        self.buffer.append_control(frame)
        self.pending.append(Frame(frame, False))

    @precondition(lambda self: self.linked)
    @rule()
    def ping(self) -> None:
        position = self.buffer.position
        everywhere = [*self.written_messages, *(self.batch or []), *self.pending]
        assert position == len(self.messages(everywhere))
        self.pings.append(position)
        self.buffer.append_control(b"PING\r\n")
        self.pending.append(Frame(b"PING\r\n", False))

    @precondition(lambda self: self.pings)
    @rule()
    def pong(self) -> None:
        """Often one that the server was not asked for yet: it may be a liar."""
        position = self.pings.pop(0)
        self.buffer.confirm(position)
        has_left = len(self.written_messages) + len(self.messages(self.left))
        self.confirmed = max(self.confirmed, min(position, has_left))

    @precondition(lambda self: self.linked and self.batch is None)
    @rule()
    def take(self) -> None:
        data = self.buffer.take()
        taken = 0
        while sum(len(frame.wire) for frame in self.pending[:taken]) < len(data):
            taken += 1
        self.batch, self.pending, self.offset = self.pending[:taken], self.pending[taken:], 0
        assert data == b"".join(frame.wire for frame in self.batch)
        assert not self.pending or (self.batch and self.cut)

    @precondition(lambda self: self.batch is not None)
    @rule(share=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    def send(self, share: float) -> None:
        length = sum(len(frame.wire) for frame in self.batch or [])
        self.offset += round((length - self.offset) * share)
        self.buffer.offset = self.offset

    @precondition(lambda self: self.batch is not None)
    @rule()
    def written(self) -> None:
        assert self.batch is not None
        self.buffer.offset = sum(len(frame.wire) for frame in self.batch)
        self.buffer.written()
        self.count_late(self.batch)
        self.restored = max(0, self.restored - len(self.batch))
        assert self.buffer.restoring == (self.restored > 0)
        self.taken.append(self.batch)
        self.batch, self.offset = None, 0

    @precondition(lambda self: self.linked)
    @rule()
    def lost(self) -> None:
        self.buffer.lost()
        left = self.left
        self.count_late(left)
        link = self.written_messages + self.messages(left)
        rest = (self.batch or [])[len(left) :] + self.pending
        self.settled += self.confirmed
        unconfirmed = link[self.confirmed :]
        if self.keep:
            rest = unconfirmed + rest
        else:
            self.uncertain += len(unconfirmed)
        self.pending = self.messages(rest)
        self.batch, self.offset, self.taken, self.confirmed = None, 0, [], 0
        self.pings, self.late, self.linked, self.restored = [], set(), False, 0
        assert self.buffer.frames == [frame.wire for frame in self.pending]

    @precondition(lambda self: not self.linked)
    @rule(subscriptions=st.integers(0, 3), stride=st.sampled_from([None, 0, 30, 100]))
    def restore(self, subscriptions: int, stride: int | None) -> None:
        frames = [b"SUB s %d\r\n" % n for n in range(subscriptions)]
        pending, self.pending = self.pending, []
        self.linked = True
        told = []

        def milestone() -> None:
            position = self.buffer.position
            assert position == sum(map(commands.is_message, self.buffer.frames))
            told.append((len(self.buffer.frames), position))
            self.buffer.append_control(b"PING\r\n")

        if stride is None:
            self.buffer.restore(list(frames))
        else:
            self.buffer.restore(list(frames), milestone, stride)
        self.late = {frame.wire for frame in pending}
        rest = [Frame(frame, False) for frame in frames] + pending
        for at, position in told:
            while len(self.pending) < at:
                self.pending.append(rest.pop(0))
            self.pending.append(Frame(b"PING\r\n", False))
            self.pings.append(position)
        self.pending += rest
        assert self.buffer.frames == [frame.wire for frame in self.pending]
        self.restored = len(self.pending)

    @precondition(lambda self: not self.linked)
    @rule(max_payload=st.integers(1, 60))
    def evict(self, max_payload: int) -> None:
        def size(frame: Frame) -> int:
            _, _, rest = frame.wire.partition(b"\r\n")
            return len(rest) - 2

        larger = [frame.wire for frame in self.pending if size(frame) > max_payload]
        assert self.buffer.evict(lambda frame: is_larger(frame, max_payload)) == larger
        self.pending = [frame for frame in self.pending if size(frame) <= max_payload]
        self.dropped += len(larger)

    @precondition(lambda self: not self.linked)
    @rule()
    def discard(self) -> None:
        assert self.buffer.discard() == len(self.pending)
        self.dropped += len(self.pending)
        self.pending = []

    # what must hold

    @invariant()
    def the_books_close(self) -> None:
        check_books(self.buffer)

    @invariant()
    def the_books_are_true(self) -> None:
        written = len(self.written_messages)
        unconfirmed = max(0, written - self.confirmed)
        waiting = len(self.messages([*(self.batch or []), *self.pending]))
        kept = unconfirmed if self.keep else 0
        assert self.buffer.accepted == self.count
        assert self.buffer.sent == self.settled + written - kept
        assert self.buffer.buffered == waiting + kept
        assert self.buffer.uncertain == self.uncertain
        assert self.buffer.dropped == self.dropped
        assert self.buffer.replayed == self.replayed
        assert self.buffer.unconfirmed == unconfirmed
        assert self.buffer.pending_messages == len(self.messages(self.pending))

    @invariant()
    def the_size_is_of_what_is_held(self) -> None:
        held = [*(self.batch or []), *self.pending]
        if self.keep:  # a batch is let go when all its messages are confirmed
            messages = 0
            for batch in self.taken:
                messages += len(self.messages(batch))
                if self.messages(batch) and messages > self.confirmed:
                    held += batch
        assert self.buffer.held == sum(len(frame.wire) for frame in held)


class KeepingBooks(Books):
    keep = True


class _Cut:
    """A large outage in small: batches are cut at 60 bytes."""

    cut = True

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(gnats.buffer, "BATCH_CUT_ABOVE", 100)
        self._patch.setattr(gnats.buffer, "BATCH_CUT_TO", 60)

    def teardown(self) -> None:
        self._patch.undo()


class CutBooks(_Cut, Books):
    pass


class CutKeepingBooks(_Cut, KeepingBooks):
    pass


_walk = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestBooks = Books.TestCase
TestBooks.settings = _walk
TestKeepingBooks = KeepingBooks.TestCase
TestKeepingBooks.settings = _walk
TestCutBooks = CutBooks.TestCase
TestCutBooks.settings = _walk
TestCutKeepingBooks = CutKeepingBooks.TestCase
TestCutKeepingBooks.settings = _walk
