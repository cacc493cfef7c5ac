"""A connection as a command wants it: by the flags, told of in words, and left in good order."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.flags import options, servers
from gnats.cli.notices import plural, say
from gnats.cli.output import Output

_DRAIN = 10.0  # seconds for what is under way, when a command ends
_SILENCE = 5.0  # seconds without a confirmation after which that is told


class Deadline:
    """What is left of *timeout* seconds from now on; of None, None."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    def seconds(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - monotonic())


class Refusals:
    """What the server has refused us on this connection: to publish, to subscribe."""

    def __init__(self) -> None:
        self.happened = Event()

    def on_error(self, _conn: gnats.Connection, error: Exception) -> None:
        """Say what nobody else is told. Of failed attempts to connect the notices say enough."""
        if isinstance(error, gnats.errors.HandlerError):
            if isinstance(error.__cause__, (exits.OutputClosed, exits.OutputFailed)):
                return
        elif not isinstance(error, (gnats.errors.ServerError, gnats.errors.SlowConsumerError)):
            return
        say(f"gnats: {error}", "error")
        if isinstance(error, gnats.errors.PermissionsError):
            self.happened.set()

    def judge(self, status: int) -> int:
        """*status*, unless something was refused."""
        return exits.FAILED if self.happened.is_set() else status


@contextlib.contextmanager
def connected(
    arguments: argparse.Namespace,
    refusals: Refusals | None = None,
    drains: bool = False,
    patience: float | None = None,
    **more: Any,
) -> Iterator[gnats.Connection]:
    """A connection by the flags that tells of its losses and returns, and never gives up.

    It is closed when it is left; with *drains*, or interrupted, what is under way is finished
    before, and a second signal during that closes it. *patience* bounds the wait of ``--retry``, in
    seconds. Raises CommandError where the block waits when the connection has ended by itself; and
    at the end, when messages were lost on this side.
    """
    told = {} if getattr(arguments, "quiet", False) else _notices()
    end = _End()
    told.update(error_cb=(refusals or Refusals()).on_error, closed_cb=end.came)
    fields: dict[str, Any] = {
        "max_reconnect": -1,
        "reconnect_wait": 0.5,
        "reconnect_max_wait": 2.0,
        "ping_interval": 10.0,  # a server that stands still is left after 30 seconds
        "drain_timeout": _DRAIN,
    }
    fields = {**fields, **told, **options(arguments), **more}
    try:
        conn = gnats.connect(servers(arguments), **fields)
    except BaseException:
        end.is_wanted = True
        raise
    try:
        if not conn.is_connected:  # --retry, and no server yet
            say(f"no server at {_public(conn)} yet: waiting for one", "lost")
            conn.wait_for_status("connected", patience)
        yield conn
    except exits.Interrupted:
        end.is_wanted = True
        _tell(_leave(conn, drains=True))
        raise
    except BaseException:  # it has failed: there is nothing more to wait for
        end.is_wanted = True
        _tell(_lost(conn))
        raise
    end.is_wanted = True
    lost = _leave(conn, drains)
    if lost:
        raise exits.CommandError("; ".join(lost), exits.INCOMPLETE)


class _End:
    """The end of a connection that we have not asked for ends the command, too."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._main = gevent.getcurrent()

    def came(self, conn: gnats.Connection) -> None:
        cause = conn.last_error

        def throw() -> None:
            if not self.is_wanted:
                self._main.throw(exits.CommandError(f"the connection has ended: {cause}"))

        # From the loop: there the main greenlet waits, for whatever it is.
        gevent.get_hub().loop.run_callback(throw)


def _public(conn: gnats.Connection) -> str:
    return ", ".join(str(url) for url in conn.servers)  # without credentials


def _leave(conn: gnats.Connection, drains: bool) -> list[str]:
    """Finish what is here while there is a link; without one there is nothing to wait for. What is
    lost, in words."""
    lost: list[str] = []
    try:
        if drains and conn.is_connected:
            conn.drain()
    except (gnats.errors.DrainTimeoutError, gnats.errors.ConnectionClosedError) as exc:
        lost.append(str(exc))
    except exits.Interrupted:  # once more
        _tell(_lost(conn))
        raise
    return lost + _lost(conn)


def _lost(conn: gnats.Connection) -> list[str]:
    """Close; what was accepted and could not be sent, received and not shown, in words."""
    conn.close()
    stats, lost = conn.stats, []
    if stats.dropped:
        lost.append(f"{plural(stats.dropped, 'message')} could not be sent")
    if stats.in_dropped:
        lost.append(f"{plural(stats.in_dropped, 'received message')} dropped")
    return lost


def _tell(lost: list[str]) -> None:
    for words in lost:
        say(f"gnats: {words}", "error")


def _notices() -> dict[str, Any]:
    """Callbacks that tell of losses and returns."""

    def lost(conn: gnats.Connection) -> None:
        if not conn.is_draining and not conn.is_closed:
            say(f"lost the server: {conn.last_error}; looking for one", "lost")

    def back(conn: gnats.Connection) -> None:
        say(f"back, at {conn.connected_url}", "back")

    def leaving(conn: gnats.Connection) -> None:
        say(f"{conn.connected_url} is going away: moving to another server", "lost")

    return {"disconnected_cb": lost, "reconnected_cb": back, "lame_duck_cb": leaving}


def patiently(conn: gnats.Connection, send: Callable[..., Any], *what: Any) -> None:
    """*send* it; during an outage, when there is no more room, wait for a server. Switches."""
    while True:
        try:
            send(*what)
            return
        except gnats.errors.OutboundBufferLimitError:
            conn.wait_for_status("connected")


def confirm(conn: gnats.Connection, timeout: float | None = None) -> None:
    """Until the server has processed all that was said before, through outages. Switches.

    Raises TimeoutError after *timeout* seconds.
    """
    deadline, told = Deadline(timeout), False
    while True:
        left = deadline.seconds()
        wait = _SILENCE if left is None else min(_SILENCE, left)
        try:
            conn.flush(left if told else wait)
            return
        except gnats.errors.FlushInterruptedError:
            continue  # the link was lost meanwhile: ask the next server
        except gnats.errors.TimeoutError:
            if deadline.seconds() == 0:
                raise
            if conn.is_connected and not told:
                say(f"the server has not confirmed for {_SILENCE:g} s", "lost")
            told = True


def listen(
    arguments: argparse.Namespace,
    over: Event,
    refusals: Refusals,
    output: Output,
    timeout: float | None = None,
) -> int:
    """Until it is *over*, refused, or interrupted, *timeout* seconds at most; the exit status.

    Switches. Raises what ``output.check`` does, and Interrupted when ``--count`` has not come to
    its end.
    """
    try:
        gevent.wait((over, refusals.happened, output.closed), timeout=timeout, count=1)
    except exits.Interrupted:
        if arguments.count:
            raise
    output.check()
    if refusals.happened.is_set():
        return exits.FAILED
    return exits.TIME_IS_UP if arguments.count and not over.is_set() else exits.DONE
