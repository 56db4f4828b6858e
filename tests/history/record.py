"""What a run leaves behind: who asked what and was told what, the ledger, and the keys at the end."""

import time
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from flashsale.domain.answers import Answer
from flashsale.domain.requests import Request
from flashsale.domain.sale import PLAIN, Change, Terms
from flashsale.store import keys
from flashsale.store.encoding import decode_message

_unpack = msgspec.msgpack.Decoder().decode

# The answers that a hash keeps: behind the row of each is what was asked for, which is cut off.
_KEPT = """
local kept = redis.call('HGETALL', KEYS[1])
for i = 2, #kept, 2 do
  kept[i] = string.sub(kept[i], 1, (cmsgpack.unpack_one(kept[i])))
end
return kept
"""


class Call(Struct, frozen=True):
    """One request and what became of it."""

    client: str
    """A connection, whose requests are decided in the order in which they were sent."""
    request: Request
    begin: int
    """When it was sent, in monotonic ns."""
    end: int | None = None
    """When its answer came; None when none came, or one that does not tell."""
    answer: Answer | None = None
    """None: it may or may not have been executed, even after the end of the record."""


class Sale(Struct, frozen=True):
    """What was opened."""

    product_id: str
    stock: int
    terms: Terms = PLAIN
    by_hand: bool = False
    """The stock was set by hand: the ledger begins with the first change."""


class Keys(Struct, frozen=True):
    """The keys of a product at one instant."""

    at_ms: int
    stock: int
    buyers: list[str]
    """In order of purchase."""
    counters: dict[str, str]
    users: dict[str, int]
    deadlines: dict[str, int]
    """By token, of the holds that stand."""
    taken: list[int]
    """Items, ascending."""
    kept: dict[str, list[Any]]
    """The first answers of request ids ('=' + id), as rows of a reply. Under a token the answer with which it ended, or
    the hold: 16, user, quantity, item, request id, version, created at."""
    refunds: dict[int, int]


class History(Struct, frozen=True):
    """A run of one sale."""

    sale: Sale
    calls: list[Call]
    ledger: list[Change]
    keys: Keys
    clock_ms: float
    """The store's clock, less the monotonic clock of the record."""
    lateness_max_ms: int = 1_000
    """How much later than its deadline a hold may be returned."""

    def store_ms(self, monotonic_ns: int) -> float:
        """Return what the store's clock said at a moment of the record."""
        return monotonic_ns / 1e6 + self.clock_ms


async def compare_clocks(client: Redis) -> float:
    """Return the store's clock less the monotonic one, in ms: of several readings, the quickest."""
    readings = []
    for _ in range(20):
        before = time.monotonic_ns()
        seconds, microseconds = await client.time()
        after = time.monotonic_ns()
        readings.append((after - before, seconds * 1e3 + microseconds / 1e3 - (before + after) / 2e6))
    return min(readings)[1]


async def read_store(client: Redis, product_id: str) -> tuple[list[Change], Keys]:
    """Return the ledger and the keys of a product as they are at one instant.

    Args:
        client: leaves bytes as they are.
        product_id: the product.
    """
    name = {part: keys.key(product_id, part) for part in keys._PARTS}
    async with client.pipeline(transaction=True) as pipe:
        pipe.get(name["stock"])
        pipe.lrange(name["buyers"], 0, -1)
        pipe.hgetall(name["sale"])
        pipe.xrange(name["orders"])
        pipe.hgetall(name["users"])
        pipe.zrange(name["deadlines"], 0, -1, withscores=True)
        pipe.get(name["items"])
        pipe.eval(_KEPT, 1, name["requests"])
        pipe.eval(_KEPT, 1, name["requests_before"])
        pipe.hgetall(name["refunds"])
        pipe.time()
        (
            stock,
            buyers,
            sale,
            orders,
            users,
            deadlines,
            items,
            requests,
            requests_before,
            refunds,
            now,
        ) = await pipe.execute()
    ledger = [change for message_id, fields in orders for change in decode_message(message_id, fields)]
    return ledger, Keys(
        at_ms=now[0] * 1_000 + now[1] // 1_000,
        stock=int(stock),
        buyers=[buyer.decode() for buyer in reversed(buyers)],
        counters={field.decode(): value.decode() for field, value in sale.items()},
        users={user.decode(): int(units) for user, units in users.items()},
        deadlines={token.decode(): int(deadline) for token, deadline in deadlines},
        taken=[
            index * 8 + bit + 1 for index, byte in enumerate(items or b"") for bit in range(8) if byte & (128 >> bit)
        ],
        kept=_unpack_kept(requests_before) | _unpack_kept(requests),
        refunds={int(order): int(refund) for order, refund in refunds.items()},
    )


def _unpack_kept(found: list[bytes]) -> dict[str, list[Any]]:
    return {field.decode(): _unpack(row) for field, row in zip(found[::2], found[1::2], strict=True)}
