"""What happened in one cell, and what of it is not as expected."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from .table import Expected, Moment


@dataclass
class Outcome:
    """What happened in one cell. Times in seconds."""

    fault: str
    moment: str
    mode: str
    accepted: int = 0
    lost: int = 0  # of those that no exception below explains
    lost_uncertain: int = 0  # that `uncertain` had counted
    lost_dropped: int = 0  # that `dropped` had counted
    lost_by_server: int = 0  # that the server had confirmed, and took with it
    uncertain: int = 0
    dropped: int = 0
    doubled: int = 0
    late: int = 0  # came behind newer ones
    late_uncertain: int = 0  # of those: counted as uncertain
    altered: int = 0  # came, with another content
    replayed: int = 0
    received: int = 0
    missed: int = 0  # sent to the client while it was away
    received_doubled: int = 0
    received_late: int = 0
    received_altered: int = 0
    noticed: bool = True  # the application lost its link, or failed to get one
    links_lost: int = 0
    connected_after: float | None = None
    message_after: float | None = None
    callbacks: dict[str, int] = field(default_factory=dict)
    life: str = ""  # the callbacks of its life, in order, by their initials
    words: list[str] = field(default_factory=list)  # the status
    illegal: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    calls: dict[str, dict[str, int]] = field(default_factory=dict)
    overdue: list[str] = field(default_factory=list)
    audits: int = 0
    books_open: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    ended: str = ""
    seconds: float = 0.0


# -- the judgement --------------------------------------------------------------------------------


def judge(outcome: Outcome, expected: Expected, moment: Moment) -> list[str]:
    """Everything that is not as expected, in words. Empty: the cell is met."""
    return [
        *_judge_messages(outcome, expected, moment),
        *_judge_callbacks(outcome),
        *_judge_end(outcome, expected, moment),
    ]


def _judge_messages(outcome: Outcome, expected: Expected, moment: Moment) -> list[str]:
    found = []
    surely_lost = outcome.lost + max(0, outcome.lost_by_server - expected.unnoticed)
    if expected.server_loses:
        surely_lost = outcome.lost
    if surely_lost:
        found.append(f"{surely_lost} lost, and the books do not say so")
    if outcome.mode == "default":
        if outcome.doubled:
            found.append(f"{outcome.doubled} doubled")
    elif outcome.uncertain:
        found.append(f"{outcome.uncertain} uncertain, under replay_unconfirmed")
    if outcome.dropped and not moment.ends and expected.ends == "back":
        found.append(f"{outcome.dropped} dropped")
    late = outcome.late
    if outcome.mode == "default":
        late -= outcome.late_uncertain
    if late:
        found.append(f"{late} out of order")
    altered = outcome.altered + outcome.received_altered
    if altered > expected.unnoticed:
        found.append(f"{altered} altered")
    if outcome.received_doubled or outcome.received_late:
        found.append(
            f"received: {outcome.received_doubled} doubled, {outcome.received_late} out of order"
        )
    return found


def _judge_callbacks(outcome: Outcome) -> list[str]:
    found = [f"illegal move: {move}" for move in outcome.illegal]
    heard = Counter(outcome.callbacks)
    pairs = list(zip(["disconnected", *outcome.words], outcome.words))
    back = sum(old == "reconnecting" and new != "closed" for old, new in pairs)
    wanted = {
        "connected_cb": sum(pair == ("connecting", "connected") for pair in pairs),
        "disconnected_cb": outcome.links_lost,
        "reconnected_cb": back,
        "closed_cb": 1,
    }
    for name, count in wanted.items():
        if heard[name] != count:
            found.append(f"{name} {heard[name]} times, not {count}")
    lost = sum(new == "reconnecting" for new in outcome.words)
    if lost != outcome.links_lost:
        found.append(f"{outcome.links_lost} losses, {lost} times reconnecting")
    if not re.fullmatch(r"(c(dr)*d?)?x", outcome.life):
        found.append(f"the callbacks came in the order {outcome.life}")
    return found


def _judge_end(outcome: Outcome, expected: Expected, moment: Moment) -> list[str]:
    found = [f"overdue: {call}" for call in outcome.overdue]
    ends = "closed" if moment.ends else expected.ends
    if outcome.ended != ends:
        found.append(f"it ended {outcome.ended}, not {ends}")
    elif ends == "back":
        found += _judge_return(outcome, expected)
    if not moment.ends:
        found += _judge_words(outcome, expected)
        if not outcome.noticed:
            found.append("the fault has not been noticed, or not been one")
    drained = outcome.calls.get("drain", {})
    if expected.ends == "back" and set(drained) - {"ok"}:
        found.append(f"drain: {drained}")
    elif drained and outcome.dropped and expected.ends == "back":
        found.append(f"drained, and {outcome.dropped} dropped")
    found += [f"the books do not close: {books}" for books in outcome.books_open[:1]]
    found += outcome.wrong
    found += [f"left: {what}" for what in outcome.leftovers]
    return found


def _judge_words(outcome: Outcome, expected: Expected) -> list[str]:
    """What the application must be told of this fault."""
    found = []
    if expected.tells and not set(expected.tells) & set(outcome.errors):
        found.append(f"error_cb never heard of {' or '.join(expected.tells)}: {outcome.errors}")
    if expected.calls and outcome.links_lost and expected.calls not in outcome.callbacks:
        found.append(f"{expected.calls} never came")
    return found


def _judge_return(outcome: Outcome, expected: Expected) -> list[str]:
    if outcome.message_after is None:
        return ["no message got through after the cure"]
    if outcome.message_after > expected.within:
        return [f"it took {outcome.message_after:.2f} s to return"]
    return []
