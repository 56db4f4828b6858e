"""What an operator types about a sale: each duration and moment, and terms that make no sense."""

import time
from collections.abc import Callable, Iterator

import pytest

from flashsale.domain.bounds import HOLD_MAX_S, ITEMS_MAX, STOCK_MAX, TIME_MAX
from flashsale.domain.sale import PLAIN, Terms
from flashsale.errors import InvalidValueError
from flashsale.terms import Moment, check_terms, local_time, parse_duration, parse_moment, show_duration, show_moment

NOW_S = 1_764_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("15m", 900), ("1h", 3_600), ("30d", 2_592_000), ("0s", 0), ("007m", 420)],
)
def test_a_duration_is_a_whole_number_and_its_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "1.5h", "-1s", "1 h", "1H", "1w", "1h30m", "٣s", "1" * 13 + "s"])
def test_what_is_no_duration_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a duration: give a whole number with its unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (2, "2s"), (900, "15m"), (3_600, "1h"), (5_400, "1h 30m"), (90_061, "1d 1h"), (2_592_000, "30d")],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: int, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01T00:00:00Z", Moment(0)),
        ("2026-11-27T09:00:00+01:00", Moment(1_795_766_400)),
        ("2026-11-27 09:00+01:00", Moment(1_795_766_400)),
        ("20261127T080000Z", Moment(1_795_766_400)),
        ("+3s", Moment(3, relative=True)),
        ("+10m", Moment(600, relative=True)),
    ],
)
def test_a_moment_has_a_zone_or_is_counted_from_now(text: str, moment: Moment) -> None:
    assert parse_moment(text) == moment
    assert moment.at(NOW_S) == moment.seconds + NOW_S * moment.relative


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2026-11-27T09:00:00", "has no time zone: add Z"),
        ("2026-11-27", "has no time zone"),
        ("2026-11-27T09:00:00.5Z", "has a fraction of a second"),
        ("tomorrow", "is not a time"),
        ("2026-13-01T00:00:00Z", "is not a time"),
        ("", "is not a time"),
        ("+", "is not a duration"),
        ("+10", "is not a duration"),
    ],
)
def test_what_is_no_moment_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        parse_moment(text)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Be in another zone."""

    def move(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_moment_is_shown_as_it_can_be_typed(zone: Callable[[str], None], name: str) -> None:
    zone(name)
    for seconds in (0, NOW_S, TIME_MAX - 1, TIME_MAX):  # at the end it is the year 10000 in Tokyo
        assert parse_moment(show_moment(seconds)) == Moment(seconds)


def test_a_moment_that_no_calendar_has_is_shown_as_a_number() -> None:
    for seconds in (TIME_MAX + 1, 10**15, 10**30, -(10**30)):  # somebody else wrote it into the store
        assert local_time(seconds) is None
        assert show_moment(seconds) == str(seconds)


@pytest.mark.parametrize(
    "terms",
    [
        PLAIN,
        Terms(limit=1, opens_at=NOW_S + 10, closes_at=NOW_S + 11, hold_s=1, hold_total_s=1, numbered=True),
        Terms(limit=STOCK_MAX, opens_at=NOW_S - 10, closes_at=TIME_MAX, hold_s=HOLD_MAX_S, hold_total_s=HOLD_MAX_S),
    ],
)
def test_terms_that_make_sense(terms: Terms) -> None:
    check_terms(ITEMS_MAX, terms, NOW_S)


@pytest.mark.parametrize(
    ("stock", "terms", "reason"),
    [
        (1, Terms(limit=-1), "the limit is"),
        (1, Terms(limit=STOCK_MAX + 1), "the limit is"),
        (1, Terms(hold_s=0), "a hold lasts from 1s to 30d"),
        (1, Terms(hold_s=HOLD_MAX_S + 1, hold_total_s=HOLD_MAX_S), "a hold lasts from 1s to 30d"),
        (1, Terms(hold_total_s=HOLD_MAX_S + 1), "a hold lasts from 1s to 30d"),
        (1, Terms(hold_s=900, hold_total_s=899), "a hold of 15m cannot end after 14m 59s at the latest"),
        (1, Terms(opens_at=NOW_S + 5, closes_at=NOW_S + 5), "would close before it opens"),
        (1, Terms(closes_at=NOW_S), "would be closed already"),
        (1, Terms(opens_at=-1), "before 1970"),
        (1, Terms(opens_at=TIME_MAX + 1), "after the year 9999"),
        (ITEMS_MAX + 1, Terms(numbered=True), "at most 10000000 units can be numbered"),
    ],
)
def test_terms_that_make_none_are_told_why(stock: int, terms: Terms, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        check_terms(stock, terms, NOW_S)
