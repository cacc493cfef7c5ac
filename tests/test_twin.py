"""The twins of the hot path: which is chosen, and that both have the same face.

That they do the same is for test_scanner, test_mailbox, test_intake, test_inbox and test_message,
which run on both, and for all other tests, which run on the one that is chosen.
"""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import subprocess
import sys
import weakref
from typing import Any, NamedTuple

import pytest

import gnats
from gnats import inbox, intake, mailbox, message, scanner

pytestmark = pytest.mark.sansio


class Pair(NamedTuple):
    pure: type
    used: type


PAIRS = {
    "Msg": Pair(message.PureMsg, message.Msg),
    "Scanner": Pair(scanner.PureScanner, scanner.Scanner),
    "Mailbox": Pair(mailbox.PureMailbox, mailbox.Mailbox),
    "Sorter": Pair(mailbox.PureSorter, mailbox.Sorter),
    "Intake": Pair(intake.PureIntake, intake.Intake),
    "Publisher": Pair(intake.PurePublisher, intake.Publisher),
    "Waiter": Pair(inbox.PureWaiter, inbox.Waiter),
    "Inbox": Pair(inbox.PureInbox, inbox.Inbox),
}
each_pair = pytest.mark.parametrize("pair", list(PAIRS.values()), ids=list(PAIRS))

# What one twin needs and the other does not: inside, nobody else reads it.
OWN = {
    "_at", "_buffer", "_call_off", "_check", "_clock", "_count", "_due", "_first", "_headers",
    "_heads", "_home", "_known", "_lines", "_new_switch", "_queue", "_remember", "_shown_headers",
    "_start_timer", "_switch", "_thread", "_woken",
}  # fmt: skip


def names(of: type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("__")} - OWN


@each_pair
def test_both_have_the_same_names(pair: Pair) -> None:
    assert names(pair.pure) == names(pair.used)
    assert pair.pure.__name__ == pair.used.__name__


@each_pair
def test_both_say_the_same_of_themselves(pair: Pair) -> None:
    assert inspect.getdoc(pair.pure) == inspect.getdoc(pair.used)
    for name in names(pair.pure):
        ours, theirs = (inspect.getattr_static(one, name) for one in pair)
        if callable(ours) or isinstance(ours, property):
            assert _doc(ours) == _doc(theirs), name


def _doc(of: Any) -> str | None:
    text = getattr(of, "__doc__", None)
    return inspect.cleandoc(text) if text else None


@each_pair
def test_both_take_the_same_arguments(pair: Pair) -> None:
    for name in names(pair.pure):
        ours, theirs = (inspect.getattr_static(one, name) for one in pair)
        if inspect.isfunction(ours):
            assert _parameters(ours) == _parameters(theirs), name


def _parameters(of: Any) -> list[tuple[str, Any]]:
    return [(one.name, one.default) for one in inspect.signature(of).parameters.values()]


@pytest.mark.parametrize(("value", "pure"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_chooses(value: str, pure: bool) -> None:
    program = "import gnats; print(gnats.compiled, gnats.Msg.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "GNATS_PURE_PYTHON": value},
        capture_output=True,
        text=True,
        timeout=50,
    )
    said = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert said in (["True", "gnats._message"], ["False", "gnats.message"])
    if pure:
        assert said[0] == "False"


def test_all_or_none() -> None:
    compiled = {pair.pure is not pair.used for pair in PAIRS.values()}
    assert compiled == {gnats.compiled}


# -- what Python promises of any object ----------------------------------------------------


@pytest.fixture(params=["pure", "used"])
def new_msg(request: pytest.FixtureRequest) -> Any:
    return message.PureMsg if request.param == "pure" else message.Msg


def test_a_circle_through_a_message_is_collected(new_msg: Any) -> None:
    class Keeper:
        pass

    keeper = Keeper()
    keeper.msg = new_msg("a", 1, "", None, b"")  # type: ignore[attr-defined]
    keeper.msg.sub = keeper  # type: ignore[attr-defined]
    gone = weakref.ref(keeper)
    del keeper
    gc.collect()
    assert gone() is None


def test_a_message_can_be_copied(new_msg: Any) -> None:
    msg = new_msg("a.b", 7, "r", b"NATS/1.0\r\nA: b\r\n\r\n", b"x")
    for one in (copy.copy(msg), copy.deepcopy(msg)):
        assert type(one) is new_msg
        assert (one.subject, one.sid, one.reply, one.data) == ("a.b", 7, "r", b"x")
        assert one.headers["A"] == "b"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_message_can_be_pickled(protocol: int) -> None:
    msg = message.Msg("a.b", 7, "r", b"NATS/1.0\r\nA: b\r\n\r\n", b"x")
    assert msg.headers == {"A": "b"}
    one = pickle.loads(pickle.dumps(msg, protocol))
    assert (one.subject, one.sid, one.reply, one.data) == ("a.b", 7, "r", b"x")
    assert one.headers == {"A": "b"}
    assert one.sub is None


def test_a_copy_keeps_its_subscription(new_msg: Any) -> None:
    class Sub:
        pass

    msg = new_msg("a", 1, "", None, b"")
    msg.sub = Sub()
    assert copy.copy(msg).sub is msg.sub
    assert type(copy.deepcopy(msg).sub) is Sub


@each_pair
def test_no_state_is_taken_on_trust(pair: Pair) -> None:
    """What ``__setstate__`` is given comes from a pickle, and may be the other twin's."""
    for one in pair:
        assert not hasattr(one, "__setstate__")


def test_what_keeps_a_link_is_no_value_to_pickle() -> None:
    for pair in PAIRS.values():
        if pair.pure is not message.PureMsg and pair.pure is not pair.used:
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(pair.used.__new__(pair.used))


@each_pair
def test_what_was_never_begun_raises_and_reads_nothing(pair: Pair) -> None:
    """An object made by ``__new__`` alone: each method raises, or does no harm."""
    for kind in pair:
        for name in names(pair.pure):
            one = kind.__new__(kind)
            for count in range(6):
                args = (message.Msg("a", 1, "", None, b""), b"", "", None, None, 1)[:count]
                try:
                    method = getattr(one, name)
                    method(*args) if callable(method) else method
                except Exception:
                    continue


def test_a_message_takes_no_other_attributes(new_msg: Any) -> None:
    msg = new_msg("a", 1, "", None, b"")
    with pytest.raises(AttributeError):
        msg.colour = "red"
    msg.data, msg.sub = b"other", None
    assert msg.data == b"other"


@each_pair
def test_both_can_be_subclassed_and_referred_to_weakly_then(pair: Pair) -> None:
    for one in pair:
        kind = type("Kind", (one,), {})
        made = kind.__new__(kind)
        assert weakref.ref(made)() is made
