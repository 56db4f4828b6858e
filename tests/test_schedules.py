"""When a recurring sale is due, and what it is called: reckoning, without a clock or a store."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.domain.sale import PLAIN, Terms
from flashsale.domain.schedules import (
    CurrentSale,
    Due,
    Schedule,
    check_schedule_name,
    find_due,
    is_sale_id,
    next_begin,
    period_begin,
)
from flashsale.errors import InvalidValueError

MINUTE_S, HOUR_S = 60, 3_600
TEN = 1_640_995_200 + 10 * HOUR_S  # 10:00 in UTC


def schedule(name: str = "hourly", every_s: int = HOUR_S) -> Schedule:
    return Schedule(name=name, every_s=every_s, item_count=10)


def opened(begins_at: int, ends_at: int, name: str = "hourly") -> dict[str, CurrentSale]:
    sale = CurrentSale(
        schedule=name, product_id="p", begins_at=begins_at, ends_at=ends_at, item_count=10, numbered=False
    )
    return {name: sale}


def test_an_hour_begins_on_the_hour() -> None:
    assert period_begin(HOUR_S, TEN) == period_begin(HOUR_S, TEN + HOUR_S - 1) == TEN
    assert next_begin(schedule(), TEN) == next_begin(schedule(), TEN + HOUR_S - 1) == TEN + HOUR_S


@given(st.integers(1, 7 * 86_400), st.integers(0, 2**33))
def test_every_moment_is_in_one_period(every_s: int, now_s: int) -> None:
    begins_at = period_begin(every_s, now_s)
    assert begins_at <= now_s < begins_at + every_s
    assert begins_at % every_s == 0
    assert next_begin(schedule(every_s=every_s), now_s) == begins_at + every_s


@pytest.mark.parametrize(
    ("last", "now_s", "begins_at"),
    [
        ({}, TEN, [TEN]),
        ({}, TEN + 40 * MINUTE_S, [TEN]),
        (opened(TEN, TEN + HOUR_S), TEN, []),
        (opened(TEN, TEN + HOUR_S), TEN + HOUR_S - 1, []),
        (opened(TEN, TEN + HOUR_S), TEN + HOUR_S, [TEN + HOUR_S]),
        (opened(TEN, TEN + HOUR_S), TEN + 5 * HOUR_S + 1, [TEN + 5 * HOUR_S]),  # what was missed is not made up
        (opened(TEN, TEN + HOUR_S), TEN - 1, []),  # a clock that was set back
        (opened(TEN, TEN + HOUR_S), TEN - HOUR_S, []),
        (opened(TEN, TEN + HOUR_S), TEN - HOUR_S - 1, [TEN - 2 * HOUR_S]),  # one that was wrong
        (opened(TEN, TEN + 90 * MINUTE_S), TEN + HOUR_S, []),  # of other terms before: it goes on to its end
        (opened(TEN, TEN + HOUR_S, "another"), TEN, [TEN]),
    ],
)
def test_what_is_due(last: dict[str, CurrentSale], now_s: int, begins_at: list[int]) -> None:
    assert find_due([schedule()], last, now_s) == [Due(schedule(), at) for at in begins_at]


def test_each_schedule_is_due_by_itself() -> None:
    all_of_them = [schedule(), schedule("quarters", 15 * MINUTE_S)]
    found = find_due(all_of_them, opened(TEN, TEN + HOUR_S), TEN + 50 * MINUTE_S)
    assert found == [Due(all_of_them[1], TEN + 45 * MINUTE_S)]


def test_a_sale_is_called_by_its_begin_and_its_epoch() -> None:
    due = Due(schedule(), 1_640_995_200)
    assert due.product_id == f"sale_1640995200_{due.epoch}" == "sale_1640995200_731bb28b"
    assert re.fullmatch("[0-9a-f]{8}", due.epoch)
    assert is_sale_id(due.product_id)
    assert not any(map(is_sale_id, ("sale_1640995200", "sale__731bb28b", "sale_1_731bb28", due.product_id + "\n")))
    assert due.product_id == Due(Schedule(name="hourly", every_s=HOUR_S, item_count=1), due.begins_at).product_id
    others = [Due(schedule("other"), due.begins_at), Due(schedule(), TEN)]
    others.append(Due(Schedule(name="hourly", every_s=60, item_count=1), due.begins_at))
    assert len({due.epoch, *(other.epoch for other in others)}) == 4


def test_a_schedule_without_further_words_is_that_of_a_plain_sale() -> None:
    assert schedule().terms == PLAIN
    numbered = Schedule(name="n", every_s=60, item_count=10, limit=2, hold_s=5, hold_total_s=9, numbered=True)
    assert numbered.terms == Terms(limit=2, hold_s=5, hold_total_s=9, numbered=True)


@pytest.mark.parametrize("name", ["a", "hourly", "Half-hour_2", "9", "a" * 12])
def test_a_schedule_may_have_that_name(name: str) -> None:
    assert check_schedule_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "_a", "a/b", "a" * 13, "é", "a\n", "sale:1", "a\x1b[2J"])
def test_a_schedule_may_not_have_that_name(name: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a schedule's name: give 1 to 12 letters"):
        check_schedule_name(name)
