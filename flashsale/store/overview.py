"""The products at a glance, for whoever looks on: read once a second at most, and only while somebody looks.

It has a connection of its own, which repeats nothing and waits briefly: a store that is slow is slow for buyers too.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, cast

from msgspec import Struct
from redis.exceptions import RedisError

from flashsale.live import ProductView
from flashsale.store import keys
from flashsale.store.links import make_client

SHOWN_COUNT_MAX = 50
"""Products."""
LOOKED_AT_COUNT_MAX = 256
"""Products in one look: about 0.3 ms of the store's time. If there are more, each look is at those that were shown and
at the next part of the others."""

_log = logging.getLogger(__name__)
_KNOWN_COUNT_MAX = 16_384
_AGE_S = 0.9
"""A look that is younger is the look: those who look once a second get a new one each time."""
_ANSWER_TIMEOUT_S = 0.5
_FIELDS = ("version", "moved", "initial", "restocked", "sold", "held", "state", "opens_at", "closes_at")


class _Seen(Struct, frozen=True):
    version: int
    changed_at: float
    """When it was first seen with this version; 0 when that is its first."""


class Overview:
    """Looks at products. Belongs to one event loop."""

    def __init__(self, url: str, now: Callable[[], float] = monotonic) -> None:
        """Name the store by its URL; connects with the first look."""
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
        self._now = now
        self._cursor = 0  # where the store goes on to name the others
        self._named: list[str] = []  # by it, and not yet looked at
        self._seen: dict[str, _Seen] = {}
        self._shown: list[ProductView] | None = None
        self._chosen: list[str] = []  # when the store was there last
        self._looked_at = -_AGE_S
        self._trouble: Exception | None = None
        self._looking = asyncio.Lock()

    async def look(self) -> list[ProductView] | None:
        """Return the products that changed last, at most SHOWN_COUNT_MAX; None when the store is away.

        A product appears once its ledger has begun: of a stock that was set by hand, with the first sale.
        """
        async with self._looking:
            if self._now() - self._looked_at >= _AGE_S:
                self._shown = await self._look()
                self._looked_at = self._now()
            return self._shown

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()

    async def _look(self) -> list[ProductView] | None:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                views = self._choose(await self._read(await self._names()))
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            if self._trouble is None:
                _log.warning("products cannot be looked at: %s", str(error) or "the store does not answer in time")
            self._trouble = error
            with suppress(RedisError, OSError):
                await self._redis.connection_pool.disconnect()  # a late reply must not be taken for that of the next
            return None
        if self._trouble is not None:
            _log.warning("products can be looked at again")
            self._trouble = None
        return views

    async def _names(self) -> list[str]:
        """Return the products to look at."""
        if await cast("Any", self._redis.scard(keys.PRODUCTS)) <= LOOKED_AT_COUNT_MAX:
            found: Iterable[bytes] = await cast("Any", self._redis.smembers(keys.PRODUCTS))
            return [name.decode(errors="replace") for name in found]
        if len(self._named) < LOOKED_AT_COUNT_MAX:
            # named, as its right is needed although it is rarely used
            call = cast("Any", self._redis.execute_command)
            self._cursor, others = await call("SSCAN", keys.PRODUCTS, self._cursor, "COUNT", LOOKED_AT_COUNT_MAX)
            self._named += [name.decode(errors="replace") for name in others]  # may be more, or fewer
        some, self._named = self._named[:LOOKED_AT_COUNT_MAX], self._named[LOOKED_AT_COUNT_MAX:]
        return list(dict.fromkeys([*self._chosen, *some]))

    async def _read(self, names: Sequence[str]) -> list[tuple[ProductView, int]]:
        """Return the products of these names that can be read, all at one instant, with their versions."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.time()
            for name in names:
                pipeline.hmget(keys.key(name, "sale"), *_FIELDS)
                pipeline.get(keys.key(name, "stock"))
            (now_s, _), *found = await pipeline.execute(raise_on_error=False)
        views = []
        for name, fields, stock in zip(names, found[::2], found[1::2], strict=True):
            if isinstance(fields, list) and not isinstance(stock, RedisError):
                with suppress(ValueError):
                    views.append(_view(name, dict(zip(_FIELDS, fields, strict=True)), stock, now_s))
        return views

    def _choose(self, found: Sequence[tuple[ProductView, int]]) -> list[ProductView]:
        """Return those that changed last, the open ones first among those that did not change since we look."""
        now = self._now()
        changed_at: dict[str, float] = {}
        for view, version in found:
            seen = self._seen.get(view.product_id)
            if seen is None or seen.version != version:
                seen = self._seen[view.product_id] = _Seen(version, now if seen else 0.0)
            changed_at[view.product_id] = seen.changed_at
        views = sorted(
            (view for view, _ in found),
            key=lambda view: (-changed_at[view.product_id], view.state != "open", view.product_id),
        )[:SHOWN_COUNT_MAX]
        self._chosen = [view.product_id for view in views]
        if len(self._seen) > _KNOWN_COUNT_MAX:
            self._seen = {name: self._seen[name] for name in self._chosen}
        return views


def _view(name: str, told: dict[str, bytes | None], stock: bytes | None, now_s: int) -> tuple[ProductView, int]:
    """Return a product and its version; raises ValueError when its keys are not those of a sale."""

    def number(field: str) -> int:
        return int(told[field] or 0)

    state = _state((told["state"] or b"open").decode(), number("opens_at"), number("closes_at"), now_s)
    if stock is None and state != "frozen":  # the stock of one that is frozen may be lost
        raise ValueError("its stock is gone")
    view = ProductView(
        product_id=name,
        units=number("initial") + number("restocked"),
        remaining=max(int(stock or 0), 0),
        sold=number("sold"),
        held=number("held"),
        state=state,
        lag=max(number("version") - number("moved"), 0),
    )
    return view, number("version")


def _state(state: str, opens_at: int, closes_at: int, now_s: int) -> str:
    """Return how the sale stands, by the rule of lua/frame.lua, and whether it is frozen."""
    if state == "frozen":
        return state
    if state == "closed" or 0 < closes_at <= now_s:
        return "closed"
    if state == "paused":
        return state
    return "not_open" if now_s < opens_at else "open"
