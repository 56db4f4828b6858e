"""The engine that tells of nothing before enough replicas have it."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from flashsale.domain.answers import last_version
from flashsale.domain.batches import Ambiguous, Batch, Outcome
from flashsale.domain.requests import Extend
from flashsale.store import keys
from flashsale.store.engine import RedisEngine, StoreReply

_WAIT_MS = 500
_DUPLICATE_ROW = b"\x92\x00"
"""How a row begins that tells of an earlier one: an array of two, the first of them DUPLICATE in lua/known.lua."""


class ReplicatedEngine(RedisEngine):
    """Decides as RedisEngine does, then waits once for the replicas: one WAIT for all batches of a round.

    When too few have it in time, what was decided is ambiguous: the batch may be sent again, and waits again.
    """

    def __init__(self, url: str, replicas: int, **options: Any) -> None:
        """Connect later.

        Args:
            url: redis://, rediss:// or unix://.
            replicas: how many must have a change: all that may be promoted.
            options: those of RedisEngine.
        """
        super().__init__(url, replicas=replicas, **options)
        self._is_covered = False

    async def _call(
        self,
        connection: AbstractConnection,
        batches: Sequence[Batch],
        positions: Sequence[int],
        replies: list[StoreReply],
        command: bytes,
        script: bytes,
    ) -> None:
        self._is_covered = False
        await super()._call(connection, batches, positions, replies, command, script)
        if any(_may_be_old(batches[i], replies[i]) for i in positions):
            # WAIT is for what this connection has written: this goes to the replicas behind all that is told
            await connection.send_command("PUBLISH", keys.MOVED_CHANNEL, "", check_health=False)
            await connection.read_response()
        await connection.send_command("WAIT", self._replicas, _WAIT_MS, check_health=False)
        self._is_covered = int(await connection.read_response()) >= self._replicas

    def _judge(self, batch: Batch, reply: StoreReply) -> Outcome:
        outcome = super()._judge(batch, reply)
        if isinstance(outcome, list) and last_version(outcome) and not self._is_covered:
            return Ambiguous("too few replicas have it")
        return outcome


def _may_be_old(batch: Batch, reply: StoreReply) -> bool:
    """Whether a batch may be told of what was written before, perhaps by another connection."""
    if batch.fenced:  # it may have been here before
        return True
    rows = reply[2] if isinstance(reply, list) else None
    return isinstance(rows, bytes) and (
        _DUPLICATE_ROW in rows or any(isinstance(request, Extend) for request in batch.requests)
    )
