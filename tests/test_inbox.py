"""Inbox and Waiter, both twins: whose reply it is, late ones, and one timer for all deadlines."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gnats import inbox
from gnats.errors import Error, NoRespondersError, TimeoutError
from gnats.message import Msg

pytestmark = pytest.mark.sansio


class Switch:
    """gevent's Waiter without greenlets: ``get`` runs what the loop would do meanwhile."""

    meanwhile: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.hub = SimpleNamespace(loop=SimpleNamespace(run_callback=self._run_callback))

    def _run_callback(self, function: Any, *args: Any) -> None:
        self.calls.append((function, args))

    def switch(self, value: Any) -> None:
        """Never called here."""

    def get(self) -> None:
        assert Switch.meanwhile is not None, "it would wait for ever"
        Switch.meanwhile()
        assert self.calls, "nobody has woken it"


class Timers:
    def __init__(self) -> None:
        self.running: dict[object, tuple[float, Callable[[], None]]] = {}
        self.started = 0

    def start(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        key = object()
        self.started += 1
        self.running[key] = (seconds, callback)
        return lambda: self.running.pop(key, None) and None

    @property
    def seconds(self) -> float:
        ((seconds, _),) = self.running.values()
        return seconds

    def fire(self) -> None:
        ((_, callback),) = self.running.values()
        callback()


class Desk:
    """An inbox under test, its timers, and a clock that tests move."""

    def __init__(self, twin: str) -> None:
        self.timers = Timers()
        kind = inbox.PureInbox if twin == "pure" else inbox.Inbox
        self.waiter = inbox.PureWaiter if twin == "pure" else inbox.Waiter
        self.began = 0
        self.refused: Error | None = None
        desk = self

        class Ours(kind):  # type: ignore[misc, valid-type]
            def _begin(self) -> None:
                desk.began += 1
                self._prefix = f"_INBOX.{desk.began}."

        self.inbox: Any = Ours(Switch, self.timers.start, self._check)

    def _check(self, operation: str) -> None:
        assert operation == "request"
        if self.refused is not None:
            raise self.refused


@pytest.fixture(params=["pure", "used"])
def desk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(Switch, "meanwhile", None)
    return Desk(request.param)


def reply(waiter: Any, data: bytes = b"answer", block: bytes | None = None) -> Msg:
    return Msg(waiter.to, 1, "", block, data)


def test_each_gets_its_own_reply(desk: Desk) -> None:
    waiters = [desk.inbox.ask("s", 5.0) for _ in range(20)]
    assert [one.to for one in waiters] == [f"_INBOX.1.{number + 1:x}" for number in range(20)]
    assert (desk.inbox.waiting, desk.began) == (20, 1)
    for one in reversed(waiters):
        desk.inbox.deliver(reply(one, one.to.encode()))
    assert [one.wait().data.decode() for one in waiters] == [one.to for one in waiters]
    for one in waiters:
        desk.inbox.close(one.to)
    assert (desk.inbox.waiting, desk.inbox.late) == (0, 0)


def test_a_reply_that_comes_while_it_waits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = desk.inbox.ask("s", None)
    answer = reply(waiter)
    monkeypatch.setattr(Switch, "meanwhile", lambda: desk.inbox.deliver(answer))
    assert waiter.wait() is answer
    assert desk.timers.running == {}


def test_late_and_second_replies_are_counted(desk: Desk) -> None:
    waiter = desk.inbox.ask("s", 5)
    first = reply(waiter)
    desk.inbox.deliver(first)
    desk.inbox.deliver(reply(waiter))
    assert desk.inbox.late == 1
    assert waiter.wait() is first
    desk.inbox.close(waiter.to)
    desk.inbox.close(waiter.to)
    desk.inbox.deliver(reply(waiter))
    desk.inbox.deliver(Msg("another", 1, "", None, b""))
    assert desk.inbox.late == 3


def test_whoever_collects_is_served_too(desk: Desk) -> None:
    got: list[Msg] = []

    class Collector:
        def deliver(self, msg: Msg) -> bool:
            got.append(msg)
            return len(got) < 3

    to = desk.inbox.open(Collector())
    for _ in range(4):
        desk.inbox.deliver(Msg(to, 1, "", None, b""))
    assert (len(got), desk.inbox.late) == (4, 2)
    desk.inbox.ask("s", 5)
    desk.timers.fire()  # it has no deadline there
    assert desk.inbox.waiting == 2


def test_no_responders(desk: Desk) -> None:
    waiter = desk.inbox.ask("s", 5)
    desk.inbox.deliver(reply(waiter, b"", b"NATS/1.0 503\r\n\r\n"))
    with pytest.raises(NoRespondersError) as caught:
        waiter.wait()
    assert caught.value.subject == "s"
    other = desk.inbox.ask("s", 5)
    desk.inbox.deliver(reply(other, b"", b"NATS/1.0\r\nA: b\r\n\r\n"))
    assert other.wait().headers == {"A": "b"}


def test_failures(desk: Desk) -> None:
    waiter = desk.inbox.ask("s", 5)
    error = Error("closed")
    waiter.fail(error)
    with pytest.raises(Error, match="closed"):
        waiter.wait()


def test_who_cannot_wait_is_refused_before_anything_is_done(desk: Desk) -> None:
    desk.refused = Error("in the hub")
    with pytest.raises(Error, match="in the hub"):
        desk.inbox.ask("s", 5)
    assert (desk.inbox.waiting, desk.began, desk.timers.started) == (0, 0, 0)


def test_an_inbox_that_cannot_be_made(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise Error("no inbox")

    monkeypatch.setattr(type(desk.inbox), "_begin", refuse)
    with pytest.raises(Error, match="no inbox"):
        desk.inbox.ask("s", 5)
    assert (desk.inbox.waiting, desk.timers.started) == (0, 0)


# -- deadlines -----------------------------------------------------------------------------


def timed_out(waiter: Any) -> bool:
    if not waiter.expired:
        return False
    with pytest.raises(TimeoutError, match=r"to 's' within 0\.0\d+ s") as caught:
        waiter.wait()
    assert caught.value.timeout == waiter.seconds
    return True


def test_a_deadline(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = desk.inbox.ask("s", 0.02)
    assert 0 < desk.timers.seconds <= 0.02
    assert 0 < waiter.remaining() <= 0.02
    desk.timers.fire()  # too early, as loops with coarse clocks do
    assert 0 <= desk.timers.seconds <= 0.02

    def meanwhile() -> None:
        while desk.timers.running:
            desk.timers.fire()

    monkeypatch.setattr(Switch, "meanwhile", meanwhile)
    with pytest.raises(TimeoutError, match=r"no answer to the request to 's' within 0\.02 s"):
        waiter.wait()
    assert waiter.expired
    assert waiter.remaining() == 0.0
    assert desk.timers.running == {}


def test_zero_seconds_do_not_wait(desk: Desk) -> None:
    waiter = desk.inbox.ask("s", 0)
    with pytest.raises(TimeoutError):
        waiter.wait()


@pytest.mark.parametrize("seconds", [None, 2e9, 1e12])
def test_for_ever_needs_no_timer(desk: Desk, seconds: float | None) -> None:
    waiter = desk.inbox.ask("s", seconds)
    assert desk.timers.running == {}
    assert waiter.seconds == seconds
    assert not waiter.expired
    assert waiter.remaining() is None if seconds is None else waiter.remaining() > 1e8


def test_one_timer_for_all(desk: Desk) -> None:
    for _ in range(1000):
        desk.inbox.ask("s", 50.0)
    assert (desk.timers.started, len(desk.timers.running)) == (1, 1)
    desk.inbox.ask("s", 10.0)
    assert (desk.timers.started, len(desk.timers.running)) == (2, 1)
    assert desk.timers.seconds <= 10
    desk.inbox.ask("s", 20.0)
    assert desk.timers.started == 2
    desk.inbox._clear_timer()
    assert desk.timers.running == {}
    desk.inbox.ask("s", 90.0)
    assert desk.timers.started == 3


def test_who_closes_a_request_while_deadlines_are_looked_at(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what is collected as garbage does. The others are woken all the same."""
    run_callback = Switch._run_callback

    def closes(self: Switch, *args: Any) -> None:
        run_callback(self, *args)
        desk.inbox.close(second.to)

    monkeypatch.setattr(Switch, "_run_callback", closes)
    first, second, third = (desk.inbox.ask("s", seconds) for seconds in (0.0, 0.0, 50.0))
    desk.timers.fire()
    assert first.expired
    assert desk.inbox.waiting == 2
    assert 40 < desk.timers.seconds <= 50
    assert not third.expired


def test_reply_subjects_count_on(desk: Desk) -> None:
    collector = object()
    for number in range(1, 70_000):
        to = desk.inbox.open(collector)
        assert to == f"_INBOX.1.{number:x}"
        desk.inbox.close(to)


def test_many_deadlines(desk: Desk, rng: random.Random) -> None:
    """Everyone is woken when the time has come, and nobody before it."""
    waiters = [desk.inbox.ask("s", rng.uniform(0.01, 0.06)) for _ in range(200)]
    answered = set(rng.sample(range(200), 50))
    for number in answered:
        desk.inbox.deliver(reply(waiters[number]))
    left = {number for number in range(200) if number not in answered}
    while desk.timers.running:
        desk.timers.fire()
        for number in list(left):
            if waiters[number].expired and _woken(waiters[number]):
                assert timed_out(waiters[number])
                desk.inbox.close(waiters[number].to)
                left.discard(number)
        for number in left:
            assert not _woken(waiters[number]) or waiters[number].expired
    assert left == set()
    assert all(waiters[number].wait().data == b"answer" for number in answered)


def _woken(waiter: Any) -> bool:
    """Whether it would come back from its wait at once."""
    try:
        waiter.wait()
    except AssertionError:  # of the switch, which nobody has woken
        return False
    except TimeoutError:
        return True
    return True
