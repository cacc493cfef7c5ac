"""One run: connect, the operations, the return when all is well again, the end, the reckoning."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

import gnats
from gnats.errors import (
    ConnectionClosedError,
    DrainTimeoutError,
    HandlerError,
)
from gnats.testing import wait_until

from . import audit
from .known import HUNG, Job, Sub, Topic, Trouble
from .operations import Operations

ENDED = 8.0  # seconds that drain and close may take, or a second or so behind their time-out
SETTLE = 30.0  # seconds for the return when all is well again


class Machine(Operations):
    """Runs one list of operations. ``run`` raises Violation."""

    def run(self, operations: list[tuple[str, dict[str, Any]]]) -> None:
        """From connect to what is left behind."""
        world = self.world
        self._old_sockets = audit.sockets() - self._outside_socket()
        self._old_greenlets = audit.greenlets()
        world.begin(self.setup.rcvbuf, self.setup.way)
        self.conn = self._connection()
        self.books = audit.Books(self.conn, self.setup.keep, self.setup.buf)
        auditor = gevent.spawn(self._audit_on)
        try:
            self._connect()
            for name, arguments in operations:
                getattr(self, f"do_{name}")(**arguments)
                self._look()
            if not self.setup.in_fault:
                self._settle()
            self._end()
            self._reckon()
        finally:
            auditor.kill()
            self._abandon()

    def _connection(self) -> gnats.Connection:
        setup, world = self.setup, self.world
        names = ("connected_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "error_cb")
        return gnats.Connection(
            gnats.ConnectionOptions(
                servers=world.urls,
                name=world.name,
                reconnect=gnats.ReconnectOptions(
                    max_reconnect=-1,
                    reconnect_wait=0.02,
                    reconnect_jitter=0.01,
                    reconnect_buf_size=setup.buf,
                    replay_unconfirmed=setup.keep,
                    retry_on_failed_connect=setup.late,
                ),
                callbacks=gnats.Callbacks(
                    status_cb=self._callback("status_cb"),
                    **{name: self._callback(name) for name in names},
                ),
                connect_timeout=0.4,
                ping_interval=30.0 if setup.patient else 0.15,
                max_pings_out=1,
                write_timeout=30.0 if setup.patient else 0.4,
                drain_timeout=0.5 if setup.in_fault else 20.0,
                tls=gnats.TLSOptions(ca=world.authority) if setup.way == "tls" else None,
                publish_timeout=setup.publish_timeout,
            )
        )

    def _connect(self) -> None:
        if self.setup.late:
            self.world.hurt(lambda proxy: proxy.refuse())
        gone = monotonic() + SETTLE
        while True:
            try:
                self.conn.connect()
                break
            except gnats.errors.NoServersError:  # a machine so busy that 0.4 s were too short
                if monotonic() > gone:
                    raise
                self.calls.clear()

    def _callback(self, name: str) -> Callable[..., None]:
        def call(conn: gnats.Connection, *args: Any) -> None:
            self.calls.append((name, args))
            self._audit()
            mood = self.moods.pop(name, "")
            if mood == "block":
                gevent.sleep(0.02)
            elif mood == "raise":
                self.raised.append(f"{name} {len(self.raised)}")
                raise Trouble(self.raised[-1])
            elif mood == "call":
                self.publish(10)
            elif mood == "ask":
                self._request("echo", 0.03)
            elif mood == "flush":
                self._confirm(0.03)
            elif mood == "close":
                conn.close()

        return call

    # -- the end: all is well -------------------------------------------------------------

    def _settle(self) -> None:
        """Heal everything, come back, and compare all that is known."""
        self.world.repair()
        self.conn.set_servers(self.world.urls)
        self._join(self.jobs)
        self._go("settle", SETTLE, True, self._until, lambda: self._confirm(2.0), "the return")
        self._look()
        wait_until(lambda: len(self.world.connections()) == 1, SETTLE, "one link at the server")
        if self.setup.limits:
            # What was received over earlier links counts: so there must be some, and a loss.
            self._go("tell all", SETTLE, True, self._until, self._tell_all, "messages for all")
            self._look()
            self._limit_some(0)
            self.world.hurt(lambda proxy: proxy.reset())
            self._go("settle", SETTLE, True, self._until, self._is_back, "another return")
            self._limit_some(1)
        self._go("census", SETTLE, True, self._until, self._census, "a census")
        self._look()
        self._go("tell all", SETTLE, True, self._until, self._tell_all, "messages for all")
        self._go("request", SETTLE, True, self._until, self._is_answered, "a reply")
        self._look()
        self._go("census", SETTLE, True, self._until, self._census, "a second census")
        self._look()
        self._go("settled", SETTLE, True, self._until, self._settled, "a moment without a loss")
        self._look()

    def _limit_some(self, first: int) -> None:
        """Limits for half of the subscriptions, some to be reached at once, some not."""
        for sub in self.subs[first::2]:
            if sub.is_live and not sub.max:
                sub.max = sub.real.received + (3 if sub.real.sid % 3 else 30)
                sub.real.unsubscribe(sub.max)
                self.changes += 1

    def _is_back(self) -> bool:
        return self._confirm(2.0) and len(self.world.connections()) == 1

    def _is_answered(self) -> bool:
        return self._request("echo", 2.0)

    def _until(self, attempt: Callable[[], bool], what: str) -> None:
        deadline = monotonic() + SETTLE
        while not attempt() and not self.wrong:
            if monotonic() > deadline:
                now = f"{self.conn!r} {self.conn.stats}"
                self.wrong.append(f"in vain for {SETTLE} s: {what}; {now}")
                return
            gevent.sleep(0.01)

    def _tell_all(self) -> bool:
        """A message to every topic, surely routed, must arrive, and all that was owed before."""
        if not self._sync(2.0) or not self._confirm(2.0):
            return False
        link = self.link()
        if link is None or len(self.world.connections()) != 1:
            return False
        owed = {topic: self._tell_owed(topic) for topic in self.topics}
        if not self._sync(2.0) or not self._confirm(2.0) or self.link() != link:
            return False
        self._read_all()
        for topic, numbers in owed.items():
            missing = numbers - topic.seen
            self._expect(not missing, f"{topic.subject}: {missing} did not arrive")
        for sub in self.subs:
            self._check_required(sub)
        return True

    def _tell_owed(self, topic: Topic) -> set[int]:
        """Tell more than a limit of a few leaves; which numbers must arrive?"""
        live = [sub for sub in topic.subs if sub.is_live]
        sure = any(not sub.lossy and not sub.leaves for sub in live)
        first = topic.told + 1
        if len(topic.subs) > 1:  # who of a group gets what is the server's choice
            self._tell(topic, 1)
            return {first} if sure else set()
        left = [sub.max - sub.real.received for sub in live if sub.max]
        self._tell(topic, 7)
        return set(range(first, first + min([7, *left]))) if sure else set()

    def _read_all(self) -> None:
        for sub in self.subs:
            while sub.kind == "next" and sub.real.pending_msgs:
                self._next_msg(sub, 0.0)
            wait_until(lambda sub=sub: sub.real.unhandled == 0, 10, f"{sub.real!r} to be read")

    def _check_required(self, sub: Sub) -> None:
        real = sub.real
        missing = sub.required.difference(sub.seen)
        if sub.max and real.received >= sub.max:
            last = max(sub.seen, default=0)
            missing = {number for number in missing if number < last}
            if not sub.lossy and not sub.ended:
                self._expect(len(sub.seen) == sub.max, f"{real!r}: {len(sub.seen)} of {sub.max}")
        if not sub.lossy and not sub.given_up:
            self._expect(not missing, f"{real!r} misses {sorted(missing)} of {sub.required}")
        self._expect(real.delivered == len(sub.seen), f"{real!r}: {real.delivered} delivered")
        self._expect(
            real.received == real.delivered + real.dropped,
            f"{real!r}: {real.received} received, {real.delivered} delivered, {real.dropped} lost",
        )

    def _settled(self) -> bool:
        """What the server took and what the books say, at a moment when all is confirmed."""
        if not self._confirm(2.0):
            return False
        stats, places = self.conn.stats, set(self.place)
        left = audit.waiters(self.conn)
        mute = sum(job.name == "request(None)" and not job.greenlet.dead for job in self.waiters)
        self._expect(
            left["requests"] == mute and not left["publishers"],
            f"nobody waits for them, but {left}, {mute}",
        )
        if stats.buffered or len(self.world.connections()) != 1:
            return False
        taken = {subject for link in self.world.links for subject in link.published}
        lost = places - taken
        self._expect(stats.dropped == 0, f"dropped: {stats}")
        self._expect(len(lost) <= stats.uncertain, f"lost {sorted(lost)}: {stats}")
        self._expect(
            stats.sent <= len(taken) <= stats.sent + stats.uncertain,
            f"the server took {len(taken)}: {stats}",
        )
        return True

    # -- the end: close -------------------------------------------------------------------

    def _end(self) -> None:
        conn, ending = self.conn, self.setup.ending
        self.ending = True
        if not self.setup.in_fault:
            self._go("last words", 10.0, True, self._last_words)
        calls: dict[str, Callable[[], object]] = {
            "close": conn.close,
            "drain": lambda: conn.drain(0.5 if self.setup.in_fault else 20.0),
            "twice": lambda: self._drain_twice(),
            "hurry": lambda: self._drain_and_close(),
            "inside": lambda: self._close_inside(),
            "leave": lambda: conn.__exit__(None, None, None),
            "fall": lambda: conn.__exit__(Trouble, Trouble("leaving"), None),
        }
        self._clean_drain = False
        self._links_before_drain = 1_000_000

        def end() -> None:
            began = monotonic()
            if self.link() and ending not in ("close", "inside"):
                self._links_before_drain = len(self.world.links)
            try:
                calls[ending]()
                self._clean_drain = ending in ("drain", "leave", "twice")
            except DrainTimeoutError as exc:
                self._expect(self.setup.in_fault and ending != "close", f"{ending}: {exc!r}")
            took = monotonic() - began
            self._expect(took < ENDED, f"{ending} took {took:.3f} s")

        storm = gevent.spawn(self._storm)
        self._go(ending, 10.0, True, end)
        storm.join()
        self._look()
        self._join(self.jobs)
        self._join(self.waiters)
        self._look()

    def _last_words(self) -> None:
        for number in range(20):
            self.publish(30_000 if self.setup.storm and number % 2 else 100)

    def _drain_twice(self) -> None:
        other = gevent.spawn(self._guarded, "another drain", self._drain_or_time_out)
        try:
            self.conn.drain(0.5 if self.setup.in_fault else 20.0)
        finally:
            self.jobs.append(Job("another drain", other, 20.0))

    def _drain_or_time_out(self) -> None:
        try:
            self.conn.drain(0.5 if self.setup.in_fault else 20.0)
        except DrainTimeoutError as exc:
            self._expect(self.setup.in_fault, f"another drain: {exc!r}")

    def _drain_and_close(self) -> None:
        other = gevent.spawn(self._guarded, "drain", self._drain_or_time_out)
        self.jobs.append(Job("drain", other, 20.0))
        gevent.sleep(0.005)
        self.conn.close()

    def _close_inside(self) -> None:
        self.moods["disconnected_cb"] = "close"
        self.conn.force_reconnect()
        with gevent.Timeout(1.0, False):  # a link that is not there is not lost
            self.conn.wait_for_status("closed")
        self.conn.close()

    def _storm(self) -> None:
        for seconds in self.setup.storm:
            gevent.sleep(seconds)
            self.world.hurt(lambda proxy: proxy.reset())

    def _join(self, jobs: list[Job]) -> None:
        if jobs is self.waiters:
            for job in jobs:
                job.deadline = monotonic() + HUNG
        while jobs:
            jobs.pop().check()

    def _reckon(self) -> None:
        """The connection is closed: what happened, as a whole."""
        conn, world = self.conn, self.world
        self._expect(conn.is_closed, f"{conn!r} is not closed")
        calls = {"publish": conn.publish, "flush": conn.flush, "subscribe": conn.subscribe}
        for name, call in calls.items():
            try:
                call(*([] if name == "flush" else ["p"]))
                self.wrong.append(f"a closed connection took a {name}")
            except ConnectionClosedError:
                pass
            except gnats.errors.Error as exc:
                self.wrong.append(f"{name} on a closed connection raised {exc!r}")
        conn.close()
        wait_until(lambda: not conn._callbacks._calls, 10, "the last callback")
        stats = conn.stats
        self.wrong.extend(audit.callbacks(self.calls, stats))
        self._check_errors()
        self._expect(stats.buffered == 0, f"buffered after the end: {stats}")
        wait_until(lambda: not any(proxy.links for proxy in world.proxies) or self._torn(), 10)
        world.end()
        if world.server.is_paused:
            world.server.resume()
        if world.server.is_running:
            world.await_gone()
        self._check_journal()
        self._check_leftovers()
        self._look()

    def _torn(self) -> bool:
        """Whether a fault keeps the proxy from seeing the end of a link."""
        return self.setup.in_fault

    def _check_errors(self) -> None:
        """Each thing that a callback of ours raised was told once; errors are those we know."""
        told: list[str] = []
        for name, args in self.calls:
            if name != "error_cb":
                continue
            error = args[0]
            if isinstance(error, HandlerError):
                error = error.__cause__ or error
            if isinstance(error, Trouble):
                told.append(str(error))
            else:
                known = isinstance(error, gnats.errors.Error)
                self._expect(known, f"error_cb got {error!r}")
        raised = [what for what in self.raised if not what.startswith("error_cb")]
        self._expect(sorted(told) == sorted(raised), f"raised {raised}, told {told}")

    def _check_journal(self) -> None:
        stats, links = self.conn.stats, self.world.links
        again = sum(len(link.published) for link in links)
        sids = {str(sub.real.sid) for sub in self.subs}
        for link in links[self._links_before_drain :]:
            restored = sids.intersection(sid for sid, _ in link.subscribed)
            self._expect(not restored, f"restored during a drain: {restored}")
        self.wrong.extend(audit.journal(links, self.place, self.refused, self.setup.keep))
        taken = {subject for link in links for subject in link.published}
        again -= len(taken)
        self._expect(again <= stats.replayed, f"{again} came twice: {stats}")
        lost = set(self.place) - taken
        bound = stats.uncertain + stats.dropped
        self._expect(len(lost) <= bound, f"lost {sorted(lost)}: {stats}")
        subjects = list(self.place)
        for count, bound in self.flushed:
            missing = set(subjects[:count]) - taken
            self._expect(len(missing) <= bound, f"lost in spite of a flush {sorted(missing)}")
        if self._clean_drain:
            self._expect(len(lost) <= stats.uncertain, f"lost in a drain {sorted(lost)}: {stats}")
        self._expect(len(taken) >= stats.sent, f"the server took {len(taken)}: {stats}")

    def _check_leftovers(self) -> None:
        left = {what: count for what, count in audit.waiters(self.conn).items() if count}
        self._expect(not left, f"left in the connection: {left}")

        def leaks() -> set[Any]:
            return (audit.greenlets() - self._old_greenlets) | (
                audit.sockets() - self._old_sockets - self._outside_socket()
            )

        deadline = monotonic() + 5.0
        while leaks() and monotonic() < deadline:
            gevent.sleep(0.005)
        self._expect(not leaks(), f"left: {leaks()}")

    def _outside_socket(self) -> set[str]:
        return audit.socket_of(self.world.outside.descriptor)

    def _abandon(self) -> None:
        """Whatever has failed: nothing of this run may disturb the next one."""
        greenlets = [job.greenlet for job in [*self.jobs, *self.waiters]]
        self.conn.close()
        gevent.killall(greenlets, timeout=5.0)
        left = audit.greenlets() - self._old_greenlets
        gevent.killall(list(left), timeout=5.0)
        self.world.end()
