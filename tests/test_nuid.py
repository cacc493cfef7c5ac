"""Ids: their shape, and that no two are the same."""

from __future__ import annotations

import re

import pytest

from gnats import nuid
from gnats.nuid import NUID

pytestmark = pytest.mark.sansio


def test_shape() -> None:
    ids = NUID()
    for _ in range(1000):
        assert re.fullmatch(r"[0-9A-Za-z]{22}", ids.next())


def test_no_two_are_the_same() -> None:
    one, other = NUID(), NUID()
    seen = {ids.next() for _ in range(50_000) for ids in (one, other)}
    assert len(seen) == 100_000


def test_generators_differ_in_their_random_part() -> None:
    assert len({NUID().next()[:12] for _ in range(200)}) == 200


def test_ids_of_one_generator_share_the_random_part_and_count_up() -> None:
    ids = NUID()
    ids._count = 0
    several = [ids.next() for _ in range(1000)]
    assert len({one[:12] for one in several}) == 1
    assert several == sorted(several)  # the digits are in the order of ASCII
    steps = {int_of(b[12:]) - int_of(a[12:]) for a, b in zip(several, several[1:])}
    assert len(steps) == 1
    assert 33 <= steps.pop() <= 333


def int_of(text: str) -> int:
    number = 0
    for digit in text:
        number = number * 62 + nuid._DIGITS.index(digit)
    return number


def test_reset_takes_a_new_random_part() -> None:
    ids = NUID()
    before = ids.next()
    ids.reset()
    assert ids.next()[:12] != before[:12]


def test_a_count_that_runs_out_takes_a_new_random_part() -> None:
    ids = NUID()
    before = ids.next()
    ids._count = 62**10 - 1
    after = ids.next()
    assert after[:12] != before[:12]
    assert re.fullmatch(r"[0-9A-Za-z]{22}", after)


def test_the_last_count_is_used_and_the_next_one_wraps() -> None:
    ids = NUID()
    prefix = ids.next()[:12]
    ids._count = 62**10 - 1 - ids._step
    assert ids.next() == prefix + "z" * 10
    assert ids.next()[:12] != prefix


def test_a_count_that_ends_exactly_wraps_too() -> None:
    ids = NUID()
    prefix = ids.next()[:12]
    ids._count = 62**10 - ids._step
    assert ids.next()[:12] != prefix


@pytest.mark.parametrize(
    ("number", "text"), [(0, "000"), (61, "00z"), (62, "010"), (62**3 - 1, "zzz")]
)
def test_base62(number: int, text: str) -> None:
    assert nuid._base62(number, 3) == text


def test_the_digits_are_62_different_ones() -> None:
    assert len(set(nuid._DIGITS)) == 62
    assert nuid._DIGITS.isalnum()
