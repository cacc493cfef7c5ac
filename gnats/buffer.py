"""What waits to be written, and what became of what was. Pure: no gevent, no clock, no socket.

Frames are whole: the flusher takes all pending frames as one batch, reports how many bytes the
kernel took, and when a link dies ``lost`` tells apart

- messages confirmed by a PONG behind them: settled as sent;
- messages taken by the kernel and not confirmed: uncertain, or kept and replayed when
  ``keep`` is set (``replay_unconfirmed``);
- messages not fully taken: pending again, whole, in order, before anything newer.

Control frames (SUB, UNSUB, PING, PONG) travel in the same order and die with their link.
A *position* counts the messages handed to the present link; a PING remembers the position
before it, and its PONG confirms everything up to there.

What publishing touches is in ``intake``: its fields, and the method itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .commands import is_message
from .intake import Intake

# What an outage has heaped up leaves in pieces: the first byte need not wait until 8 MiB are
# joined, and the rest of the process not either. Twice what a link's high-water mark lets pile up.
BATCH_CUT_ABOVE = 2 * 1024 * 1024
BATCH_CUT_TO = 1024 * 1024


class OutboundBuffer(Intake):
    """Pending frames, in order. Never switches."""

    __slots__ = (
        "_batch",
        "_batch_bytes",
        "_batch_messages",
        "_confirmed",
        "_controls",
        "_late",
        "_restored",
        "_taken",
        "_unconfirmed",
        "_whole",
        "_whole_end",
        "_whole_messages",
        "batches",
        "dropped",
        "keep",
        "kept",
        "offset",
        "replayed",
        "settled",
        "uncertain",
    )

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.kept = 0  # bytes of frames that were written and wait for a PONG, under ``keep``
        self.settled = 0  # sent over links that are gone, and confirmed
        self.uncertain = 0
        self.dropped = 0
        self.replayed = 0

        self.batches = 0  # taken by the flusher, over all links
        self.offset = 0  # bytes of the present batch that the kernel has taken
        self._controls = 0  # control frames in ``frames``
        self._batch: list[bytes] = []
        self._batch_messages = 0
        self._batch_bytes = 0
        self._whole = 0  # frames of the batch known to lie before ``offset``,
        self._whole_messages = 0  # messages of those,
        self._whole_end = 0  # and their bytes
        self._taken = 0  # position: messages the kernel took over this link
        self._confirmed = 0  # position: messages confirmed over this link
        self._late = 0  # messages at the head of ``frames`` that a restore put there
        self._restored = 0  # frames of any kind that a restore put there, not written yet
        # (position at its end, batch, its bytes)
        self._unconfirmed: deque[tuple[int, list[bytes], int]] = deque()

    # -- in ------------------------------------------------------------------------------

    def append_control(self, frame: bytes) -> None:
        """Queue a control frame behind everything pending, and wake the flusher."""
        self.frames.append(frame)
        self.size += len(frame)
        self._controls += 1
        if self.wake is not None:
            self.wake()

    def extend(self, frames: list[bytes], size: int, payload: int) -> None:
        """Queue message frames: *size* bytes in all, *payload* of which are headers and payload."""
        self.frames += frames
        self.size += size
        self.accepted += len(frames)
        self.accepted_bytes += payload
        if self.wake is not None:
            self.wake()

    # -- out: the flusher ----------------------------------------------------------------

    @property
    def batch(self) -> list[bytes]:
        """What ``take`` gave last."""
        return self._batch

    def take(self, whole: bool = False) -> bytes:
        """Everything pending, joined, or the first megabyte or so of it unless it must be *whole*;
        it stays held until ``written`` or ``lost``."""
        batch, self.frames = self.frames, []
        controls, self._controls = self._controls, 0
        if self.size > BATCH_CUT_ABOVE and len(batch) > 1 and not whole:
            count = max(1, len(batch) * BATCH_CUT_TO // self.size)
            batch, self.frames = batch[:count], batch[count:]
            if controls:
                all_controls = controls
                controls = count - sum(map(is_message, batch))
                self._controls = all_controls - controls
        self._batch = batch
        self.batches += 1
        self._batch_messages = len(batch) - controls
        data = b"".join(batch)
        self._batch_bytes = len(data)
        return data

    def written(self) -> None:
        """The kernel has taken the whole batch."""
        messages = self._batch_messages
        self._taken += messages
        if self._restored:
            self._restored = max(0, self._restored - len(self._batch))
        if self._late:
            self._count_late(messages)
        self.size -= self._batch_bytes
        if self.keep and messages:
            self._unconfirmed.append((self._taken, self._batch, self._batch_bytes))
            self.kept += self._batch_bytes
            self._let_go()  # the PONG may have come while the batch's tail was written
        self._forget_batch()

    # -- confirmation --------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Messages handed to this link so far, pending ones included: what a PING put behind
        them confirms."""
        return self._taken + self._batch_messages + self.pending_messages

    @property
    def unconfirmed(self) -> int:
        """Messages of whole batches taken over this link and not confirmed yet."""
        return max(0, self._taken - self._confirmed)

    def confirm(self, position: int) -> None:
        """A PONG came for a PING that stood at *position*."""
        taken = self._taken
        if position > taken:
            # The PING stood in the batch that is being written: what lies before it has left.
            # No further, lest a server that answers unasked confirm what was never written.
            self._walk()
            taken += self._whole_messages
        self._confirmed = max(self._confirmed, min(position, taken))
        self._let_go()

    def _let_go(self) -> None:
        """Forget kept batches that are confirmed as a whole."""
        while self._unconfirmed and self._unconfirmed[0][0] <= self._confirmed:
            self.kept -= self._unconfirmed.popleft()[2]

    # -- a link ends, another begins -----------------------------------------------------

    def lost(self) -> None:
        """The link is gone: settle what it took, make the rest pending again, in order."""
        self._walk()
        whole = self._whole
        self._taken += self._whole_messages
        self._count_late(self._whole_messages)
        pending = self._batch[whole:] + self.frames
        if self.keep:
            pending = self._kept(self._batch[:whole]) + pending
            self.settled += self._confirmed
        else:
            self.settled += self._confirmed
            self.uncertain += self._taken - self._confirmed
        self._unconfirmed.clear()
        self._taken = self._confirmed = 0
        self._forget_batch()
        self.frames = list(filter(is_message, pending))
        self.size = sum(map(len, self.frames))
        self.kept = 0
        self._controls = 0
        self._late = self._restored = 0
        self.wake = None

    def restore(
        self, control: list[bytes], milestone: Callable[[], None] | None = None, stride: int = 0
    ) -> None:
        """A new link begins: *control* goes out first, then what is pending.

        *milestone* queues a PING: behind every *stride* bytes of messages or so, that a link
        which dies early has confirmed some of them; with 0 behind each single frame.
        """
        pending, self.frames = self.frames, []
        pending_bytes, self.size = self.size, 0
        self._late = len(pending)
        self._controls = 0
        each = stride == 0 and milestone is not None
        for frame in control:
            self.append_control(frame)
            if each and milestone is not None:
                milestone()
        self.size += pending_bytes
        if milestone is None:
            self.frames += pending
        else:
            step = 1 if each else max(1, len(pending) * stride // max(1, pending_bytes))
            for start in range(0, len(pending), step):
                self.frames += pending[start : start + step]
                milestone()
        self._restored = len(self.frames)

    def evict(self, is_unfit: Callable[[bytes], bool]) -> list[bytes]:
        """Drop the pending messages that the next server would close the link for; returns them."""
        evicted = list(filter(is_unfit, self.frames))
        if evicted:
            self.frames = [frame for frame in self.frames if not is_unfit(frame)]
            self.size -= sum(map(len, evicted))
            self.dropped += len(evicted)
        return evicted

    def evict_first(self) -> bytes:
        """Drop the first pending message, and return it; call it after ``lost``."""
        frame = self.frames.pop(0)
        self.size -= len(frame)
        self.dropped += 1
        return frame

    def discard(self) -> int:
        """Give up everything pending; call it after ``lost``. Returns how many messages."""
        count = len(self.frames)
        self.dropped += count
        self.frames = []
        self.size = 0
        return count

    @property
    def held(self) -> int:
        """Bytes of all frames here."""
        return self.size + self.kept

    @property
    def restoring(self) -> bool:
        """Whether some of what ``restore`` put in front is not written yet."""
        return self._restored > 0

    # -- the books -----------------------------------------------------------------------

    @property
    def pending_messages(self) -> int:
        return len(self.frames) - self._controls

    @property
    def sent(self) -> int:
        """Messages written to the present link, or confirmed over an earlier one."""
        return self.settled + self._taken - (self.unconfirmed if self.keep else 0)

    @property
    def buffered(self) -> int:
        """Messages waiting to be written, or kept until a PONG."""
        kept = self.unconfirmed if self.keep else 0
        return self.pending_messages + self._batch_messages + kept

    # -- inside --------------------------------------------------------------------------

    def _count_late(self, messages: int) -> None:
        """So many more have left, those that waited for the link first."""
        late = min(self._late, messages)
        self._late -= late
        self.replayed += late

    def _walk(self) -> None:
        """Count the frames of the batch that lie wholly before ``offset``, from where the last
        walk ended: a PONG may come for every few frames of a batch that is slow to leave."""
        batch, whole, end = self._batch, self._whole, self._whole_end
        while whole < len(batch) and end + len(batch[whole]) <= self.offset:
            end += len(batch[whole])
            self._whole_messages += is_message(batch[whole])
            whole += 1
        self._whole, self._whole_end = whole, end

    def _kept(self, whole: list[bytes]) -> list[bytes]:
        """The message frames that this link took and no PONG has confirmed, in order; *whole*
        are the last of them, from the batch that was being written."""
        batches = [*(batch for _, batch, _ in self._unconfirmed), whole]
        taken = [frame for batch in batches for frame in batch if is_message(frame)]
        # The first may be confirmed in part: a flush's PING can stand in its middle.
        return taken[len(taken) - self.unconfirmed :]

    def _forget_batch(self) -> None:
        self._batch = []
        self._batch_messages = 0
        self._batch_bytes = 0
        self.offset = 0
        self._whole = self._whole_messages = self._whole_end = 0
