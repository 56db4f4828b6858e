"""What a service usually does: a Starlette route that makes one EVALSHA for each purchase, through redis-py's client.

    python -m bench.peers.starlette_evalsha --listen 127.0.0.1:0 --home DIRECTORY

The script is the least that a sale takes: look at the stock, take a unit, note the buyer. No request id is looked up,
no ledger is written, nothing is repeated safely: all that this leaves out is to its advantage.
"""

from uuid import uuid4

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.peers.starlette_constant import PLACED
from bench.peers.uvicorns import arguments, live
from bench.stage import home_config
from flashsale.backends import open_store
from flashsale.store import keys

_CONNECTION_COUNT = 100
"""As many calls at once; a smaller or larger number is not faster."""
_WAIT_S = 30.0
_BUY = """
local left = tonumber(redis.call('GET', KEYS[1]) or '0')
if left < 1 then return -1 end
redis.call('DECR', KEYS[1])
redis.call('LPUSH', KEYS[2], ARGV[1])
return left - 1
"""


class _Body(msgspec.Struct):
    request_id: str
    user_id: str
    item_id: str
    quantity: int


_decode = msgspec.json.Decoder(_Body).decode


class Endpoint:
    """Sells over one store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._sha = ""

    async def purchase(self, request: Request) -> JSONResponse:
        """Sell a unit."""
        body = _decode(await request.body())
        self._sha = self._sha or await self._redis.script_load(_BUY)
        names = (keys.key(body.item_id, "stock"), keys.key(body.item_id, "buyers"))
        if await self._redis.evalsha(self._sha, len(names), *names, body.user_id) < 0:
            return JSONResponse({"success": False, "message": "sold out"}, status_code=410)
        return JSONResponse({"success": True, "message": PLACED, "order_id": str(uuid4())})


def main() -> None:
    """Serve until SIGTERM."""
    given = arguments()
    with open_store(home_config(given.home)) as store:
        pool = BlockingConnectionPool.from_url(store.url, max_connections=_CONNECTION_COUNT, timeout=_WAIT_S)
        endpoint = Endpoint(Redis(connection_pool=pool))
        routes = [Route("/api/purchase", endpoint.purchase, methods=["POST"])]
        live(Starlette(routes=routes), given.listen, store=str(store))


if __name__ == "__main__":
    main()
