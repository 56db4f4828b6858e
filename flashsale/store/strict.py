"""The engine that tells of nothing before it is in the database."""

import asyncio
from collections.abc import Sequence
from typing import Any

from flashsale.domain.answers import last_version
from flashsale.domain.batches import Ambiguous, Batch, NotExecuted, Outcome
from flashsale.store.encoding import epoch_of
from flashsale.store.engine import RedisEngine, StoreReply
from flashsale.store.progress import Place, Progress

_NOT_THERE = "the database has not taken it yet"


class StrictEngine(RedisEngine):
    """Decides as RedisEngine does, and waits until what was decided is in the database.

    What is not there in time is ambiguous: the batch may be sent again, and waits again. Until it is there, nothing
    else is decided for its product, unless that is another sale by then, or was rebuilt without it.
    """

    def __init__(self, url: str, progress: Progress, **options: Any) -> None:
        """Connect later.

        Args:
            url: redis://, rediss:// or unix://.
            progress: tells how far the database is.
            options: those of RedisEngine.
        """
        super().__init__(url, **options)
        self._progress = progress
        self._ends: dict[str, Place] = {}  # of the batches of a round, by product: where the database must come to
        self._owed: dict[str, tuple[int, Place]] = {}  # those of earlier ones, with their sequences

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch, and wait for the database; see Engine."""
        loop = asyncio.get_running_loop()
        due_at = loop.time() + timeout_s
        free = [batch for batch in batches if not self._is_held_up(batch)]
        self._ends.clear()
        found = await super().commit(free, timeout_s=timeout_s) if free else []
        outcomes = {batch.product_id: outcome for batch, outcome in zip(free, found, strict=True)}
        await self._progress.reach(list(self._ends.values()), max(0.0, due_at - loop.time()))
        return [self._settle(batch, outcomes.get(batch.product_id)) for batch in batches]

    def _judge(self, batch: Batch, reply: StoreReply) -> Outcome:
        outcome = super()._judge(batch, reply)
        if isinstance(outcome, list) and isinstance(reply, list):
            version = last_version(outcome)
            if version:
                self._ends[batch.product_id] = batch.product_id, epoch_of(reply), version
        return outcome

    def _is_held_up(self, batch: Batch) -> bool:
        """Whether an earlier batch of its product is still to come to the database."""
        if batch.product_id not in self._owed:
            return False
        sequence, place = self._owed[batch.product_id]
        if not self._progress.is_expected(place):
            del self._owed[batch.product_id]
            return False
        return batch.sequence != sequence

    def _settle(self, batch: Batch, outcome: Outcome | None) -> Outcome:
        if outcome is None:
            return NotExecuted(_NOT_THERE, alone=True)
        place = self._ends.get(batch.product_id)
        if place is None or self._progress.has_reached(place):
            return outcome
        self._owed[batch.product_id] = batch.sequence, place
        self._progress.expect(place)
        return Ambiguous(_NOT_THERE, alone=True)
