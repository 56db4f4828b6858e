"""When holds expire: the index of all products that the decision script keeps, by the store's clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from flashsale.errors import StoreUnavailableError
from flashsale.store import keys
from flashsale.store.address import shown_url
from flashsale.store.links import make_client

_ANSWER_TIMEOUT_S = 2.0
_PAGE_COUNT = 256  # products in one look; those that are due leave the front for others


class RedisCalendar:
    """Reads the index `products_due`; see flashsale.expiry.Calendar."""

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._url = url
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)

    async def due(self) -> tuple[list[str], float]:
        """Return the products with holds that may be due, and in how many seconds the next one may be."""
        async with self._errors(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zrange(keys.PRODUCTS_DUE, 0, _PAGE_COUNT - 1, withscores=True)
            (seconds, microseconds), found = await pipeline.execute()
        now_s = seconds + microseconds / 1e6
        later = (at_s - now_s for _, at_s in found if at_s > now_s)
        return [name.decode(errors="replace") for name, at_s in found if at_s <= now_s], next(later, 3600.0)

    async def forget(self, product_id: str) -> None:
        """Take a product out of the index."""
        async with self._errors():
            await self._redis.zrem(keys.PRODUCTS_DUE, product_id)

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"cannot reach Redis at {shown_url(self._url)}: {error}") from error
