"""Up to where the ledgers were published: what a relay that starts again goes on from.

It is written once the brokers have acknowledged, so that it may be behind, but never ahead. Whoever deletes it has
everything published again.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from flashsale.store import keys
from flashsale.store.links import make_client, store_errors

_ANSWER_TIMEOUT_S = 5.0


class RelayedNotes:
    """The notes of all products: epoch and version. Every call raises StoreUnavailableError."""

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._errors = partial(store_errors, url)
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()

    async def read(self) -> dict[str, tuple[str, int]]:
        """Return all of them."""
        async with self._errors():
            found: dict[bytes, bytes] = await cast("Any", self._redis.hgetall(keys.RELAYED))
        notes = {}
        for name, note in found.items():
            with suppress(ValueError):  # somebody else's
                epoch, version = note.decode().split(" ")
                notes[name.decode()] = epoch, int(version)
        return notes

    async def write(self, notes: Mapping[str, tuple[str, int]]) -> None:
        """Note these."""
        fields: Any = {name: f"{epoch} {version}" for name, (epoch, version) in notes.items()}
        async with self._errors():
            await cast("Any", self._redis.hset(keys.RELAYED, mapping=fields))

    async def forget(self, product_ids: Iterable[str]) -> None:
        """Delete those of products that are gone."""
        async with self._errors():
            await cast("Any", self._redis.hdel(keys.RELAYED, *product_ids))
