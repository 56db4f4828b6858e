"""How far the ledgers are in the database, as those hear of it who must wait for that.

Whoever moves changes says so on a channel. What is said is a hint, which may be lost: the store is asked too, now and
then, for as long as somebody waits.
"""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from flashsale.store import keys
from flashsale.store.links import make_client

_ANSWER_TIMEOUT_S = 5.0
_ASK_S = 0.25
_RETRY_PAUSE_S = 0.2
_KNOWN_COUNT_MAX = 65_536

_log = logging.getLogger(__name__)

Place: TypeAlias = tuple[str, str, int]
"""Product, epoch, version."""


class Progress:
    """What is known of the way into the database. Belongs to one event loop; an async context manager."""

    def __init__(self, url: str) -> None:
        """Name the store by its URL; listens once it is entered."""
        self._tasks: list[asyncio.Task[None]] = []
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
        self._known: dict[str, tuple[str, int]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._wanted: dict[str, Place] = {}  # by products: where the database is expected, though nobody waits

    async def __aenter__(self) -> Self:
        """Listen, and ask while somebody waits."""
        self._tasks = [asyncio.create_task(work()) for work in (self._listen, self._keep_asking)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and close the connections."""
        left = set(self._tasks)
        while left:  # once more: a cancellation may be lost, as asyncio.wait_for prefers a result that comes with it
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_RETRY_PAUSE_S)
        await self._redis.aclose()

    def has_reached(self, place: Place) -> bool:
        """Return whether the database is known to have come to a place."""
        product_id, epoch, version = place
        known = self._known.get(product_id)
        return known is not None and known[0] == epoch and known[1] >= version

    def expect(self, place: Place) -> None:
        """Have the store asked whether the database has come to a place, though nobody waits there at present."""
        self._wanted[place[0]] = place

    def is_expected(self, place: Place) -> bool:
        """Return whether the database may still come to a place that is expected.

        It may not once the store does not know that place any more: it was lost, or the product was opened anew.
        """
        if self.has_reached(place):
            self._wanted.pop(place[0], None)
        return self._wanted.get(place[0]) == place

    async def reach(self, places: Sequence[Place], timeout_s: float) -> None:
        """Wait until the database has come to all of these places, or for so long."""
        if all(map(self.has_reached, places)):
            return
        told = asyncio.Event()
        for product_id, _, _ in places:
            self._waiting[product_id].add(told)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not all(map(self.has_reached, places)):
                        await told.wait()
                        told.clear()
        finally:
            for product_id, _, _ in places:
                self._waiting[product_id].discard(told)
                if not self._waiting[product_id]:
                    del self._waiting[product_id]

    async def _listen(self) -> None:
        while True:
            pubsub: PubSub = self._redis.pubsub()
            with suppress(RedisError, OSError):
                try:
                    await pubsub.subscribe(keys.MOVED_CHANNEL)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=math.inf)
                        if message is not None:
                            self._hear(message["data"])
                finally:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(_RETRY_PAUSE_S)

    def _hear(self, data: bytes) -> None:
        with suppress(ValueError):  # somebody else's message on the channel
            epoch, version, product_id = data.decode().split(" ", 2)
            self._learn(product_id, epoch, int(version))

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(_ASK_S)
            with suppress(RedisError, OSError):
                await self._ask(list({*self._waiting, *self._wanted}))

    async def _ask(self, product_ids: Sequence[str]) -> None:
        if not product_ids:
            return
        expected = dict(self._wanted)  # what the answer is newer than
        async with self._redis.pipeline(transaction=False) as pipeline:
            for product_id in product_ids:
                pipeline.hmget(keys.key(product_id, "sale"), "epoch", "stored", "version")
            found = await pipeline.execute(raise_on_error=False)
        for product_id, told in zip(product_ids, found, strict=True):
            if not isinstance(told, list):
                continue
            with suppress(ValueError):  # somebody else has written there
                epoch, stored, version = (told[0] or b"").decode(), int(told[1] or 0), int(told[2] or 0)
                place = expected.get(product_id)
                if place and (place[1] != epoch or place[2] > version) and self._wanted.get(product_id) == place:
                    del self._wanted[product_id]
                self._learn(product_id, epoch, stored)

    def _learn(self, product_id: str, epoch: str, version: int) -> None:
        if product_id not in self._known and len(self._known) >= _KNOWN_COUNT_MAX:
            del self._known[next(iter(self._known))]
        known = self._known.get(product_id)
        if known is None or known[0] != epoch or known[1] < version:
            self._known[product_id] = epoch, version
        for told in self._waiting.get(product_id, ()):
            told.set()
