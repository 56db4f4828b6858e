"""The engine that tells of nothing before enough replicas have it."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from flashsale.domain.answers import last_version
from flashsale.domain.batches import Ambiguous, Batch, Outcome
from flashsale.store.engine import RedisEngine, StoreReply

_WAIT_MS = 500


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
        await connection.send_command("WAIT", self._replicas, _WAIT_MS, check_health=False)
        self._is_covered = int(await connection.read_response()) >= self._replicas

    def _judge(self, batch: Batch, reply: StoreReply) -> Outcome:
        outcome = super()._judge(batch, reply)
        if isinstance(outcome, list) and last_version(outcome) and not self._is_covered:
            return Ambiguous("too few replicas have it")
        return outcome
