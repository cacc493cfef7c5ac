"""The claim, tested: what becomes of messages when the link is lost again and again under load.

A publisher publishes 1, 2, 3, ... through a proxy that hurts its link at random moments; a reader
sits beside it, straight at the server. At least once must lose nothing and keep the order; at most
once must double nothing, and lose no more than the books admit. A killed server is another matter:
what it has confirmed and not delivered is gone, and no client can know. That loss is measured
apart, and a wire tap between publisher and server bears witness that there is no other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from time import monotonic
from typing import Any

import gevent
import pytest
from soak.ledger import Ledger
from wiretap import WireTap

import gnats
from gnats.errors import (
    FlushInterruptedError,
    OutboundBufferLimitError,
    StaleConnectionError,
    WriteStalledError,
)
from gnats.testing import ChaosLink, ChaosProxy, NatsCluster, NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_jitter": 0.0, "max_reconnect": -1}
PATIENCE = 30.0  # seconds for what should take less than one
SLACK = 1.5  # seconds that a busy machine may be late

SUBJECT = "load"
SIZES = [0, 20, 300, 3_000, 30_000]  # of the payloads, bytes
OFTEN = [8, 8, 8, 3, 1]
AHEAD = 5_000  # messages; the publisher rests when the reader is so far behind

MODES = pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])


def tell(request: pytest.FixtureRequest, text: str) -> None:
    """Into the report of the test, which shows it with -rP, and when it fails."""
    request.node.add_report_section("call", "figures", text)


def number_of(payload: bytes) -> int:
    return int(payload.partition(b":")[0])


# -- load -----------------------------------------------------------------------------------------


class Load:
    """A publisher, a reader, and an auditor who looks into the publisher's books all the time."""

    def __init__(
        self, rng: random.Random, publish_to: str, read_at: str | None, keep: bool, **options: Any
    ) -> None:
        self.keep = keep
        self.published = 0
        self.audits = 0
        self.ledger = Ledger()
        self.causes: Counter[str] = Counter()
        self.publisher = gnats.connect(
            publish_to,
            replay_unconfirmed=keep,
            # The smaller is full now and then, the larger is more than a stalled kernel takes.
            reconnect_buf_size=rng.choice([1_000_000, 8_000_000]),
            disconnected_cb=lambda conn: self.causes.update([type(conn.last_error).__name__]),
            **{**FAST, **options},
        )
        # Without an address of its own the reader shares the publisher's link.
        self.reader = gnats.connect(read_at, **FAST) if read_at else self.publisher
        self.sub = self.reader.subscribe(
            SUBJECT, cb=lambda msg: self.ledger.take(number_of(msg.data))
        )
        self.reader.flush()
        self.told_to_rest = self._rests = False
        # One for each greenlet: so what one draws does not depend on when the others do.
        self._publish_rng, self._audit_rng = (random.Random(rng.random()) for _ in range(2))
        self._crew = [gevent.spawn(self._publish), gevent.spawn(self._audit)]

    def close(self) -> None:
        gevent.killall(self._crew)
        self.publisher.close()
        self.reader.close()

    def look_after(self) -> None:
        """Raise what has ended the publishing or the auditing, if anything."""
        for one in self._crew:
            if one.ready():
                one.get()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing is published within, and all that was, and can come, has come."""
        self.told_to_rest = True
        wait_until(lambda: self._rests or self.look_after(), PATIENCE)
        self.publisher.wait_for_status("connected", PATIENCE)
        flush_through(self.publisher)
        yield
        self.told_to_rest = False

    def all_read(self) -> None:
        """Wait until the reader has taken everything that the server had for it."""
        flush_through(self.reader)
        wait_until(lambda: not self.sub.pending_msgs, PATIENCE)

    def _publish(self) -> None:
        rng = self._publish_rng
        while True:
            for _ in range(rng.randrange(1, 40)):
                self._publish_one(rng)
            gevent.sleep(rng.choice([0, 0.001, 0.003]))
            while self.told_to_rest or self.sub.pending_msgs > AHEAD:
                self._rests = self.told_to_rest
                gevent.sleep(0.002)
            self._rests = False

    def _publish_one(self, rng: random.Random) -> None:
        payload = b"%d:" % (self.published + 1) + b"x" * rng.choices(SIZES, OFTEN)[0]
        try:
            self.publisher.publish(SUBJECT, payload)
        except OutboundBufferLimitError:
            gevent.sleep(0.003)
        else:
            self.published += 1

    def _audit(self) -> None:
        uncertain = replayed = 0
        while True:
            stats = self.publisher.stats
            settled = stats.sent + stats.uncertain + stats.dropped + stats.buffered
            assert stats.accepted == settled, stats
            # `published` is raised a moment after the message was accepted.
            assert self.published <= stats.accepted <= self.published + 1, stats
            assert stats.uncertain >= uncertain, stats
            assert stats.replayed >= replayed, stats
            uncertain, replayed = stats.uncertain, stats.replayed
            if self.keep:
                assert uncertain == 0, stats
            self.audits += 1
            gevent.sleep(self._audit_rng.random() * 0.004)


def flush_through(conn: gnats.Connection) -> None:
    """Flush, again if a loss comes between: a machine that stands still makes some of its own."""
    deadline = monotonic() + PATIENCE
    while True:
        try:
            conn.flush(PATIENCE)
            return
        except FlushInterruptedError:
            assert monotonic() < deadline
            conn.wait_for_status("connected", PATIENCE)


# -- the publisher's link is lost -----------------------------------------------------------------


class Storm:
    """Loses the publisher's link, again and again, in every way that a proxy and SIGSTOP know."""

    def __init__(self, rng: random.Random, server: NatsServer, proxy: ChaosProxy, keep: bool):
        self.rng = rng
        self.server = server
        self.proxy = proxy
        self.load = Load(
            rng,
            proxy.url,
            server.url,
            keep,
            ping_interval=0.3,
            max_pings_out=1,
            write_timeout=0.1,
            connect_timeout=0.3,
        )
        self.counts: Counter[str] = Counter()
        self.reckonings = 0
        self._faults: dict[str, tuple[int, Callable[[], object]]] = {
            "reset": (4, proxy.reset),
            "fin": (4, proxy.finish),
            "cut": (8, self._cut),
            "hole": (2, self._hole),
            "hole, at rest": (1, self._hole_at_rest),
            "swallowed": (1, lambda: proxy.swallow(rng.choice(["up", "down"]))),
            "half open": (1, proxy.half_open),
            "stopped": (2, server.pause),
        }

    def rage(self, losses: int) -> None:
        """Lose the link so many times, and settle the accounts now and then."""
        names = list(self._faults)
        weights = [weight for weight, _ in self._faults.values()]
        for _ in range(losses):
            self.lose(self.rng.choices(names, weights)[0])
            gevent.sleep(self.rng.choice([0, 0, 0.01, 0.03]) * self.rng.random())
            if self.rng.random() < 0.7:
                self.load.publisher.wait_for_status("connected", PATIENCE)
                gevent.sleep(self.rng.random() * 0.02)
            if self.rng.random() < 0.1:
                self.reckon()
            self.load.look_after()

    def lose(self, name: str) -> None:
        """One fault, until the publisher has noticed, and what it left is tidied away."""
        self.counts[name] += 1
        before = self.load.publisher.stats
        if self.rng.random() < 0.3:
            self.proxy.on_link(self._hurt_the_next)
        wait_until(lambda: self.proxy.links or self._lost_since(before), PATIENCE)
        hurt = self.proxy.links
        self._faults[name][1]()
        self._await_loss(before)
        self._wake_server()
        self.load.told_to_rest = False
        # What a hole has held back arrives now, behind newer messages; or never.
        for link in hurt:
            self.rng.choice([link.heal, link.heal, link.reset])()

    def _lost_since(self, before: gnats.Stats) -> bool:
        return self.load.publisher.stats.disconnects > before.disconnects

    def _missed_since(self, before: gnats.Stats) -> bool:
        """Whether the fault struck an attempt: the link that came to be is another."""
        return self.load.publisher.stats.connects > before.connects

    def _await_loss(self, before: gnats.Stats) -> None:
        until = monotonic() + PATIENCE
        while not self._lost_since(before):
            assert monotonic() < until, before
            with suppress(AssertionError):
                wait_until(lambda: self._lost_since(before) or self._missed_since(before), 1.5)
            if not self._lost_since(before):
                self.counts["missed"] += 1
                self._wake_server()
                self.proxy.reset()
                gevent.sleep(0.002)

    def _wake_server(self) -> None:
        if self.server.is_paused:
            self.server.resume()

    def _hole(self) -> None:
        """Where the publisher goes on, its kernel fills up: write_timeout will notice."""
        self.proxy.blackhole(self.rng.choice(["up", "down", "both"]))

    def _hole_at_rest(self) -> None:
        """Where it has nothing to say, keepalive will."""
        self.load.told_to_rest = True
        self._hole()

    def _cut(self) -> None:
        direction = self.rng.choice(["up", "up", "up", "down"])
        most = self.rng.choice([50] if direction == "down" else [200, 20_000, 200_000])
        count = self.rng.randrange(most)
        self.proxy.cut_after(count, direction, reset=self.rng.random() < 0.5)

    def _hurt_the_next(self, link: ChaosLink) -> None:
        """A rule for one link: it dies in its handshake, while it is restored, or replays."""
        self.proxy.on_link(None)
        self.counts["while recovering"] += 1
        reset = self.rng.random() < 0.5
        if self.rng.random() < 0.5:
            link.cut_handshake(self.rng.choice(["accept", "info", "connect", "pong"]), reset)
        else:
            link.cut_after(self.rng.randrange(self.rng.choice([500, 50_000, 500_000])), "up", reset)

    def reckon(self) -> None:
        """All is well again for a moment: is what is missing now within what is admitted now?"""
        self.reckonings += 1
        self.proxy.heal()
        with self.load.at_rest():
            # Those of old links: what the server still finds in their sockets, it delivers.
            wait_until(lambda: self.server.connz()["num_connections"] == 2, PATIENCE)
            self.load.all_read()
            self._judge()

    def _judge(self) -> None:
        load, ledger, stats = self.load, self.load.ledger, self.load.publisher.stats
        missing = ledger.missing(load.published)
        assert stats.accepted == load.published
        assert stats.accepted == stats.sent + stats.uncertain
        assert stats.dropped == stats.buffered == 0
        assert ledger.newest <= load.published
        if load.keep:
            assert missing == set()
            # First come in order: an old link and the new one each bring theirs in order, and the
            # new one begins no later than where the old one had certainly come to.
            assert ledger.late == 0
            assert ledger.doubled <= stats.replayed
        else:
            assert ledger.doubled == 0
            # A server that finds the bytes of a dead link after it has heard the new one delivers
            # them late: they are uncertain ones, like those that never come.
            assert len(missing) + ledger.late <= stats.uncertain

    def report(self) -> str:
        load, ledger, stats = self.load, self.load.ledger, self.load.publisher.stats
        missing = len(ledger.missing(load.published))
        return (
            f"{stats.disconnects} losses ({_listed(self.counts)}), {stats.attempts} attempts\n"
            f"noticed by: {_listed(load.causes)}\n"
            f"published {load.published}, lost {missing}, late {ledger.late}, doubled "
            f"{ledger.doubled}; the books: {stats.uncertain} uncertain, {stats.replayed} replayed; "
            f"looked at {load.audits} times, settled {self.reckonings} times"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def storm(request: pytest.FixtureRequest, rng: random.Random, keep: bool, losses: int) -> None:
    with NatsServer() as server, ChaosProxy(server.url, rcvbuf=16 * 1024) as proxy:
        one = Storm(rng, server, proxy, keep)
        try:
            one.rage(losses)
            one.reckon()
            assert one.load.publisher.stats.disconnects >= losses
            assert one.load.published > losses
        finally:
            tell(request, one.report())
            one.load.close()


@pytest.mark.once
@MODES
def test_twenty_losses_under_load(
    request: pytest.FixtureRequest, rng: random.Random, keep: bool
) -> None:
    storm(request, rng, keep, 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
@MODES
def test_two_hundred_losses_under_load(
    request: pytest.FixtureRequest, rng: random.Random, keep: bool
) -> None:
    storm(request, rng, keep, 200)


# -- the server is killed -------------------------------------------------------------------------


class Massacre:
    """Kills the server under load and starts it again, so often. What did it take with it?

    The publisher comes back only when the reader is back: what is sent to nobody is another
    matter, see docs/reconnection.md.
    """

    def __init__(self, rng: random.Random, server: NatsServer, keep: bool, reader: str) -> None:
        self.rng = rng
        self.server = server
        self.tap = WireTap((server.host, server.port), number_of, SUBJECT)
        self.slow_line = ChaosProxy(server.url, rcvbuf=16 * 1024) if reader == "behind" else None
        self.shares_a_link = reader == "same link"
        self.keep = keep
        self.load: Load | None = None

    def run(self, kills: int) -> None:
        with self.tap, self.slow_line or nullcontext():
            read_at = self.slow_line.url if self.slow_line else self.server.url
            load = self.load = Load(
                self.rng, self.tap.url, None if self.shares_a_link else read_at, self.keep
            )
            try:
                for _ in range(kills):
                    self._kill(load)
                    load.look_after()
                with load.at_rest():
                    load.all_read()
            finally:
                load.close()

    def _kill(self, load: Load) -> None:
        gevent.sleep(0.02 + self.rng.random() * 0.15)
        if self.slow_line:
            self.slow_line.throttle(200_000, "down")
            gevent.sleep(self.rng.random() * 0.6)
        back = load.reader.stats.connects + 1
        self.tap.is_open = self.shares_a_link
        self.server.kill()
        if self.slow_line:
            self.slow_line.heal()  # what had left the server arrives
        self.tap.life += 1
        self.server.start()
        wait_until(lambda: load.reader.stats.connects >= back, PATIENCE)
        flush_through(load.reader)
        self.tap.is_open = True
        load.publisher.wait_for_status("connected", PATIENCE)

    def judge(self) -> set[int]:
        """Returns what is lost; all of it must be the server's doing."""
        load, tap = self.load, self.tap
        assert load is not None
        stats = load.publisher.stats
        lost = load.ledger.missing(load.published)
        # The witness: a PONG behind them had passed to the publisher before that server died ...
        confirmed: set[int] = set()
        for life in range(1, tap.life):
            of_life = tap.confirmed_in(life)
            confirmed.update(of_life)
            # ... and they are what it was about to deliver: one run, with no gap.
            gone = [index for index, number in enumerate(of_life) if number in lost]
            assert not gone or gone[-1] - gone[0] == len(gone) - 1, life
        assert stats.dropped == stats.buffered == 0
        if self.keep:
            assert lost <= confirmed
            assert load.ledger.late == 0
            assert load.ledger.doubled <= stats.replayed
        else:
            assert load.ledger.doubled == load.ledger.late == 0
            assert len(lost - confirmed) <= stats.uncertain
        if self.shares_a_link:
            # What was delivered to us came before the PONG, on the same link.
            assert len(lost) <= stats.uncertain
        return lost & confirmed


def massacre(
    request: pytest.FixtureRequest, rng: random.Random, keep: bool, reader: str, kills: int
) -> None:
    with NatsServer() as server:
        one = Massacre(rng, server, keep, reader)
        one.run(kills)
        own = one.judge()
        load = one.load
        assert load is not None
        stats = load.publisher.stats
        lost = load.ledger.missing(load.published)
        assert stats.disconnects >= kills
        tell(
            request,
            f"{kills} kills, reader {reader}: {load.published} published, {len(own)} lost by the "
            f"server that had confirmed them, {len(lost - own)} more lost, {stats.uncertain} "
            f"uncertain, {load.ledger.doubled} doubled, {stats.replayed} replayed",
        )


READERS = pytest.mark.parametrize("reader", ["beside", "behind", "same link"])


@pytest.mark.once
@READERS
@MODES
def test_a_killed_server_takes_with_it_only_what_it_had_confirmed(
    request: pytest.FixtureRequest, rng: random.Random, keep: bool, reader: str
) -> None:
    massacre(request, rng, keep, reader, 5)


@pytest.mark.slow
@pytest.mark.timeout(300)
@READERS
@MODES
def test_a_server_killed_a_hundred_times(
    request: pytest.FixtureRequest, rng: random.Random, keep: bool, reader: str
) -> None:
    massacre(request, rng, keep, reader, 100)


def test_a_cluster_gives_messages_of_a_group_to_members_at_a_dead_server() -> None:
    """The servers' way, not ours: until they notice. Plain readers lose nothing by it."""
    plain: list[int] = []
    group: list[int] = []
    with NatsCluster(3) as cluster:
        with gnats.connect(cluster.urls, ping_interval=0.2, max_pings_out=1, **FAST) as conn:
            conn.subscribe(SUBJECT, cb=lambda msg: plain.append(int(msg.data)))
            for _ in range(2):
                conn.subscribe(SUBJECT, queue="group", cb=lambda msg: group.append(int(msg.data)))
            flush_through(conn)
            url = conn.connected_url
            (dead,) = (server for server in cluster if url and server.port == url.port)
            dead.pause()  # its sockets stay open: the other servers think that it lives
            wait_until(lambda: conn.stats.reconnects == 1, PATIENCE)
            publish_numbers(conn, range(200))
            wait_until(lambda: len(plain) == 200, PATIENCE)
            assert 0 < len(group) < 200
            dead.kill()  # they close: now all know
            cluster.wait_formed()
            group.clear()
            publish_numbers(conn, range(200, 400))
            wait_until(lambda: len(group) == 200, PATIENCE)
        assert sorted(group) == list(range(200, 400))
        assert plain == list(range(400))


def publish_numbers(conn: gnats.Connection, numbers: range) -> None:
    for number in numbers:
        conn.publish(SUBJECT, b"%d" % number)
    conn.flush(PATIENCE)


# -- how soon it is noticed -----------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize(("interval", "out"), [(0.1, 1), (0.15, 2)])
def test_a_silent_peer_is_found_in_time(
    request: pytest.FixtureRequest,
    nats_server: NatsServer,
    chaos_proxy: Callable[..., ChaosProxy],
    direction: Any,
    interval: float,
    out: int,
) -> None:
    """ping_interval × (max_pings_out + 1) after its last sign."""
    proxy = chaos_proxy(nats_server.url)
    conn = gnats.connect(proxy.url, ping_interval=interval, max_pings_out=out, **FAST)
    for _ in range(2):
        conn.flush(PATIENCE)
        lost = conn.stats.disconnects + 1
        proxy.blackhole(direction)
        began = monotonic()
        wait_until(lambda lost=lost: conn.stats.disconnects == lost, PATIENCE)
        took = monotonic() - began
        bound = interval * (out + 1)
        tell(request, f"a hole {direction}: found after {took:.3f} s, the bound is {bound:.1f} s")
        assert isinstance(conn.last_error, StaleConnectionError)
        # The last sign may be nearly an interval old when the hole comes.
        assert interval * out * 0.9 < took < bound + SLACK
        conn.wait_for_status("connected", PATIENCE)
    conn.close()


@pytest.mark.once
@MODES
@pytest.mark.parametrize("limit", [0.2, 0.5])
def test_a_blocked_write_is_found_in_time(
    request: pytest.FixtureRequest,
    nats_server: NatsServer,
    chaos_proxy: Callable[..., ChaosProxy],
    keep: bool,
    limit: float,
) -> None:
    """write_timeout after the last byte that went; without any help of keepalive."""
    proxy = chaos_proxy(nats_server.url, rcvbuf=16 * 1024)
    conn = gnats.connect(
        proxy.url,
        write_timeout=limit,
        replay_unconfirmed=keep,
        reconnect_buf_size=64 * 1024 * 1024,
        **FAST,
    )
    accepted_at = 0.0

    def publish() -> None:
        nonlocal accepted_at
        while True:
            conn.publish(SUBJECT, b"x" * 100_000)
            if conn.stats.disconnects:
                return  # the loss itself made room
            accepted_at = monotonic()
            gevent.sleep(0)

    proxy.blackhole("up")
    publisher = gevent.spawn(publish)
    wait_until(lambda: conn.stats.disconnects == 1, PATIENCE)
    # When the kernel was full the publisher came to rest, a moment later.
    took = monotonic() - accepted_at
    publisher.join(PATIENCE)
    tell(request, f"found {took:.3f} s after the last accepted message, write_timeout {limit} s")
    assert isinstance(conn.last_error, WriteStalledError)
    assert limit * 0.8 < took < limit + SLACK
    proxy.heal()
    conn.flush(PATIENCE)
    conn.close()
