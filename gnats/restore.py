"""What a new link is told first: every subscription, then what was pending. It never switches.

It also finds the frame that servers close the link for. Sent again with every restore, such a
frame would end every link for ever: a subject longer than the server's control line, a kept
message that it cannot parse. So the restore behind a link that the server ended over a frame of
ours is *careful*: a PING follows each frame, and what no PONG confirmed first is the suspect.
Found so twice, it is given up and told; everything else lives on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from . import commands
from .buffer import OutboundBuffer
from .errors import Error, FrameRefusedError, HeaderError, MaxPayloadError, ServerError
from .info import ServerInfo
from .message import Msg
from .move import Move
from .parser import Event
from .pings import Pings
from .refusals import blames_a_frame
from .registry import Subscriptions
from .subscription import Subscription

logger = logging.getLogger("gnats")

# Bytes of kept messages between two PINGs of a replay: a link that never lives long enough for
# all of them must confirm some, or the same ones would be sent for ever. A thousandth of a PING
# per byte costs nothing; 64 KiB pass in half a second on a line of one megabit.
STRIDE = 64 * 1024
# Found at fault so often in a row, a frame is given up. Once may be a broken line between us.
PROOFS = 2


class Restore:
    """Fills the buffer for each new link, and learns from how it ended."""

    def __init__(
        self,
        buffer: OutboundBuffer,
        subscriptions: Subscriptions,
        report: Callable[[Exception], None],
    ) -> None:
        self._buffer = buffer
        self._subscriptions = subscriptions
        self._report = report
        self._careful = False
        self._steps: list[Subscription] = []  # one per control frame of a careful restore
        self._due = 0  # milestones of a careful restore
        self._passed = 0
        self._suspect: object = None
        self._proofs = 0

    def fill(self, info: ServerInfo, pings: Pings) -> None:
        """Queue all that the new link must be told, in order."""
        self._evict(info)
        told = self._subscriptions.to_restore()
        control = [frame for _, frames in told for frame in frames]
        if self._careful:
            self._steps = [sub for sub, frames in told for _ in frames]
            self._due = self._passed = 0
            self._buffer.restore(control, lambda: self._milestone(pings))
        elif self._buffer.keep:
            self._buffer.restore(control, pings.ping, STRIDE)
        else:
            self._buffer.restore(control)

    def take_over(self, info: ServerInfo, move: Move, unread: list[Event]) -> None:
        """The same for a link that was subscribed before: what has changed since is told."""
        self._evict(info)
        delivered = move.delivered()
        new = Counter(event.sid for event in unread if isinstance(event, Msg))
        control = []
        live = {sub.sid: sub for sub in self._subscriptions.to_keep()}
        for sid in move.told - live.keys():
            control.append(commands.unsub(sid))
        for sid, sub in live.items():
            if sid in move.told:
                control += sub.limit_frames(delivered[sid], new[sid])
            else:
                control += sub.frames()
        self._buffer.restore(control)

    def ended(self, cause: Exception) -> None:
        """A link has ended, and the buffer is settled."""
        if blames_a_frame(cause):
            if self._passed < self._due:
                assert isinstance(cause, ServerError)
                self._accuse(cause)
            self._careful = True
        self._due = self._passed = 0

    # -- inside --------------------------------------------------------------------------

    def _milestone(self, pings: Pings) -> None:
        self._due += 1
        pings.ping(self._on_pong)

    def _on_pong(self, arrived: bool) -> None:
        self._passed += arrived
        if self._passed == self._due:
            self._careful = False  # the server took it all: whatever it was is no more
            self._suspect = None
            self._steps = []

    def _accuse(self, cause: ServerError) -> None:
        suspect = self._first_unconfirmed()
        self._proofs = self._proofs + 1 if suspect is self._suspect else 1
        self._suspect = suspect
        if suspect is None or self._proofs < PROOFS:
            return
        self._suspect = None
        error = self._give_up(suspect, cause.text)
        logger.warning("gnats: %s", error)
        self._report(error)

    def _first_unconfirmed(self) -> object:
        if self._passed < len(self._steps):
            return self._steps[self._passed]
        # Without ``keep`` what the kernel took is not sent again, so nothing of it can be at fault.
        return self._buffer.frames[0] if self._buffer.keep and self._buffer.frames else None

    def _give_up(self, suspect: object, text: str) -> Error:
        if isinstance(suspect, Subscription):
            size = max(map(len, suspect.frames()))
            error = FrameRefusedError(text, "subscription", suspect.subject, size)
            suspect.end(error)
            return error
        frame = self._buffer.evict_first()
        return FrameRefusedError(text, "publish", commands.message_subject(frame), len(frame))

    def _evict(self, info: ServerInfo) -> None:
        """Messages that this server would close the link for cannot be replayed to it."""
        largest = info.max_payload
        # Looked at as a whole first: as a rule none is unfit, and there may be many.
        if max(map(len, self._buffer.frames), default=0) > largest:
            for frame in self._buffer.evict(lambda frame: commands.is_larger(frame, largest)):
                subject = commands.message_subject(frame)
                self._report(MaxPayloadError(commands.message_size(frame), largest, subject))
        if not info.headers:
            for frame in self._buffer.evict(commands.has_headers):
                subject = commands.message_subject(frame)
                self._report(
                    HeaderError(
                        f"a message to {subject!r} was given up: it has headers, and the server "
                        f"that we came back to ({info.version}) takes none"
                    )
                )
