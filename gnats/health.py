"""How a connection is, in a few facts that cost no network. A value; it asks nobody.

Source: DESIGN 3; the words *live* and *ready* as Kubernetes' probes mean them.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from .status import ConnectionStatus


def calendar(age: float) -> float:
    """What the calendar said *age* seconds ago. For people to read: it jumps, so it decides
    nothing."""
    return time.time() - age


@dataclass(frozen=True)
class Health:
    """A report of one moment, made by ``Connection.health``."""

    status: ConnectionStatus  #: where the connection is in its life
    server: str | None  #: the server of the live link, without credentials
    since: float  #: when the present status began, in seconds of ``time.time()``
    last_error: str | None  #: kind and text of ``conn.last_error``
    rtt: float | None  #: seconds that the last PING over this link took, pending bytes included
    buffered: int  #: messages that wait to be written, or to be confirmed
    buffered_bytes: int  #: bytes of those
    buffer_fill: float  #: 0 to 1: at 1 the next ``publish`` waits or raises
    unhandled: int  #: messages that wait for a handler, or are in one
    abandoned: bool  #: the thread that connected has ended, and with it the loop that it needs
    outage: float  #: seconds without a link until now, while one is sought; else 0

    @property
    def is_live(self) -> bool:
        """Whether the connection can still come to a link. When it cannot, because it is closed or
        abandoned, only a new one helps: a restart of the process, say."""
        return self.status is not ConnectionStatus.closed and not self.abandoned

    @property
    def is_ready(self) -> bool:
        """Whether it has a link and takes work: connected, and not draining."""
        return self.status is ConnectionStatus.connected and not self.abandoned

    def as_dict(self) -> dict[str, Any]:
        """Every fact, with ``live`` and ``ready``, as what JSON can hold."""
        facts = dataclasses.asdict(self)
        facts.update(status=str(self.status), live=self.is_live, ready=self.is_ready)
        return facts
