"""flush and rtt: a PING behind all that is pending, and the wait for its PONG.

Source: DESIGN 3.5. A PONG proves that the server has processed everything before its PING.
"""

from __future__ import annotations

import time

from .backoff import Deadline
from .errors import (
    ConnectionReconnectingError,
    FlushInterruptedError,
    TimeoutError,
)
from .outbox import Outbox
from .reconnector import Reconnector
from .session import Session
from .status import ConnectionStatus
from .waiting import Park

# No link will come any more; after "disconnected" only by another connect().
_OVER = (ConnectionStatus.closed, ConnectionStatus.disconnected)


class RoundTrips:
    """Round trips over whatever link there is. Every method switches."""

    def __init__(self, reconnector: Reconnector, outbox: Outbox) -> None:
        self._reconnector = reconnector
        self._outbox = outbox

    def flush(self, deadline: Deadline) -> None:
        """A round trip; while there is no link it waits for one first. A loss under it raises
        FlushInterruptedError, but under ``replay_unconfirmed`` it begins again behind the
        replay."""
        while True:
            self.await_link("flush", deadline)
            try:
                self.once("flush", deadline)
                return
            except ConnectionReconnectingError:
                continue  # lost again before the PING was queued
            except FlushInterruptedError:
                if not self._outbox.buffer.keep:
                    raise

    def settle(self, deadline: Deadline) -> None:
        """A flush, behind which all has come that the server had for us, or that two servers had
        in a move. Raises TimeoutError, FlushInterruptedError, ConnectionReconnectingError,
        ConnectionClosedError."""
        while self._reconnector.is_moving:
            if not self._reconnector.status_changed.wait(deadline.remaining()):
                raise TimeoutError(f"no link within {deadline.seconds} s", deadline.seconds)
        self.once("flush", deadline)

    def once(self, operation: str, deadline: Deadline) -> float:
        """Seconds that one PING takes over the present link, or over the next one when a move
        came in between. Raises TimeoutError, FlushInterruptedError, ConnectionReconnectingError,
        ConnectionClosedError."""
        while True:
            session = self._reconnector.session
            if self._reconnector.is_closing:
                raise self._reconnector.gone()
            if session is None or not self._outbox.linked:
                raise ConnectionReconnectingError(operation)
            began = time.monotonic()
            if self._answered(session, operation, deadline):
                return time.monotonic() - began
            if self._reconnector.is_closing:
                raise self._reconnector.gone()
            if not session.left:
                raise FlushInterruptedError(f"{operation}: the link was lost before its PONG")

    def _answered(self, session: Session, operation: str, deadline: Deadline) -> bool:
        """Whether the PONG came; False when the link ended first. Raises TimeoutError."""
        answers: list[bool] = []
        park = Park()

        def on_pong(arrived: bool) -> None:
            answers.append(arrived)
            park.wake()

        self._outbox.pour()  # what another thread has published before is before the PING
        session.pings.ping(on_pong)
        park.wait(deadline.remaining())
        if not answers:
            raise TimeoutError(
                f"{operation}: no PONG within {deadline.seconds} s", deadline.seconds
            )
        return answers[0]

    def await_link(self, operation: str, deadline: Deadline) -> None:
        """Until there is a link. Raises TimeoutError, ConnectionClosedError."""
        while not self._outbox.linked:
            if self._reconnector.status.current in _OVER:
                raise self._reconnector.gone()
            if not self._reconnector.status_changed.wait(deadline.remaining()):
                raise TimeoutError(
                    f"{operation}: no link within {deadline.seconds} s", deadline.seconds
                )
