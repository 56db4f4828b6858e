"""A sale as its ledger tells it: every state that it was in, and every rule that a change of it broke.

MemoryEngine decides requests, batch by batch, with holds found by their tokens; a ledger has none of these. So the
rules stand here once more, as what must be true of a change when it is made. That also keeps each state by version.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from msgspec import Struct, field

from flashsale.domain.bounds import SWEEP_COUNT_MAX
from flashsale.domain.sale import Change, Kind
from tests.history.record import Sale

T = TypeVar("T")


class Track(Generic[T]):
    """A value by version."""

    def __init__(self, first: T) -> None:
        self._versions = [-1]
        self._values = [first]

    def set(self, version: int, value: T) -> None:
        """Note what it is from this version on; versions come in order."""
        self._versions.append(version)
        self._values.append(value)

    def at(self, version: int) -> T:
        """Return what it was then."""
        return self._values[bisect_right(self._versions, version) - 1]

    @property
    def last(self) -> T:
        """What it is at the end."""
        return self._values[-1]


class Hold(Struct):
    """Units out of stock, and how that ended."""

    held: Change
    deadline: Track[int]
    """In Unix seconds."""
    ended: Change | None = None

    @property
    def version(self) -> int:
        """By which changes refer to it."""
        return self.held.version


class Broken(Struct, frozen=True):
    """A rule, and what broke it."""

    rule: str
    what: str


class States(Struct):
    """What a product is, by version."""

    remaining: Track[int]
    sold: Track[int]
    held: Track[int]
    switch: Track[str]
    """open, paused or closed, as the operator wants it."""
    items_count: Track[int]
    units: dict[str, Track[int]] = field(default_factory=dict)
    """Bought and held, by user."""
    taken: dict[int, Track[bool]] = field(default_factory=dict)
    """Sold or held, by item."""


class Fold:
    """The ledger, applied change by change in the order of versions."""

    def __init__(self, sale: Sale, ledger: Sequence[Change]) -> None:
        self._terms = sale.terms
        self.changes = sorted(ledger, key=lambda change: change.version)
        self.by_version = {change.version: change for change in self.changes}
        self.times_ms = [change.at_ms for change in self.changes]
        self.versions = [change.version for change in self.changes]
        self.broken: list[Broken] = []
        items_count = sale.stock if sale.terms.numbered else 0
        self.states = States(Track(sale.stock), Track(0), Track(0), Track("open"), Track(items_count))
        self.holds: dict[int, Hold] = {}
        self.buyers: list[str] = []
        self.refunds: dict[int, int] = {}
        self.restocked = 0
        self.lowest_free: dict[int, int] = {}
        """By version: the lowest item that was free when it took one."""
        self._deadlines: list[tuple[int, int]] = []  # a heap: when holds may be due, their versions
        self._swept: tuple[int, int] = (0, 0)  # a time, and how many holds expired then
        self._remaining, self._sold, self._held = sale.stock, 0, 0
        for change in self.changes:
            self._apply(change)
        self._returned = sorted(  # holds by when they were due, with their end
            (hold.deadline.last * 1_000, hold.ended.version if hold.ended else self.last_version + 1, hold.version)
            for hold in self.holds.values()
            if hold.ended is None or hold.ended.kind == Kind.EXPIRED
        )

    @property
    def last_version(self) -> int:
        """The version of the last change."""
        return self.versions[-1] if self.versions else 0

    # What a state was

    def state_at(self, version: int, now_s: int) -> str:
        """Return whether the sale was open, paused, closed or not_open."""
        switch = self.states.switch.at(version)
        if switch == "closed" or (self._terms.closes_at and now_s >= self._terms.closes_at):
            return "closed"
        if switch == "paused":
            return "paused"
        return "not_open" if now_s < self._terms.opens_at else "open"

    def units_at(self, version: int, user_id: str) -> int:
        """Return what a user had bought and held."""
        track = self.states.units.get(user_id)
        return track.at(version) if track else 0

    def is_taken(self, version: int, item_id: int) -> bool:
        """Whether an item was sold or held."""
        track = self.states.taken.get(item_id)
        return track.at(version) if track else False

    def time_ms(self, version: int) -> float:
        """Return when that version was made; before the first, the beginning of time."""
        index = bisect_right(self.versions, version) - 1
        return self.times_ms[index] if index >= 0 else 0

    def end_ms(self, version: int) -> float:
        """Return when the version after that was made; after the last, the end of time."""
        index = bisect_right(self.versions, version)
        return self.times_ms[index] if index < len(self.versions) else float("inf")

    def version_at_ms(self, at_ms: float) -> int:
        """Return the last version that was made up to that time."""
        index = bisect_right(self.times_ms, at_ms) - 1
        return self.versions[index] if index >= 0 else 0

    def overdue_at(self, version: int, now_ms: float) -> Iterator[Hold]:
        """Yield the holds that this state still has though they were due at that time.

        Every batch begins with returning them, so nothing is decided in such a state.
        """
        for index in range(bisect_right(self._returned, (now_ms, float("inf"), 0)) - 1, -1, -1):
            deadline_ms, ended, hold_version = self._returned[index]
            if deadline_ms < now_ms - 5_000:  # how late a hold may be is another check's to say
                return
            if hold_version <= version < ended:
                yield self.holds[hold_version]

    # The rules

    def _breaks(self, rule: str, change: Change, what: str) -> None:
        self.broken.append(Broken(rule, f"{what}: {show(change)}"))

    def _apply(self, change: Change) -> None:  # noqa: C901 - one table
        self._check_due(change)
        match change.kind:
            case Kind.OPENED:
                self._open(change)
            case Kind.SOLD:
                self._take(change)
                self._sell(change)
            case Kind.HELD:
                self._take(change)
                self._hold(change)
            case Kind.EXTENDED:
                self._extend(change)
            case Kind.CONFIRMED:
                if self._end_hold(change):
                    self._held -= change.quantity
                    self._sell(change)
            case Kind.CANCELLED | Kind.EXPIRED:
                if self._end_hold(change):
                    self._held -= change.quantity
                    self._give_back(change)
            case Kind.REFUNDED:
                self._refund(change)
            case Kind.RESTOCKED:
                self._remaining += change.quantity
                self.restocked += change.quantity
                if self._terms.numbered:
                    count = self.states.items_count
                    count.set(change.version, count.last + change.quantity)
            case Kind.PAUSED | Kind.RESUMED | Kind.CLOSED:
                self._switch(change)
        if min(self._remaining, self._held, self._sold) < 0:
            self._breaks("units", change, f"{self._remaining} left, {self._held} held, {self._sold} sold after")
        if change.remaining != self._remaining:
            self._breaks("units", change, f"{self._remaining} must be left after")
        states = self.states
        states.remaining.set(change.version, change.remaining)
        states.sold.set(change.version, self._sold)
        states.held.set(change.version, self._held)

    def _check_due(self, change: Change) -> None:
        """Check that holds which are due come back before anything else changes, as far as one batch returns them."""
        if change.kind == Kind.EXPIRED:
            before = self._swept[1] if self._swept[0] == change.at_ms else 0
            self._swept = (change.at_ms, before + 1)
            return
        while self._deadlines and self._deadlines[0][0] * 1_000 <= change.at_ms:
            hold = self.holds[heappop(self._deadlines)[1]]
            due = hold.ended is None and hold.deadline.last * 1_000 <= change.at_ms
            if due and self._swept < (change.at_ms, SWEEP_COUNT_MAX):
                self._breaks("holds", change, f"before it, this hold had to come back: {show(hold.held)}")

    def _open(self, change: Change) -> None:
        if change is not self.changes[0]:
            self._breaks("opened", change, "opened once more")
        self._sold = change.ref
        if change.quantity != self._remaining + change.ref:
            self._breaks("units", change, f"a sale of {self._remaining} units and {change.ref} sold before")

    def _take(self, change: Change) -> None:
        """Take units for a sale or a hold."""
        state = self.state_at(change.version - 1, change.at_ms // 1_000)
        if state != "open":
            self._breaks("open", change, f"units taken while the sale was {state}")
        if change.quantity < 1:
            self._breaks("units", change, "nothing taken")
        self._remaining -= change.quantity
        self._count(change, change.quantity)
        limit = self._terms.limit
        if limit and self.states.units[change.user_id].last > limit:
            self._breaks("limit", change, f"more than {limit} units for one user")
        if not self._terms.numbered:
            if change.item_id:
                self._breaks("items", change, "an item of a product without numbers")
            return
        if change.quantity != 1 or not 1 <= change.item_id <= self.states.items_count.last:
            self._breaks("items", change, "not one of the items")
        self.lowest_free[change.version] = next(item for item in count(1) if not self.is_taken(change.version, item))
        if self.is_taken(change.version, change.item_id):
            self._breaks("items", change, "an item with two owners")
        self._set_taken(change, taken=True)

    def _sell(self, change: Change) -> None:
        self._sold += change.quantity
        self.buyers.append(change.user_id)

    def _hold(self, change: Change) -> None:
        self._held += change.quantity
        seconds = change.expires_at - begins_at(change.at_ms)
        if not 1 <= seconds <= self._terms.hold_s:
            self._breaks("holds", change, f"held for {seconds} of at most {self._terms.hold_s} seconds")
        self.holds[change.version] = Hold(change, Track(change.expires_at))
        heappush(self._deadlines, (change.expires_at, change.version))

    def _extend(self, change: Change) -> None:
        hold = self._live_hold(change)
        if hold is None:
            return
        latest = begins_at(hold.held.at_ms) + max(self._terms.hold_total_s, self._terms.hold_s)
        if not hold.deadline.last < change.expires_at <= latest:
            self._breaks("holds", change, f"extended from {hold.deadline.last}, at most to {latest}")
        if change.at_ms >= hold.deadline.last * 1_000:
            self._breaks("holds", change, f"extended after its deadline {hold.deadline.last}")
        hold.deadline.set(change.version, change.expires_at)
        heappush(self._deadlines, (change.expires_at, hold.version))

    def _live_hold(self, change: Change) -> Hold | None:
        hold = self.holds.get(change.ref)
        if hold is None:
            self._breaks("holds", change, "there was no such hold")
            return None
        if hold.ended is not None:
            self._breaks("holds", change, f"the hold had ended as {show(hold.ended)}")
            return None
        held = hold.held
        if (change.user_id, change.quantity, change.item_id) != (held.user_id, held.quantity, held.item_id):
            self._breaks("holds", change, f"not what was held: {show(held)}")
        return hold

    def _end_hold(self, change: Change) -> bool:
        hold = self._live_hold(change)
        if hold is None:
            return False
        hold.ended = change
        deadline = hold.deadline.last
        if change.kind == Kind.EXPIRED and change.at_ms < deadline * 1_000:
            self._breaks("holds", change, f"expired before its deadline {deadline}")
        if change.kind != Kind.EXPIRED and change.at_ms >= deadline * 1_000:
            self._breaks("holds", change, f"{change.kind} after its deadline {deadline}")
        return True

    def _give_back(self, change: Change) -> None:
        self._remaining += change.quantity
        self._count(change, -change.quantity)
        if self._terms.numbered:
            self._set_taken(change, taken=False)

    def _refund(self, change: Change) -> None:
        order = self.by_version.get(change.ref)
        if order is None or order.kind not in {Kind.SOLD, Kind.CONFIRMED} or change.ref in self.refunds:
            self._breaks("refunds", change, "no order, or refunded before")
            return
        if (change.user_id, change.quantity, change.item_id) != (order.user_id, order.quantity, order.item_id):
            self._breaks("refunds", change, f"not what was sold: {show(order)}")
        self.refunds[change.ref] = change.version
        self._sold -= change.quantity
        self._give_back(change)
        if change.user_id in self.buyers:
            newest = len(self.buyers) - 1 - self.buyers[::-1].index(change.user_id)
            del self.buyers[newest]

    def _switch(self, change: Change) -> None:
        switch = self.states.switch
        wanted = {Kind.PAUSED: "paused", Kind.RESUMED: "open", Kind.CLOSED: "closed"}[change.kind]
        if switch.last in {"closed", wanted}:
            self._breaks("open", change, f"the sale was {switch.last}")
        switch.set(change.version, wanted)

    def _count(self, change: Change, units: int) -> None:
        track = self.states.units.setdefault(change.user_id, Track(0))
        track.set(change.version, track.last + units)

    def _set_taken(self, change: Change, *, taken: bool) -> None:
        self.states.taken.setdefault(change.item_id, Track(False)).set(change.version, taken)


def show(change: Change) -> str:
    """Return a change as a sentence can hold it."""
    parts = [f"version {change.version}", change.kind.value]
    parts += [f"{name} {value}" for name, value in _details(change) if value]
    return f"[{', '.join(parts)}]"


def _details(change: Change) -> list[tuple[str, object]]:
    return [
        ("user", change.user_id),
        ("units", change.quantity),
        ("item", change.item_id),
        ("request id", change.request_id),
        ("of", change.ref),
        ("until", change.expires_at),
        ("left", change.remaining),
        ("at", change.at_ms),
    ]


def begins_at(at_ms: int) -> int:
    """Return the second from which a hold of that moment counts: the next whole one."""
    return -(-at_ms // 1_000)
