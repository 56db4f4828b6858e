"""What a product's keys must hold, computed from its ledger alone."""

from collections import Counter

from flashsale.domain.sale import Change, Kind
from flashsale.store.records import HoldRecord

_STATES = {Kind.PAUSED: "paused", Kind.RESUMED: "open", Kind.CLOSED: "closed"}


class Replay:
    """A ledger followed change by change.

    It keeps the names of the buyers, those of the users while there is a limit, and the live holds, items and refunds.
    """

    def __init__(self, *, limited: bool) -> None:
        """Begin before the first change.

        Args:
            limited: whether units are counted for each user.
        """
        self.limited = limited
        self.first_version = 0
        self.version = 0
        self.remaining_told = 0
        """Units left, as the last change tells."""
        self.trimmed = False
        """The beginning is missing: only the versions are followed."""
        self.fault = ""
        """Why the ledger cannot be followed any further."""
        self.initial = self.restocked = self.sold = self.held = 0
        self.early_count = 0
        """Orders before the ledger began, whose buyers it does not name: one unit each."""
        self.state = "open"
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

    @property
    def units(self) -> int:
        """Units of the whole sale."""
        return self.initial + self.restocked

    @property
    def remaining(self) -> int:
        """Units left; negative when more were sold than there are."""
        return self.units - self.sold - self.held

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
        if not self.version:
            self.first_version = change.version
            self.trimmed = change.kind is not Kind.OPENED
        elif change.version != self.version + 1:
            self.fault = f"has a gap: version {change.version} follows {self.version}"
            return
        self.version, self.remaining_told = change.version, change.remaining
        if not self.trimmed:
            try:
                self._apply(change)
            except (KeyError, IndexError):
                self.fault = f"contradicts itself: version {change.version} is of a hold that there is not"

    def _apply(self, change: Change) -> None:  # noqa: C901 - one table
        quantity = change.quantity
        match change.kind:
            case Kind.SOLD:
                self._take(change)
                self._sell(change)
            case Kind.HELD:
                self._take(change)
                self.held += quantity
                self.holds[change.version] = HoldRecord(
                    change.user_id,
                    quantity,
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
                self._end(change)
                self._sell(change)
            case Kind.CANCELLED | Kind.EXPIRED:
                self._end(change)
                self._give_back(change)
            case Kind.REFUNDED:
                self.sold -= quantity
                self.refunds[change.ref] = change.version
                self._orders.append((change.user_id,))
                self.reordered = True
                self._give_back(change)
            case Kind.RESTOCKED:
                self.restocked += quantity
            case Kind.PAUSED | Kind.RESUMED | Kind.CLOSED:
                self.state = _STATES[change.kind]
            case Kind.OPENED if change.version == self.first_version:
                self.initial, self.sold, self.early_count = quantity, change.ref, change.ref
            case Kind.OPENED:
                self.fault = f"contradicts itself: version {change.version} opens the sale again"

    def _end(self, change: Change) -> None:
        del self.holds[change.ref], self.deadlines[change.ref]
        self.held -= change.quantity

    def _sell(self, change: Change) -> None:
        self.sold += change.quantity
        self._orders.append(change.user_id)

    def _take(self, change: Change) -> None:
        self._count(change.user_id, change.quantity)
        item = change.item_id
        if item:
            if item > len(self.owned):
                self.owned.extend(bytes(max(item, self.units) - len(self.owned)))
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
