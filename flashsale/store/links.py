"""How the store is connected to, in one place because of one rule: the library repeats nothing by itself.

redis-py retries by default, also after a time-out: a script that was sent again would sell twice, a repeated init could
wipe what was sold in between. Whoever may repeat something does so knowingly.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from flashsale.errors import StoreUnavailableError
from flashsale.store.address import shown_url

CONNECT_TIMEOUT_S = 1.0
"""Of a bare connection."""


def make_client(url: str, *, answer_timeout_s: float) -> "Redis":
    """Return a client whose calls, and whose connecting, take so many seconds at most."""
    return Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=answer_timeout_s,
        socket_connect_timeout=answer_timeout_s,
    )


def make_pool(url: str) -> ConnectionPool:
    """Return what makes bare connections, for those who give each call a deadline of its own."""
    return ConnectionPool.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        health_check_interval=0,
    )


@asynccontextmanager
async def store_errors(url: str) -> AsyncIterator[None]:
    """Raise StoreUnavailableError, with the store's address in its text, when a call fails."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailableError(f"cannot reach Redis at {shown_url(url)}: {error}") from error


def raise_if_cancelled() -> None:
    """End a loop whose cancellation was lost on the way, or it would go on for ever.

    redis-py sends by asyncio.wait_for, which prefers a result to the cancellation that comes with it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
