"""Does a sale add up? Its ledger is replayed, and what comes out is held against the store's own counters.

The package can do that too (store/replay.py). This is apart from it on purpose, and knows only what the scenarios do: a
misunderstanding of the ledger would not be found by the code that has it.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import cast

from redis.asyncio import Redis

from flashsale.domain.answers import ProductStatus
from flashsale.domain.sale import Change, Kind
from flashsale.store import keys
from flashsale.store.encoding import decode_message

_PAGE_COUNT = 100


async def read_ledger(redis: Redis, product_id: str) -> AsyncIterator[Change]:
    """Yield the changes of a product, from the first."""
    after = "-"
    while True:
        found = await redis.xrange(keys.key(product_id, "orders"), min=after, count=_PAGE_COUNT)
        page = cast("list[tuple[bytes, dict[bytes, bytes]]]", found)
        if not page:
            break
        for message_id, fields in page:
            for change in decode_message(message_id, fields):
                yield change
        after = f"({page[-1][0].decode()}"


class Books:
    """What a ledger says became of the units. `faults` has what cannot be, a sentence each."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.remaining = self.sold = self.held = 0
        self.orders: dict[int, Change] = {}
        """By version."""
        self.holds: dict[int, Change] = {}
        """By version, also those that ended."""
        self.ends: dict[int, Change] = {}
        """How holds ended, by the hold's version."""
        self.kinds = Counter(change.kind for change in changes)
        self._wrong: Counter[str] = Counter()
        for before, change in zip([None, *changes], changes, strict=False):
            if before is not None and change.version != before.version + 1:
                self._wrong["versions are missing or told twice"] += 1
            self._replay(change)
            if change.remaining != self.remaining or change.remaining < 0:
                self._wrong["changes leave another stock than they should, or one below 0"] += 1

    def _replay(self, change: Change) -> None:
        quantity = change.quantity
        match change.kind:
            case Kind.OPENED:
                self.remaining = quantity
            case Kind.SOLD:
                self.remaining, self.sold = self.remaining - quantity, self.sold + quantity
                self.orders[change.version] = change
            case Kind.HELD:
                self.remaining, self.held = self.remaining - quantity, self.held + quantity
                self.holds[change.version] = change
            case Kind.CONFIRMED:
                self.held, self.sold = self.held - quantity, self.sold + quantity
                self.orders[change.version] = change
                self._end(change)
            case Kind.CANCELLED | Kind.EXPIRED:
                self.held, self.remaining = self.held - quantity, self.remaining + quantity
                self._end(change)
            case _:
                self._wrong[f"changes are {change.kind}, which nobody asked for"] += 1

    def _end(self, change: Change) -> None:
        hold = self.holds.get(change.ref)
        if hold is None or (hold.user_id, hold.quantity) != (change.user_id, change.quantity):
            self._wrong["ends of holds belong to no such hold"] += 1
        if change.ref in self.ends:
            self._wrong["holds ended twice"] += 1
        self.ends[change.ref] = change

    def faults(self, stock: int, status: ProductStatus, buyers: Sequence[str]) -> list[str]:
        """Return what does not add up.

        Args:
            stock: units at the beginning.
            status: what the store says at the end.
            buyers: its list of buyers, one entry for each order.
        """
        faults = [f"in the ledger {count} {sentence}" for sentence, count in self._wrong.items()]
        if self.kinds[Kind.OPENED] != 1:
            faults.append(f"the ledger opens {self.kinds[Kind.OPENED]} times")
        if self.sold > stock:
            faults.append(f"OVERSOLD: {self.sold} units of {stock} are sold")
        counted = (status.remaining_stock, status.sold, status.held)
        if counted != (self.remaining, self.sold, self.held):
            faults.append(
                f"the store counts {status.remaining_stock} left, {status.sold} sold and {status.held} held, "
                f"its ledger {self.remaining}, {self.sold} and {self.held}"
            )
        if sum(counted) != stock:
            faults.append(f"{' + '.join(map(str, counted))} units left, sold and held are not the {stock} of the start")
        if Counter(buyers) != Counter(order.user_id for order in self.orders.values()):
            faults.append(f"the list of {len(buyers)} buyers is not that of the {len(self.orders)} orders")
        return faults
