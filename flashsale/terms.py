"""What an operator types when opening a sale: durations, moments, and whether they make sense together."""

import re
from datetime import UTC, datetime

from msgspec import Struct

from flashsale.domain.bounds import HOLD_MAX_S, ITEMS_MAX, STOCK_MAX, TIME_MAX
from flashsale.domain.sale import Terms
from flashsale.errors import InvalidValueError

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,12})([smhd])")


class Moment(Struct, frozen=True):
    """A moment in Unix seconds; or so many seconds from now, whose clock is the store's."""

    seconds: int
    relative: bool = False

    def at(self, now_s: int) -> int:
        """Return the moment in Unix seconds."""
        return now_s + self.seconds if self.relative else self.seconds


def parse_duration(text: str) -> int:
    """Return the seconds that '2s', '15m', '1h' or '7d' mean; raises InvalidValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidValueError(f"'{text}' is not a duration: give a whole number with its unit, such as 2s, 15m, 1h")
    return int(found[1]) * _UNITS_S[found[2]]


def parse_moment(text: str) -> Moment:
    """Return the moment that an ISO 8601 time with its zone means, or '+10m' from now; raises InvalidValueError."""
    if text.startswith("+"):
        return Moment(parse_duration(text[1:]), relative=True)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidValueError(
            f"'{text}' is not a time: give it as 2026-11-27T09:00:00+01:00, or from now on as +10m"
        ) from None
    if moment.tzinfo is None:
        raise InvalidValueError(f"'{text}' has no time zone: add Z for UTC, or an offset such as +01:00")
    if moment.microsecond:
        raise InvalidValueError(f"'{text}' has a fraction of a second: give whole seconds")
    return Moment(int(moment.timestamp()))


def show_duration(seconds: int) -> str:
    """Return a duration as it is typed, in its two largest units at most: '1h 30m', '15m', '2s'."""
    parts = []
    for unit, size in sorted(_UNITS_S.items(), key=lambda row: -row[1]):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def local_time(seconds: int) -> datetime | None:
    """Return a moment in Unix seconds in the zone of this machine; None when no calendar has it.

    The end of the year 9999 is in UTC where it would be the year 10000.
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    try:
        return moment.astimezone()
    except OverflowError:
        return moment


def show_moment(seconds: int) -> str:
    """Return a moment in Unix seconds as ISO 8601; as the number that it is when no calendar has it."""
    moment = local_time(seconds)
    return moment.isoformat(" ") if moment else str(seconds)


def check_terms(stock: int, terms: Terms, now_s: int) -> None:
    """Raise InvalidValueError unless a sale of `stock` units on these terms, opened at `now_s`, makes sense."""
    wrong = {
        f"the limit is a number of units from 1 to {STOCK_MAX}": not 0 <= terms.limit <= STOCK_MAX,
        f"a hold lasts from 1s to {show_duration(HOLD_MAX_S)}": not (
            1 <= terms.hold_s <= HOLD_MAX_S and 1 <= terms.hold_total_s <= HOLD_MAX_S
        ),
        f"a hold of {show_duration(terms.hold_s)} cannot end after {show_duration(terms.hold_total_s)} at the latest": (
            terms.hold_total_s < terms.hold_s
        ),
        "the sale would close before it opens": 0 < terms.closes_at <= terms.opens_at,
        "the sale would be closed already": 0 < terms.closes_at <= now_s,
        "no sale may begin or end before 1970 or after the year 9999": not (
            0 <= terms.opens_at <= TIME_MAX and 0 <= terms.closes_at <= TIME_MAX
        ),
        f"at most {ITEMS_MAX} units can be numbered": terms.numbered and stock > ITEMS_MAX,
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise InvalidValueError(sentence)


def check_stock(value: str) -> int:
    """Return the number of units, or raise InvalidValueError unless it is a whole number from 0 to STOCK_MAX."""
    if value.isascii() and value.isdigit() and len(value) <= len(str(STOCK_MAX)) and int(value) <= STOCK_MAX:
        return int(value)
    raise InvalidValueError(f"'{value}' is not a stock: give a whole number of units from 0 to {STOCK_MAX}")
