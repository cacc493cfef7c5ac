"""The play: three servers, one application, and what is done to the servers, act by act.

The application publishes and reads over one connection: its subscriptions are back before the first
kept message goes out. Readers in other processes would miss what is sent before they are back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket

import gnats
from gnats.cli.demo.record import Record
from gnats.testing import NatsCluster, NatsServer, wait_until

SUBJECT = "demo.numbers"
QUESTION = "demo.question"
PADDING = b" " * 100  # bytes: so that the buffer can be seen to fill
BUFFER = 512 * 1024  # bytes: what the longest outage fills by half, at the default rate
WAIT = 0.3  # seconds between two rounds through the servers
PATIENCE = 15.0  # seconds for anything that should take less than one
LAST_WAIT = 1.0  # seconds for what the connection has received already
ASK_EVERY = 0.25  # seconds
SAMPLE_EVERY = 0.05  # seconds

# Seconds at pace 1.
CALM = 2.0
AFTER_ONE = 2.0
OUTAGE = 4.0
RECOVERY = 2.0
AFTER_MOVE = 1.5


class Stage:
    """Runs it all, once."""

    def __init__(self, record: Record, keep: bool, rate: int, pace: float) -> None:
        self.record = record
        self.cluster: NatsCluster | None = None
        self.conn: gnats.Connection | None = None
        self._keep = keep
        self._rate = rate
        self._pace = pace
        self._jobs: list[gevent.Greenlet[..., Any]] = []
        self._leaving: set[int] = set()

    # -- what the view asks -------------------------------------------------------------------

    def servers(self) -> list[tuple[NatsServer, str]]:
        """Each server, and how it is: running, killed, leaving."""
        found = []
        for server in self.cluster or ():
            if not server.is_running:
                found.append((server, "killed"))
            else:
                found.append((server, "leaving" if server.port in self._leaving else "running"))
        return found

    def connected_port(self) -> int | None:
        url = self.conn.connected_url if self.conn is not None else None
        return url.port if url is not None else None

    # -- the acts -----------------------------------------------------------------------------

    def perform(self) -> None:
        """Switches, for about 15 seconds at pace 1. Raises ServerError, Error, AssertionError when
        something did not come in time."""
        record = self.record
        acts: tuple[Callable[[], None], ...] = (
            self._one_dies,
            self._all_die,
            self._one_returns,
            self._one_leaves,
        )
        record.acts = len(acts) + 2
        # As by default, a server in lame duck mode waits ten seconds before it puts a client out.
        with NatsCluster(3, lame_duck_grace_period=10) as self.cluster:
            record.begin_act("all is well")
            conn = self.conn = self._connect()
            try:
                with conn:
                    try:
                        self._begin(conn)
                        self._play(CALM)
                        for act in acts:
                            act()
                        record.begin_act("the application ends: drain")
                    finally:  # an interruption, too, ends the work before the connection drains
                        gevent.killall(self._jobs[:2])  # the publisher and the asker
                    self._end(conn)
            finally:
                gevent.killall(self._jobs)
                conn.close()
                record.stats = conn.stats
                record.sample(conn.stats, conn.is_connected)

    def _play(self, seconds: float) -> None:
        gevent.sleep(seconds * self._pace)

    def _one_dies(self) -> None:
        self.record.begin_act("its server is killed; there are two more")
        assert self.cluster is not None
        assert self.conn is not None
        old = self._ours()
        first = max(0, self.record.published - self.conn.stats.buffered)  # not written, or kept
        self._kill(old)
        self._await(lambda: self.connected_port() not in (None, old.port), "another server")
        self.cluster.wait_formed(PATIENCE)  # the others have heard of its death
        self.record.shadows.append(range(first, self.record.published))
        self._play(AFTER_ONE)

    def _all_die(self) -> None:
        self.record.begin_act("every server is killed; the application publishes on")
        ours = self._ours()
        for server, state in self.servers():
            if state == "running" and server is not ours:
                self._kill(server)
        self._kill(ours)  # the last: so there is no other that it could try for a moment
        self._await(lambda: self.connected_port() is None, "the loss")
        self._play(OUTAGE)

    def _one_returns(self) -> None:
        self.record.begin_act("one server is back: what was kept comes first")
        assert self.cluster is not None
        first = self.cluster[0]
        first.start()
        self.record.note("server", f"{first.port} is started")
        self._await(lambda: self.connected_port() == first.port, "the return")
        self._play(RECOVERY)

    def _one_leaves(self) -> None:
        self.record.begin_act("all are back; its server leaves in good order (lame duck mode)")
        assert self.cluster is not None
        for server in self.cluster:
            if not server.is_running:
                server.start()
                self.record.note("server", f"{server.port} is started")
        self.cluster.wait_formed(PATIENCE)
        old = self._ours()
        self._leaving.add(old.port)
        self.record.note("server", f"{old.port} says that it will leave")
        old.lame_duck()
        self._await(lambda: self.connected_port() not in (None, old.port), "the move")
        self.record.note("server", f"moved to {self.connected_port()}, without a gap")
        self._play(AFTER_MOVE)

    def _end(self, conn: gnats.Connection) -> None:
        """Let the readers have the rest."""
        conn.flush(PATIENCE)
        with contextlib.suppress(AssertionError):  # what is missing then is missing
            wait_until(self._all_have_all, LAST_WAIT)

    def _all_have_all(self) -> bool:
        return not any(reader.missing(self.record.published) for reader in self.record.readers)

    def _ours(self) -> NatsServer:
        assert self.cluster is not None
        port = self.connected_port()
        return next(server for server in self.cluster if server.port == port)

    def _kill(self, server: NatsServer) -> None:
        self.record.note("server", f"{server.port} is killed (SIGKILL)")
        server.kill()

    def _await(self, condition: Any, what: str) -> None:
        wait_until(condition, PATIENCE, what)

    # -- the application ----------------------------------------------------------------------

    def _connect(self) -> gnats.Connection:
        assert self.cluster is not None
        record = self.record

        def note(name: str, fact: str = "") -> Callable[[gnats.Connection], None]:
            def callback(conn: gnats.Connection) -> None:
                more = f": {getattr(conn, fact)}" if fact else ""
                record.note("callback", f"{name}{more}")

            return callback

        def on_status(_conn: gnats.Connection, old: Any, new: Any) -> None:
            record.note("callback", f"status_cb: {old} → {new}")
            if str(new) == "reconnecting":
                record.link_lost()
            elif str(new) == "connected":
                record.link_found()

        def on_delay(rounds: int) -> float:
            record.note("callback", f"custom_reconnect_delay_cb({rounds}): wait {WAIT:g} s")
            return WAIT

        return gnats.connect(
            self.cluster.urls,
            name="gnats demo",
            max_reconnect=-1,
            reconnect_wait=WAIT,
            reconnect_buf_size=BUFFER,
            replay_unconfirmed=self._keep,
            custom_reconnect_delay_cb=on_delay,
            dialer=self._dial,
            connected_cb=note("connected_cb", "connected_url"),
            disconnected_cb=note("disconnected_cb", "last_error"),
            reconnected_cb=note("reconnected_cb", "connected_url"),
            lame_duck_cb=note("lame_duck_cb"),
            closed_cb=note("closed_cb"),
            status_cb=on_status,
        )

    def _dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """As gnats itself would; it is counted."""
        dialled = self.record.dial(port)
        dialled.attempts += 1
        try:
            return socket.create_connection((host, port), timeout)
        except OSError:
            dialled.failed += 1
            raise

    def _begin(self, conn: gnats.Connection) -> None:
        """Subscribe, and let everybody work."""
        callback, group, loop = self.record.readers
        conn.subscribe(SUBJECT, cb=_collector(callback.members[0]))
        for member in group.members:
            conn.subscribe(SUBJECT, queue="workers", cb=_collector(member))
        conn.subscribe(QUESTION, cb=lambda msg: msg.respond(b"42"))
        self._jobs = [
            gevent.spawn(self._publish, conn),
            gevent.spawn(self._ask, conn),
            gevent.spawn(_read, conn.subscribe(SUBJECT), loop.members[0]),
            gevent.spawn(self._sample, conn),
        ]

    def _publish(self, conn: gnats.Connection) -> None:
        """As many as the rate wants, whatever the sleep made of it."""
        record = self.record
        began = record.now
        while True:
            due = int((record.now - began) * self._rate)
            while record.published < due:
                try:
                    conn.publish(SUBJECT, b"%d%b" % (record.published, PADDING))
                except gnats.errors.OutboundBufferLimitError:
                    break  # an application would stop its own input here
                record.published += 1
            gevent.sleep(0.01)

    def _ask(self, conn: gnats.Connection) -> None:
        """Requests keep their own deadline, across outages."""
        while True:
            self.record.asked += 1
            try:
                conn.request(QUESTION, timeout=PATIENCE * self._pace)
                self.record.answered += 1
            except (gnats.errors.TimeoutError, gnats.errors.NoRespondersError) as exc:
                self.record.note("callback", f"a request failed: {exc}")
            gevent.sleep(ASK_EVERY)

    def _sample(self, conn: gnats.Connection) -> None:
        while True:
            self.record.sample(conn.stats, conn.is_connected)
            gevent.sleep(SAMPLE_EVERY)


def _collector(numbers: list[int]) -> Any:
    return lambda msg: numbers.append(int(msg.data))


def _read(sub: gnats.Subscription, numbers: list[int]) -> None:
    for msg in sub:
        numbers.append(int(msg.data))
