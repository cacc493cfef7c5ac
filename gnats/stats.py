"""The books: what was published and received, and what became of it. Counters only.

They close at every moment: ``accepted == sent + uncertain + dropped + buffered``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """A snapshot of one connection's counters since it was made; bytes where it says so."""

    accepted: int  #: messages that ``publish`` took
    sent: int  #: of those: written to a link that is alive, or confirmed by a PONG
    uncertain: int  #: written to a link that died before a PONG; may or may not have arrived
    dropped: int  #: given up with the connection, or refused by the server it came back to
    buffered: int  #: still waiting to be written (or, kept for replay, to be confirmed)
    buffered_bytes: int  #: bytes of those frames
    replayed: int  #: messages written late or again, after an outage
    in_msgs: int  #: messages received
    in_bytes: int  #: payload and header bytes received
    out_msgs: int  #: the same as ``accepted``, under nats-py's name
    out_bytes: int  #: payload and header bytes of the accepted messages
    #: received messages that no queue had room for, that came too late for their request or
    #: subscription, or that a close left behind
    in_dropped: int
    attempts: int  #: attempts to connect to a server, the first one included
    connects: int  #: links that came up
    reconnects: int  #: links that came up after a loss
    disconnects: int  #: links that were lost
    errors_received: int  #: -ERR lines of the server
    pings_sent: int  #: PINGs written, keepalive, flush and confirmation barriers together
