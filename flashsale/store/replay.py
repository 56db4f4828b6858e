"""What a product's keys must hold, computed from its ledger alone."""

from collections import Counter

from msgspec import Struct, structs

from flashsale.domain.counters import Counters
from flashsale.domain.sale import Change, Kind, Terms
from flashsale.store.records import HoldRecord


class PastOrder(Struct, frozen=True, kw_only=True):
    """An order that the ledger need not tell of any more."""

    version: int
    at_ms: int
    user_id: str
    quantity: int
    item_id: int
    """0 when the units are not numbered."""
    request_id: str
    """Empty when there is none, or when it was a hold that was asked for with it."""
    remaining: int | None
    """Units left after it; None when that was not written down."""
    refund_version: int
    """0 while it stands."""


class Base(Struct, frozen=True, kw_only=True):
    """A sale up to a version, as the database knows it: what a ledger goes on from."""

    epoch: str
    counters: Counters
    early_count: int
    """Orders before the ledger began, of one unit each, whose buyers nobody knows."""
    terms: Terms | None
    """None when the stock was set by hand."""
    orders: list[PastOrder]
    """By version."""
    holds: list[tuple[HoldRecord, int]]
    """Those that stand, with their deadlines."""


class Replay:
    """A ledger followed change by change.

    It keeps the names of the buyers, those of the users while there is a limit, and the live holds, items and refunds.
    """

    def __init__(self, *, limited: bool, checkpoint: Counters | None = None, base: Base | None = None) -> None:
        """Begin before the first change, or behind what is known of those before.

        Args:
            limited: whether units are counted for each user.
            checkpoint: what the beginning of the ledger, which is trimmed, added up to: only sums are followed then.
            base: all that is known of the beginning, instead.
        """
        self.limited = limited
        begin = base.counters if base else checkpoint
        self.counters = structs.replace(begin) if begin else Counters()
        self.first_version = begin.version + 1 if begin else 0
        self.trimmed = begin is not None and base is None
        self.fault = ""
        """Why the ledger cannot be followed any further."""
        self.early_count = 0
        """Orders before the ledger began, whose buyers it does not name: one unit each."""
        self.users: dict[str, int] = {}
        self.holds: dict[int, HoldRecord] = {}
        """Those that stand, by the version with which each began."""
        self.deadlines: dict[int, int] = {}
        """When each of them expires, in Unix seconds."""
        self.refunds: dict[int, int] = {}
        self.owned = bytearray()
        """A byte for each numbered item, 1 while it is sold or held; empty while none ever was."""
        self.shared: Counter[int] = Counter()
        """Owners of an item beyond its first."""
        self._orders: list[str | tuple[str]] = []  # the user of an order; (user,) where one of his is taken off
        self.moved: set[str] = set()
        """Users whose units have changed since the mark."""
        self.reordered = False
        """Whether a buyer was taken off the list since the mark."""
        if base is not None:
            self._begin_with(base)

    def _begin_with(self, base: Base) -> None:
        self.early_count = base.early_count
        events: list[tuple[int, str | tuple[str]]] = []
        for order in base.orders:
            events.append((order.version, order.user_id))
            if order.refund_version:
                events.append((order.refund_version, (order.user_id,)))
                self.refunds[order.version] = order.refund_version
            else:
                self._take(order)
        self._orders = [entry for _, entry in sorted(events, key=lambda event: event[0])]
        for hold, deadline in base.holds:
            self._take(hold)
            self.holds[hold.version], self.deadlines[hold.version] = hold, deadline

    @property
    def version(self) -> int:
        """Of the last change; 0 before the first."""
        return self.counters.version

    def mark(self) -> None:
        """Forget what has changed so far."""
        self.moved.clear()
        self.reordered = False

    def buyers(self) -> list[str]:
        """Return the buyers whose orders stand, the oldest first. A refund takes off the newest entry of its user."""
        taken_off: Counter[str] = Counter()
        standing = []
        for order in reversed(self._orders):
            if isinstance(order, tuple):
                taken_off[order[0]] += 1
            elif taken_off[order]:
                taken_off[order] -= 1
            else:
                standing.append(order)
        standing.reverse()
        return standing

    def feed(self, change: Change) -> None:
        """Follow the next change; does nothing after a fault."""
        if self.fault:
            return
        if self.version and change.version != self.version + 1:
            self.fault = f"has a gap: version {change.version} follows {self.version}"
            return
        if (change.kind is Kind.OPENED) != (self.version == 0):
            self.fault = (
                f"contradicts itself: version {change.version} opens the sale again"
                if self.version
                else f"begins at version {change.version}: what was before is gone"
            )
            return
        self.counters.follow(change)
        if self.trimmed:
            return
        try:
            self._apply(change)
        except (KeyError, IndexError):
            self.fault = f"contradicts itself: version {change.version} is of a hold that there is not"

    def _apply(self, change: Change) -> None:
        match change.kind:
            case Kind.OPENED:
                self.first_version, self.early_count = change.version, change.ref
            case Kind.SOLD:
                self._take(change)
                self._orders.append(change.user_id)
            case Kind.HELD:
                self._take(change)
                self.holds[change.version] = HoldRecord(
                    change.user_id,
                    change.quantity,
                    change.item_id,
                    change.request_id,
                    change.version,
                    -(-change.at_ms // 1000),
                )
                self.deadlines[change.version] = change.expires_at
            case Kind.EXTENDED:
                del self.deadlines[change.ref]  # of one that stands
                self.deadlines[change.ref] = change.expires_at
            case Kind.CONFIRMED:
                del self.holds[change.ref], self.deadlines[change.ref]
                self._orders.append(change.user_id)
            case Kind.CANCELLED | Kind.EXPIRED:
                del self.holds[change.ref], self.deadlines[change.ref]
                self._give_back(change)
            case Kind.REFUNDED:
                self.refunds[change.ref] = change.version
                self._orders.append((change.user_id,))
                self.reordered = True
                self._give_back(change)
            case Kind.RESTOCKED | Kind.PAUSED | Kind.RESUMED | Kind.CLOSED:
                pass

    def _take(self, what: Change | PastOrder | HoldRecord) -> None:
        self._count(what.user_id, what.quantity)
        item = what.item_id
        if item:
            if item > len(self.owned):
                self.owned.extend(bytes(max(item, self.counters.units) - len(self.owned)))
            if self.owned[item - 1]:
                self.shared[item] += 1
            self.owned[item - 1] = 1

    def _give_back(self, change: Change) -> None:
        self._count(change.user_id, -change.quantity)
        item = change.item_id
        if item and self.shared[item]:
            self.shared[item] -= 1
        elif item:
            self.owned[item - 1] = 0

    def _count(self, user_id: str, units: int) -> None:
        if self.limited:
            self.moved.add(user_id)
            self.users[user_id] = self.users.get(user_id, 0) + units
            if not self.users[user_id]:
                del self.users[user_id]
