"""Forgetting the beginnings of ledgers, once they are in the database and nobody is likely to ask for them.

What a ledger added up to where it was cut stands beside the counters of its sale, so that an audit can go on from
there.
"""

import logging
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from flashsale.domain.counters import Counters
from flashsale.domain.sale import Kind
from flashsale.store import keys, scripts
from flashsale.store.encoding import decode_message

_MESSAGE_COUNT = 64  # in a page; each holds the changes of one batch, at most some thousands
_PAGE_COUNT_MAX = 16
"""Pages of a product in one go."""

_log = logging.getLogger(__name__)
encode_checkpoint = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Counters).decode


class Window(Struct, frozen=True):
    """What stays, although it is in the database: whatever is within one of the two."""

    count: int = 100_000
    """The last changes of each product."""
    age_s: float = 3_600.0
    """What happened lately."""


def read_checkpoint(value: bytes | None) -> Counters | None:
    """Return what a ledger added up to where it was cut; None when it is whole.

    Raises:
        ValueError: somebody else has written there.
    """
    return None if value is None else _decode(value)


class Trimmer:
    """Trims the ledgers of a store. Its errors are those of the connections that it is given."""

    def __init__(self, redis: "Redis", window: Window) -> None:
        self._redis = redis
        self._window = window

    async def trim(self, product_ids: Iterable[str]) -> None:
        """Trim these products, as far as they are in the database; what is much is left for the next time."""
        names = list(product_ids)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(keys.key(name, "sale"), "epoch", "moved", "checkpoint")
            pipeline.time()
            *found, now = await pipeline.execute(raise_on_error=False)
        if isinstance(now, Exception):
            raise now
        until_ms = now[0] * 1000 + now[1] / 1000 - self._window.age_s * 1000
        for name, told in zip(names, found, strict=True):
            if isinstance(told, Exception) or told[0] is None:
                continue
            try:
                epoch, checkpoint = told[0].decode(), read_checkpoint(told[2])
                until_version = int(told[1] or 0) - max(self._window.count, 1)  # the last message stays
            except ValueError as error:
                _log.warning("the ledger of product '%s' is not trimmed: %s", name, error)
                continue
            sums = checkpoint or Counters()
            known = sums.version
            if until_version > known:
                await self._sum_up(name, sums, until_version, until_ms)
            if sums.version > known:
                script_keys = keys.script_keys(name)
                values = (epoch, told[2] or b"", encode_checkpoint(sums), f"{sums.version + 1}-0")
                script = scripts.TRIM.source.decode()
                await cast("Any", self._redis.eval(script, len(script_keys), *script_keys, *values))

    async def _sum_up(self, name: str, sums: Counters, until_version: int, until_ms: float) -> None:
        """Add to the sums what stands in messages that are wholly behind that version and that time."""
        for _ in range(_PAGE_COUNT_MAX):
            first_id = f"{sums.version + 1}-0" if sums.version else "-"
            page = await cast("Any", self._redis.xrange(keys.key(name, "orders"), first_id, count=_MESSAGE_COUNT))
            for message_id, fields in page:
                try:
                    changes = list(decode_message(message_id, fields))
                except ValueError:
                    return
                if not changes or changes[-1].version > until_version or changes[-1].at_ms > until_ms:
                    return
                if changes[0].version != sums.version + 1 and (sums.version or changes[0].kind is not Kind.OPENED):
                    return  # its beginning is gone already, and nobody has noted what it added up to
                for change in changes:
                    sums.follow(change)
            if len(page) < _MESSAGE_COUNT:
                return
