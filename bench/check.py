"""Was the sale honest? What buyers were told is held against what the store has."""

from collections.abc import AsyncIterator

from msgspec import Struct


class Sale(Struct, frozen=True, kw_only=True):
    """One sale from both sides, counting only what happened in the run."""

    stock_before: int
    """Units for sale at the start."""
    stock_after: int
    sold_count: int
    """Units sold, by the store's counter; each request is for one."""
    distinct_buyer_count: int | None
    """Different names that the run has added to the list of buyers; None when nobody could look."""
    request_count: int
    success_count: int
    sold_out_count: int
    error_count: int
    uncertain_count: int
    """Errors behind which a unit may have been sold: no answer, a broken connection, UNKNOWN."""

    def faults(self) -> list[str]:
        """Return what is not as it must be, a sentence each; empty when the sale was honest."""
        return [*self._oversold(), *self._undersold(), *self._mismatches()]

    def _oversold(self) -> list[str]:
        faults = []
        if self.sold_count > self.stock_before:
            faults.append(f"OVERSOLD: the store sold {self.sold_count} units of {self.stock_before}")
        if self.success_count > self.stock_before:
            faults.append(f"OVERSOLD: {self.success_count} buyers were told SUCCESS for {self.stock_before} units")
        if self.stock_after < 0:
            faults.append(f"OVERSOLD: the stock went down to {self.stock_after}")
        return faults

    def _undersold(self) -> list[str]:
        faults = []
        if self.sold_out_count and self.stock_after > 0:
            faults.append(
                f"UNDERSOLD: {self.sold_out_count} buyers were told SOLD_OUT while {self.stock_after} units are left"
            )
        if self.error_count and self.stock_after > 0:
            faults.append(f"UNDERSOLD: {self.stock_after} units left though {self.error_count} requests failed")
        demand = min(self.stock_before, self.request_count)
        if not self.error_count and self.sold_count < demand:
            faults.append(
                f"UNDERSOLD: {self.request_count} requests for {self.stock_before} units sold only {self.sold_count}"
            )
        return faults

    def _mismatches(self) -> list[str]:
        faults = []
        if self.stock_before - self.stock_after != self.sold_count:
            faults.append(
                f"the stock went from {self.stock_before} to {self.stock_after}, "
                f"but the store counts {self.sold_count} units as sold"
            )
        if self.distinct_buyer_count is not None and self.distinct_buyer_count != self.sold_count:
            faults.append(
                f"{self.sold_count} units were sold one by one, "
                f"but the list of buyers has {self.distinct_buyer_count} new names"
            )
        if not self.success_count <= self.sold_count <= self.success_count + self.uncertain_count:
            unsure = f" and {self.uncertain_count} do not know" if self.uncertain_count else ""
            faults.append(
                f"{self.success_count} buyers were told SUCCESS{unsure}, but the store sold {self.sold_count} units"
            )
        return faults


async def count_distinct(buyers: AsyncIterator[str], *, skip_count: int = 0) -> int:
    """Return how many different buyers there are after the first `skip_count` entries."""
    seen: set[str] = set()
    position = 0
    async for buyer in buyers:
        if position >= skip_count:
            seen.add(buyer)
        position += 1
    return len(seen)
