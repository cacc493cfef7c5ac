"""The first steps of a message on its way out: from ``publish`` into the buffer.

The hot path of the house, spelled out: each call less is a tenth of its time. What happens seldom
(a new subject, headers, no room, another thread) is left to the connection. A compiled twin
replaces it (``_intake.pyx``). Never switches, but where the connection makes room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import commands, twin
from .backoff import Deadline
from .commands import CRLF, SIZES
from .errors import MaxPayloadError
from .headers import HeaderSource
from .info import MAX_PAYLOAD_CEILING
from .payload import Payload, to_bytes
from .subjects import MAX_NAME, check_control_line, encode_subject

# Encoded heads of subjects kept, so that a repeated subject is checked and encoded once.
HEADS_KEPT = 8192


class Intake:
    """The end of the buffer where frames go in."""

    __slots__ = (
        "accepted",
        "accepted_bytes",
        "frames",
        "limit",
        "max_payload",
        "size",
        "wake",
    )

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size = 0  # bytes of frames to be written: pending, and in the batch
        self.limit = -1  # a message that would take ``size`` over this takes the slow road
        self.max_payload = MAX_PAYLOAD_CEILING  # bytes; what the server says, once it has
        self.accepted = 0
        self.accepted_bytes = 0
        #: Called once, then None again: the flusher sets it when it has nothing to do.
        self.wake: Callable[[], None] | None = None


class Publisher:
    """What a connection publishes with."""

    def __init__(self, home: Any) -> None:
        self._buffer = Intake()
        # A thread-local, where only the connection's own thread finds the encoded heads of
        # subjects: so publish sees that it is called by another one, at half the cost of asking
        # which thread it is.
        self._home = home

    # -- what a connection adds --------------------------------------------------------------

    @property
    def _is_elsewhere(self) -> bool:
        """Whether it is another thread's than the caller's."""
        raise NotImplementedError

    def _hand_over(
        self, subject: str, payload: Payload, reply: str, headers: HeaderSource | None
    ) -> None:
        """Publish, from another thread."""
        raise NotImplementedError

    def _full_frame(
        self, subject: str, head: bytes, payload: bytes, reply: str, headers: HeaderSource | None
    ) -> tuple[bytes, int]:
        """A frame with a reply or headers, and its size as the server counts it."""
        raise NotImplementedError

    def _make_room(self, length: int, deadline: Deadline | None) -> None:
        """Return when *length* more bytes may be appended; for a request, with its *deadline*."""
        raise NotImplementedError

    @property
    def _is_ready(self) -> bool:
        """Whether the caller's thread may put a message in at once, as far as is known here."""
        return self._buffer.limit >= 0 and hasattr(self._home, "heads")

    # -- publish -----------------------------------------------------------------------------

    def _move_in(self, home: Any) -> None:
        """The calling thread is its own from now on; *home*: a new thread-local."""
        self._home = home
        home.heads = {}

    @property
    def _known_heads(self) -> dict[str, bytes]:
        heads: dict[str, bytes] = self._home.__dict__.setdefault("heads", {})
        return heads

    def publish(
        self,
        subject: str,
        payload: Payload = b"",
        reply: str = "",
        headers: HeaderSource | None = None,
    ) -> None:
        """Publish one message: bytes-like, or str as UTF-8. Returns once it is accepted.

        Never switches below the high-water mark (1 MiB of unsent frames), and is legal in a hub
        callback there. Above it waits for room, at most ``publish_timeout`` seconds. While
        there is no link it appends up to ``reconnect_buf_size`` bytes. Another thread than the
        connection's hands the message over, in its own order; where it has to wait for room it
        blocks, as a thread does. Raises OutboundBufferLimitError (nothing of the message is kept),
        BadSubjectError, HeaderError, MaxPayloadError, TypeError for another payload,
        ConnectionClosedError, ConnectionDrainingError.
        """
        try:
            head = self._home.heads[subject]
        except (KeyError, TypeError, AttributeError):
            if self._is_elsewhere:
                self._hand_over(subject, payload, reply, headers)
                return
            head = self._head(subject)
        if payload.__class__ is not bytes:
            payload = to_bytes(payload)
        size = len(payload)
        if reply != "" or headers is not None:
            frame, size = self._full_frame(subject, head, payload, reply, headers)
        else:
            frame = b"".join((head, SIZES[size], payload, CRLF))
        # From here on the same as _accept(), which costs a call.
        buffer = self._buffer
        if size > buffer.max_payload:
            self._check_size(size, subject)
        length = len(frame)
        if buffer.size + length > buffer.limit:
            self._make_room(length, None)
            self._check_size(size, subject)  # it may be another server by now
        buffer.frames.append(frame)
        buffer.size += length
        buffer.accepted += 1
        buffer.accepted_bytes += size
        if buffer.wake is not None:
            buffer.wake()

    def _ask(
        self,
        subject: str,
        payload: Payload,
        reply: str,
        headers: HeaderSource | None,
        deadline: Deadline,
    ) -> None:
        """Publish with a reply subject of our own making, which needs no check; in the
        connection's own thread."""
        try:
            head = self._home.heads[subject]
        except (KeyError, TypeError):
            head = self._head(subject)
        data = payload if payload.__class__ is bytes else to_bytes(payload)
        if headers is not None:
            frame, size = self._full_frame(subject, head, data, reply, headers)
        else:
            wire, size = reply.encode(), len(data)
            if len(head) + len(wire) > MAX_NAME:
                check_control_line(head, wire)
            frame = commands.pub(head, wire, data)
        self._accept(frame, size, subject, deadline)

    def _accept(self, frame: bytes, size: int, subject: str, deadline: Deadline | None) -> None:
        """Put one message frame into the buffer; *size* is its headers and payload. For a request
        it waits for room no longer than *deadline*, nor than ``publish_timeout``."""
        buffer = self._buffer
        if size > buffer.max_payload:
            self._check_size(size, subject)
        length = len(frame)
        if buffer.size + length > buffer.limit:
            self._make_room(length, deadline)
            self._check_size(size, subject)  # it may be another server by now
        buffer.frames.append(frame)
        buffer.size += length
        buffer.accepted += 1
        buffer.accepted_bytes += size
        if buffer.wake is not None:
            buffer.wake()

    def _check_size(self, size: int, subject: str) -> None:
        if size > self._buffer.max_payload:
            raise MaxPayloadError(size, self._buffer.max_payload, subject)

    def _head(self, subject: str) -> bytes:
        """The head of a subject that is not known yet. Raises BadSubjectError."""
        head = commands.pub_head(encode_subject(subject))
        heads = self._known_heads
        if len(heads) >= HEADS_KEPT:
            heads.clear()
        heads[subject] = head
        return head


#: The references, whichever twin is in use.
PureIntake, PurePublisher = Intake, Publisher
if not TYPE_CHECKING and twin.compiled:
    from ._intake import Intake, Publisher
