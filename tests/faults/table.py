"""The faults, the moments, and what is expected: stated here, before anything runs. Data only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from . import strikes
from .strikes import Cure, Strike

MODES = ("default", "at least once")
STAGES = ("accept", "info", "connect", "pong")


@dataclass(frozen=True)
class Expected:
    """What a fault may do to the application, beyond what holds for every cell (see `cell.judge`):
    default: none doubled, none lost and none late but what `uncertain` counts; at least once: none
    lost, the first arrivals in order; the callbacks, the calls and the books as documented."""

    ends: str = "back"  #: or "closed": the connection says why, and closes
    within: float = 5.0  #: seconds from the cure until a new message gets through
    #: The server may lose what it has confirmed: it dies, or its memory does.
    server_loses: bool = False
    #: Messages that may be changed, or led astray, without anybody being able to tell.
    unnoticed: int = 0
    #: Names of errors of which `error_cb` must hear one.
    tells: tuple[str, ...] = ()
    #: A callback that must come, when there was a link.
    calls: str = ""


@dataclass(frozen=True)
class Fault:
    name: str
    title: str
    group: str
    inflict: Strike
    cure: Cure
    why: str  #: what it stands for
    expected: Expected = Expected()
    house: str = "plain"
    #: The client must notice (lose its link, or fail an attempt) before the cure comes.
    noticed: bool = True
    #: A first connect finds its way past it, and notices nothing.
    overcome: bool = False
    dwell: float = 0.15  #: seconds that it lasts, at most, after that
    lasting: bool = True  #: it stays until the cure; otherwise the way is free at once
    named: bool = False  #: the client is given a name instead of an address
    patient: bool = True  #: with ignore_auth_error_abort
    stages: tuple[str, ...] = STAGES  #: of the handshake, in which it can strike
    #: It is also done to nats-py, for the column of comparison.
    compared: bool = True


def _faults() -> Iterator[Fault]:
    yield Fault(
        "killed",
        "server killed, started again",
        "The server",
        strikes.kill,
        strikes.start,
        "SIGKILL; the same port",
        Expected(server_loses=True),
    )
    yield Fault(
        "stopped",
        "server stopped, continued",
        "The server",
        strikes.pause,
        strikes.resume,
        "SIGSTOP, SIGCONT: a machine that hangs",
    )
    yield Fault(
        "state-lost",
        "server replaced, its state lost",
        "The server",
        strikes.terminate,
        strikes.start,
        "SIGTERM; another process, with another server_id, at the same address",
        Expected(server_loses=True),
    )
    yield Fault(
        "lame-duck",
        "lame duck, another takes over",
        "The server",
        strikes.lame_duck,
        strikes.nothing,
        "SIGUSR2: the server puts its clients out, in good order",
        Expected(server_loses=True, calls="lame_duck_cb"),
        house="cluster",
        lasting=False,
    )
    yield Fault(
        "node-removed",
        "cluster node removed, another added",
        "The server",
        strikes.remove_node,
        strikes.add_node,
        "the client was told of the others by the cluster",
        Expected(server_loses=True, calls="discovered_servers_cb"),
        house="cluster",
        lasting=False,
    )
    yield Fault(
        "wrong-password",
        "password changed, then restored",
        "The server refuses",
        strikes.change_password,
        strikes.restore_password,
        "a reload of the configuration; `ignore_auth_error_abort=True`",
        Expected(tells=("AuthorizationError", "AuthenticationExpiredError")),
        house="auth",
    )
    yield Fault(
        "wrong-password-twice",
        "password changed, for good",
        "The server refuses",
        strikes.change_password,
        strikes.nothing,
        "without `ignore_auth_error_abort`: the same refusal twice ends it",
        Expected(ends="closed", tells=("AuthorizationError",)),
        house="auth",
        patient=False,
        compared=False,
    )
    yield Fault(
        "expired",
        "credentials expired, then renewed",
        "The server refuses",
        strikes.expire,
        strikes.renew,
        "the server's words, spoken by a relay in front of it",
        Expected(tells=("AuthenticationExpiredError",)),
        house="relay",
    )
    yield Fault(
        "full",
        "no place free at the server, then freed",
        "The server refuses",
        strikes.fill_up,
        strikes.make_room,
        "`max_connections`, reached by others while the client was away",
        Expected(tells=("MaxConnectionsError",)),
        house="limited",
    )
    yield from _faults_of_links()
    yield from _faults_of_the_way_in()
    yield from _faults_of_the_process()


def _faults_of_links() -> Iterator[Fault]:
    group = "The link"
    yield Fault(
        "fin",
        "link closed (FIN)",
        group,
        strikes.on_link(lambda link, _: link.finish()),
        strikes.heal,
        "a middlebox that closes",
        lasting=False,
    )
    yield Fault(
        "rst",
        "link reset (RST)",
        group,
        strikes.on_link(lambda link, _: link.reset()),
        strikes.heal,
        "a middlebox that forgets",
        lasting=False,
    )
    yield Fault(
        "half-open",
        "half-open link",
        group,
        strikes.on_link(lambda link, _: link.half_open()),
        strikes.heal,
        "the server's host has lost its power; nothing tells the client",
        lasting=False,
    )
    for way, words in (("both", "both ways"), ("up", "up only"), ("down", "down only")):
        yield Fault(
            f"blackhole-{way}",
            f"black hole, {words}",
            group,
            strikes.on_all(lambda link, _, way=way: link.blackhole(way)),
            strikes.heal,
            "every packet is dropped, and later comes through after all",
        )
    yield Fault(
        "swallow",
        "bytes swallowed",
        group,
        strikes.on_link(lambda link, _: link.swallow()),
        strikes.heal,
        "taken and thrown away; nothing is closed",
        lasting=False,
    )
    yield Fault(
        "throttle",
        "64 KB a second",
        group,
        strikes.on_all(lambda link, _: link.throttle(64 * 1024)),
        strikes.heal,
        "a slow line, both ways",
        noticed=False,
        dwell=0.3,
    )
    yield Fault(
        "delay",
        "50 ms each way",
        group,
        strikes.on_all(lambda link, _: link.delay(0.05)),
        strikes.heal,
        "a long line",
        noticed=False,
        dwell=0.3,
    )
    yield Fault(
        "flapping",
        "every link cut after byte n",
        group,
        strikes.on_all(strikes.cut("up")),
        strikes.heal,
        "a line that holds for moments; n by chance for each link",
        dwell=0.5,
    )
    for way in ("up", "down"):
        stages = ("accept", "connect")
        yield Fault(
            f"cut-{way}",
            f"cut after byte n, {way}",
            group,
            strikes.on_flow(strikes.cut(way)),
            strikes.heal,
            "n by chance: in the middle of a frame, too; with FIN or RST",
            lasting=False,
            stages=stages,
        )
        yield Fault(
            f"corrupt-{way}",
            f"one byte changed, {way}",
            group,
            strikes.on_flow(strikes.corrupt(way)),
            strikes.heal,
            "memory of a router; TCP's checksum does not see it",
            Expected(unnoticed=1),
            lasting=False,
            noticed=False,
            dwell=0.3,
            stages=stages,
        )


def _faults_of_the_way_in() -> Iterator[Fault]:
    group = "The way in"
    yield Fault(
        "refused",
        "reset, then refused",
        group,
        strikes.reset_and(strikes.refuse),
        strikes.heal,
        "nobody listens",
    )
    yield Fault(
        "silent",
        "reset, then accepted and never answered",
        group,
        strikes.reset_and(lambda rig: rig.chaos.silent()),
        strikes.heal,
        "a load balancer without a server",
    )
    for stage in STAGES:
        yield Fault(
            f"stall-{stage}",
            f"reset, then stalled at {stage.upper() if stage != 'accept' else stage}",
            group,
            strikes.stall(stage),
            strikes.heal,
            "the handshake gets stuck there",
        )


def _faults_of_the_process() -> Iterator[Fault]:
    group = "The client's own machine"
    for name, mode, title, why in (
        ("dns-fails", "failing", "reset, the name not resolved", "the resolver says: try again"),
        ("dns-hangs", "hanging", "reset, the resolver hangs", "longer than `connect_timeout`"),
        ("dns-moves", "moved", "reset, the name leads nowhere", "then to where the server lives"),
    ):
        yield Fault(
            name,
            title,
            group,
            strikes.resolver(mode),
            strikes.resolve_well,
            why,
            named=True,
        )
    yield Fault(
        "dns-several",
        "reset, the first address dead",
        group,
        strikes.resolver("several"),
        strikes.resolve_well,
        "two addresses, the second is good",
        named=True,
        lasting=False,
        overcome=True,
    )
    yield Fault(
        "dns-silent",
        "reset, the first address silent",
        group,
        strikes.resolver_first_silent,
        strikes.resolve_well,
        "two addresses; whoever dials the first gets no answer at all",
        named=True,
        lasting=False,
        overcome=True,
    )
    for name, title, seconds in (
        ("clock-forward", "wall clock a day ahead", 86400.0),
        ("clock-back", "wall clock a day back", -86400.0),
    ):
        yield Fault(
            name,
            title,
            group,
            strikes.clock(seconds),
            strikes.set_clock_right,
            "the link is reset in the same moment",
            lasting=False,
            overcome=True,
        )
    yield Fault(
        "stood-still",
        "the process stood still",
        group,
        strikes.stand_still(0.6),
        strikes.nothing,
        "for longer than the server may stay silent",
        noticed=False,
        dwell=0.0,
        lasting=False,
    )


FAULTS: dict[str, Fault] = {fault.name: fault for fault in _faults()}


@dataclass(frozen=True)
class Moment:
    name: str
    title: str
    stage: str = ""  #: of the handshake, when it is one
    ahead: bool = False  #: the fault is there first
    proxied: bool = False  #: it needs a proxy to hold a link
    ends: bool = False  #: the application is on its way out
    then: str = ""  #: what it begins when it has noticed the fault: "drain" or "close"
    #: Bytes that flow within a moment, each way: where a fault may strike that counts bytes. The
    #: handshake has about 250 up and 500 down; a quiet link has a PING and a PONG now and then.
    reach_up: int = 600
    reach_down: int = 600


MOMENTS: dict[str, Moment] = {
    moment.name: moment
    for moment in (
        Moment("connecting", "the fault is there first", ahead=True),
        *(
            Moment(
                f"handshake-{stage}",
                f"handshake, at {stage}",
                stage=stage,
                proxied=True,
                reach_up=300,
                reach_down=600 if stage == "accept" else 6,
            )
            for stage in STAGES
        ),
        Moment("idle", "idle", reach_up=20, reach_down=20),
        Moment("publishing", "publish flood", reach_down=20),
        Moment("pressing", "publishers that wait for room", reach_up=100_000, reach_down=20),
        Moment("receiving", "receive flood", reach_up=20),
        Moment("churn", "subscribing and unsubscribing", reach_down=20),
        Moment("request", "requests in flight"),
        Moment("flush", "flushes in flight"),
        Moment("drain", "drain", ends=True, reach_down=100),
        Moment("close", "close", ends=True, reach_down=6),
        Moment("drain-away", "drain, the link gone", then="drain", ends=True, reach_down=20),
        Moment("close-away", "close, the link gone", then="close", ends=True, reach_down=20),
        Moment("restore", "restore of 2,000 subscriptions", proxied=True, reach_down=6),
        Moment("recovering", "recovering from a reset", proxied=True, reach_up=300, reach_down=300),
    )
}


class Cell(NamedTuple):
    fault: Fault
    moment: Moment
    mode: str

    @property
    def name(self) -> str:
        return f"{self.fault.name}, {self.moment.name}, {self.mode}"


def senseless(fault: Fault, moment: Moment) -> str:
    """Why this combination is not in the table; empty when it is."""
    if moment.proxied and fault.house == "cluster":
        return "direct links: nothing there can hold one"
    if moment.stage and moment.stage not in fault.stages:
        return "no byte flows that way at this stage"
    if moment.ahead and fault.name == "stood-still":
        return "the process is not connecting while it stands still"
    return ""


def cells() -> list[Cell]:
    """The whole table."""
    return [
        Cell(fault, moment, mode)
        for fault in FAULTS.values()
        for moment in MOMENTS.values()
        for mode in MODES
        if not senseless(fault, moment)
    ]


def diagonal() -> list[Cell]:
    """A subset for every run: each fault at two moments, of those that had the fewest so far."""
    chosen: list[Cell] = []
    count = Counter(dict.fromkeys(MOMENTS, 0))
    for row, fault in enumerate(FAULTS.values()):
        good = [moment for moment in MOMENTS.values() if not senseless(fault, moment)]
        good = good[row % len(good) :] + good[: row % len(good)]
        for moment in sorted(good, key=lambda moment: count[moment.name])[:2]:
            count[moment.name] += 1
            chosen.append(Cell(fault, moment, MODES[len(chosen) // 2 % 2 ^ len(chosen) % 2]))
    return chosen
