"""What an operator does to products, and what a subscriber hears: the calls behind the CLI."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from flashsale.domain import Event, ProductStatus
from flashsale.errors import ProductExistsError, ProductNotFoundError, StoreUnavailableError
from flashsale.store import keys, scripts
from flashsale.store.address import shown_url
from flashsale.wire import decode_event

ANSWER_TIMEOUT_S = 5.0
_PAGE_COUNT = 10_000
_RESUBSCRIBE_PAUSE_S = 0.2


class Admin:
    """The operator's hands on a store; an async context manager.

    Every method raises StoreUnavailableError when the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._url = url
        retry = Retry(NoBackoff(), 0)  # a repeated init could wipe what was sold in between
        self._redis = Redis.from_url(
            url,
            protocol=2,
            retry=retry,
            socket_timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=ANSWER_TIMEOUT_S,
        )

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def init(self, product_id: str, stock: int, *, force: bool = False) -> None:
        """Open a sale of `stock` units.

        Raises:
            ProductExistsError: the product has buyers, and `force` is not given.
        """
        buyers = await self._script(scripts.INIT, product_id, stock, int(force))
        if buyers:
            raise ProductExistsError(
                f"Product '{product_id}' already has {buyers} buyers; --force starts it anew and forgets them"
            )

    async def reset(self, product_id: str) -> None:
        """Delete the product and its buyers; raises ProductNotFoundError when there is none."""
        if not await self._script(scripts.RESET, product_id):
            raise ProductNotFoundError(product_id)

    async def status(self, product_id: str) -> ProductStatus:
        """Return units left and units sold at one instant; raises ProductNotFoundError."""
        async with self._errors(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.get(keys.stock_key(product_id))
            pipeline.llen(keys.buyers_key(product_id))
            stock, sold = await pipeline.execute()
            if stock is None:
                raise ProductNotFoundError(product_id)
            try:
                return ProductStatus(int(stock), sold)
            except ValueError:
                raise StoreUnavailableError(f"the stock of product '{product_id}' is not a number of units") from None

    async def buyers(self, product_id: str) -> AsyncIterator[str]:
        """Yield the buyers in order of purchase, those up to now; raises ProductNotFoundError.

        Sales push to the head of the list, so positions counted from its tail stay what they are meanwhile.
        """
        sold = (await self.status(product_id)).sold
        for start in range(0, sold, _PAGE_COUNT):
            stop = min(start + _PAGE_COUNT, sold)
            async with self._errors():
                page = await cast(
                    "Awaitable[list[bytes]]",
                    self._redis.lrange(keys.buyers_key(product_id), -stop, -1 - start),
                )
            for buyer in reversed(page):
                yield buyer.decode(errors="replace")

    async def products(self) -> list[str]:
        """Return the ids of all products, also of those whose stock was set by hand, sorted."""
        async with self._errors():
            found = {
                keys.product_id_of(key.decode(errors="replace"))
                async for key in self._redis.scan_iter(match=keys.STOCK_PATTERN, count=1000)
            }
        return sorted(found)

    async def events(self) -> AsyncIterator[Event | None]:
        """Yield sale events as they are published, for ever.

        Yields None whenever the subscription starts: at first, and after each broken link, in which events may have
        been missed (pub/sub forgets; the keys are the truth).
        """
        async with self._errors():  # later troubles are waited out
            await self._redis.ping()
        while True:
            pubsub = self._redis.pubsub(ignore_subscribe_messages=False)
            try:
                await pubsub.subscribe(keys.EVENTS_CHANNEL)
                while True:
                    message = await pubsub.get_message(timeout=math.inf)
                    if message is None:
                        continue
                    if message["type"] == "subscribe":
                        yield None
                    elif message["type"] == "message":
                        try:
                            yield decode_event(message["data"])
                        except ValueError:
                            continue  # somebody else's message on the channel
            except (RedisError, OSError):
                await asyncio.sleep(_RESUBSCRIBE_PAUSE_S)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _script(self, script: scripts.Script, product_id: str, *arguments: int) -> Any:
        names = [keys.stock_key(product_id), keys.buyers_key(product_id), keys.sessions_key(product_id)]
        async with self._errors():
            # EVAL, not EVALSHA: these are rare, and so they work on a store that has just lost its scripts
            return await self._redis.eval(script.source.decode(), len(names), *names, *map(str, arguments))

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except ResponseError as error:
            raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"cannot reach Redis at {shown_url(self._url)}: {error}") from error
