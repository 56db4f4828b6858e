"""When holds expire: the index of all products that the decision script keeps, by the store's clock."""

from functools import partial

from flashsale.store import keys
from flashsale.store.links import make_client, store_errors

_ANSWER_TIMEOUT_S = 2.0
_PAGE_COUNT = 256  # products in one look


class RedisCalendar:
    """Reads the index `products_due`; see flashsale.expiry.Calendar."""

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._errors = partial(store_errors, url)
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
        self._start = 0  # of the next look, as a rank

    async def due(self) -> tuple[list[str], float]:
        """Return products with holds that may be due, and in how many seconds others may be.

        Those that are swept leave the front to others; those that cannot be, because their keys are damaged, stay. So
        behind a page of nothing but due products the next look goes on, up to the end, and then begins again.
        """
        start, self._start = self._start, 0
        async with self._errors(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zrange(keys.PRODUCTS_DUE, start, start + _PAGE_COUNT - 1, withscores=True)
            (seconds, microseconds), found = await pipeline.execute()
        now_s = seconds + microseconds / 1e6
        due = [name.decode(errors="replace") for name, at_s in found if at_s <= now_s]
        if len(due) == _PAGE_COUNT:
            self._start = start + _PAGE_COUNT
        elif start:
            return due, 0.0  # at the front some may wait
        later = (at_s - now_s for _, at_s in found if at_s > now_s)
        return due, next(later, 3600.0)

    async def forget(self, product_id: str) -> None:
        """Take a product out of the index."""
        async with self._errors():
            await self._redis.zrem(keys.PRODUCTS_DUE, product_id)

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()
