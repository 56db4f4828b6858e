"""What decides a sale."""

from collections.abc import Sequence
from typing import Protocol

from flashsale.domain.batches import Batch, Outcome


class Engine(Protocol):
    """Decides batches. Failures are values: `commit` raises nothing but cancellation."""

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch atomically, in order, and return one outcome for each.

        Args:
            batches: at most one for each product; sequences grow from call to call.
            timeout_s: after so many seconds the outcome is NotExecuted or Ambiguous.
        """
        ...
