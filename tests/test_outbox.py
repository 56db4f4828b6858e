"""What a store does not let a mover do is told as a store that is away, which is waited for."""

from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from flashsale.errors import StoreUnavailableError
from flashsale.store.outbox import RedisOutbox


@pytest.mark.parametrize("right", ["time", "exists", "hmget", "smembers"])
async def test_a_right_that_is_missing_is_an_error_that_movers_wait_out(
    start_store: Callable[..., int], right: str
) -> None:
    url = f"redis://127.0.0.1:{start_store()}"
    outbox = RedisOutbox(url)

    async def use() -> None:
        await outbox.listed()
        await outbox.standings(["p"])
        await outbox.trim(["p"])

    await use()
    async with Redis.from_url(url) as redis:
        await redis.execute_command("ACL", "SETUSER", "default", f"-{right}")
        with pytest.raises(StoreUnavailableError, match=r"^[^\n]*no permissions[^\n]*$"):
            await use()
    await outbox.close()
