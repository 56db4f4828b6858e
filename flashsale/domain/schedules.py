"""A sale that comes again and again: its schedule, the periods that this divides time into, and the sale of each.

Periods are counted from the Unix epoch, so that one of an hour begins on the hour, whoever reckons it.
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Annotated

from msgspec import Meta, Struct

from flashsale.domain.bounds import HOLD_MAX_S, STOCK_MAX
from flashsale.domain.sale import Terms
from flashsale.errors import InvalidValueError

SCHEDULE_COUNT_MAX = 64
"""Schedules in a store: each is looked at by every worker once a second."""

EVERY_MAX_S = 7 * 86_400
"""The longest period, in seconds."""

KEEP_S = 172_800
"""For how long a sale stays in the store after its end, by default: a request id is remembered for a day at least."""

KEEP_MAX_S = 366 * 86_400
"""The longest that a sale may stay, in seconds."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,11}")
_SALE_ID = re.compile(r"sale_[0-9]+_[0-9a-f]{8}")


class Schedule(Struct, frozen=True, kw_only=True):
    """What an operator says of a sale that comes again and again."""

    name: str
    every_s: Annotated[int, Meta(ge=1, le=EVERY_MAX_S)]
    """The length of its periods; each has a sale of its own, from its first second to its last."""
    item_count: Annotated[int, Meta(ge=1, le=STOCK_MAX)]
    """Units of each sale."""
    limit: Annotated[int, Meta(ge=0, le=STOCK_MAX)] = 0
    """Units that one user may buy and hold together in each sale; 0 for any number."""
    hold_s: Annotated[int, Meta(ge=1, le=HOLD_MAX_S)] = 900
    hold_total_s: Annotated[int, Meta(ge=1, le=HOLD_MAX_S)] = 3_600
    numbered: bool = False
    keep_s: Annotated[int, Meta(ge=0, le=KEEP_MAX_S)] = KEEP_S
    """For how long a sale stays in the store after its end."""

    @property
    def terms(self) -> Terms:
        """Return the terms of each sale, but for its window."""
        return Terms(limit=self.limit, hold_s=self.hold_s, hold_total_s=self.hold_total_s, numbered=self.numbered)


class CurrentSale(Struct, frozen=True, kw_only=True):
    """The sale of a period that a schedule has opened. Moments are Unix seconds by the store's clock."""

    schedule: str
    """Its name."""
    product_id: str
    begins_at: int
    ends_at: int
    """The first moment at which nothing is sold any more."""
    item_count: int
    """Units that it was opened with."""
    numbered: bool

    def is_far_ahead(self, now_s: float) -> bool:
        """Return whether it begins more than a period from now: it was opened by a clock that was wrong.

        One that begins sooner is waited for, as a clock may be set back a little just after it was opened.
        """
        return self.begins_at - now_s > self.ends_at - self.begins_at


class Due(Struct, frozen=True):
    """A sale that is to be opened."""

    schedule: Schedule
    begins_at: int

    @property
    def epoch(self) -> str:
        """Return the epoch of that sale: 8 hex digits, the same ones whoever opens it.

        So one that is opened once more, in a store that has lost it, has gone backwards as far as the database is
        concerned, and is frozen; with an epoch by chance it would be another sale of as many units.
        """
        of = f"{self.schedule.name} {self.schedule.every_s} {self.begins_at}"  # another length, another sale
        return sha1(of.encode(), usedforsecurity=False).hexdigest()[:8]

    @property
    def product_id(self) -> str:
        """Return the product that is to be sold, such as sale_1640995200_a1b2c3d4."""
        return f"sale_{self.begins_at}_{self.epoch}"


def is_sale_id(product_id: str) -> bool:
    """Return whether a product is called as the sale of a schedule is; see Due.product_id."""
    return _SALE_ID.fullmatch(product_id) is not None


def check_schedule_name(value: str) -> str:
    """Return the name, or raise InvalidValueError unless it has 1 to 12 letters, digits, - and _."""
    if _NAME.fullmatch(value) is None:
        raise InvalidValueError(
            f"{value!r} is not a schedule's name: give 1 to 12 letters, digits, - and _, a letter or digit first"
        )
    return value


def period_begin(every_s: int, now_s: int) -> int:
    """Return when the period began that a moment is in, in Unix seconds."""
    return now_s - now_s % every_s


def find_due(schedules: Iterable[Schedule], opened: Mapping[str, CurrentSale], now_s: int) -> list[Due]:
    """Return the sales that are to be opened at that moment; of a period that was missed there is none.

    Args:
        schedules: all of them.
        opened: the last sale of each, by the schedule's name. Until that has ended there is no other one, unless it is
            far ahead.
        now_s: by the store's clock.
    """
    due = []
    for schedule in schedules:
        begins_at = period_begin(schedule.every_s, now_s)
        last = opened.get(schedule.name)
        if last is None or last.ends_at <= begins_at or last.is_far_ahead(now_s):
            due.append(Due(schedule, begins_at))
    return due


def next_begin(schedule: Schedule, now_s: int) -> int:
    """Return when the next period begins, in Unix seconds."""
    return period_begin(schedule.every_s, now_s) + schedule.every_s
