"""A connection as a command wants it: by the flags, told of in words, and left in good order."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.flags import options, servers
from gnats.cli.notices import plural, say
from gnats.cli.output import Output


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


@contextlib.contextmanager
def connected(
    arguments: argparse.Namespace, refusals: Refusals | None = None, **more: Any
) -> Iterator[gnats.Connection]:
    """A connection by the flags that tells of its losses and returns, never gives up, and drains
    when it is left, interrupted or not. A second signal during that closes it."""
    told = {} if getattr(arguments, "quiet", False) else _notices()
    told["error_cb"] = (refusals or Refusals()).on_error
    fields: dict[str, Any] = {
        "max_reconnect": -1,
        "reconnect_wait": 0.5,
        "reconnect_max_wait": 2.0,
        "ping_interval": 10.0,  # a server that stands still is left after 30 seconds
    }
    conn = gnats.connect(servers(arguments), **{**fields, **told, **options(arguments), **more})
    try:
        if not conn.is_connected:  # --retry, and no server yet
            say(f"no server at {_public(conn)} yet: waiting for one", "lost")
            conn.wait_for_status("connected")
        yield conn
    except exits.Interrupted:
        _leave(conn)
        raise
    except BaseException:  # it has failed: there is nothing more to wait for
        _close(conn)
        raise
    _leave(conn)


def _public(conn: gnats.Connection) -> str:
    return ", ".join(str(url) for url in conn.servers)  # without credentials


def _leave(conn: gnats.Connection) -> None:
    """Finish what is here while there is a link; without one there is nothing to wait for."""
    try:
        if conn.is_connected:
            conn.drain()
    except (gnats.errors.DrainTimeoutError, gnats.errors.ConnectionClosedError) as exc:
        say(f"gnats: {exc}", "error")
    finally:
        _close(conn)


def _close(conn: gnats.Connection) -> None:
    """Close, and tell what was accepted and could not be sent."""
    conn.close()
    dropped = conn.stats.dropped
    if dropped:
        say(f"gnats: {plural(dropped, 'message')} could not be sent", "error")


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


def confirm(conn: gnats.Connection, timeout: float | None = None) -> None:
    """Until the server has processed all that was said before, through outages. Switches.

    Raises TimeoutError after *timeout* seconds.
    """
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        try:
            conn.flush(None if deadline is None else max(0.0, deadline - monotonic()))
            return
        except gnats.errors.FlushInterruptedError:
            continue  # the link was lost meanwhile: ask the next server


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
