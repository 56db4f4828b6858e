"""The same server without group commit: one EVALSHA for each request, over a pool of connections.

    python -m bench.peers.evalsha --listen 127.0.0.1:0 --home DIRECTORY

Everything else is the project's own: the TCP door, the script (with a batch of one), the embedded store.
"""

import asyncio
import sys
from collections import deque
from pathlib import Path

import msgspec
import uvloop
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from bench.peers.life import live
from bench.stage import home_config
from flashsale.app import Store, open_store
from flashsale.domain import NOT_FOUND, SOLD_OUT, UNKNOWN, Answer, Failed, Purchase, Request, Success
from flashsale.server import Session, TcpServer
from flashsale.store import keys, scripts

_POOL_SIZE = 100
_DECIDED, _NOT_FOUND = 0, 1
_encode_users = msgspec.msgpack.Encoder().encode


class _Slot:
    """A session of the script. Each pooled connection has one: within a session sequences must not overtake."""

    __slots__ = ("name", "sequence")

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence = 0


class SingleCommitter:
    """Spawns a task with one round trip for each request, at most as many at once as the pool has connections."""

    def __init__(self, url: str) -> None:
        self._redis = Redis(
            connection_pool=BlockingConnectionPool.from_url(url, max_connections=_POOL_SIZE, timeout=None, protocol=2)
        )
        self._free = [_Slot(f"peer-{number}") for number in range(_POOL_SIZE)]
        self._waiting: deque[tuple[Request, Session, int]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Load the script."""
        await self._redis.script_load(scripts.PURCHASE.source.decode())

    def submit(self, request: Request, session: Session, ticket: int) -> None:
        """Decide a request; its answer goes to the session with the ticket."""
        if self._free:
            self._spawn(self._free.pop(), request, session, ticket)
        else:
            self._waiting.append((request, session, ticket))

    def _spawn(self, slot: _Slot, request: Request, session: Session, ticket: int) -> None:
        task = asyncio.get_running_loop().create_task(self._decide(slot, request, session, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decide(self, slot: _Slot, request: Request, session: Session, ticket: int) -> None:
        session.answer(ticket, await self._ask(slot, request))
        session.flush()
        if self._waiting:
            self._spawn(slot, *self._waiting.popleft())
        else:
            self._free.append(slot)

    async def _ask(self, slot: _Slot, request: Request) -> Answer:
        if not isinstance(request, Purchase):
            return Failed("this peer only sells")
        product_id = request.product_id
        slot.sequence += 1
        try:
            _, code, stock, granted, _ = await self._redis.evalsha(
                scripts.PURCHASE.sha,
                3,
                keys.stock_key(product_id),
                keys.buyers_key(product_id),
                keys.sessions_key(product_id),
                slot.name,
                slot.sequence,
                0,
                1,
                _encode_users([request.user_id]),
                product_id,
            )
        except (RedisError, OSError):
            return UNKNOWN
        if code == _DECIDED:
            return Success(stock - 1) if granted else SOLD_OUT
        return NOT_FOUND if code == _NOT_FOUND else UNKNOWN


async def _serve(store: Store) -> None:
    committer = SingleCommitter(store.url)
    await committer.open()
    server = TcpServer(committer.submit)
    await live(server.start, store=str(store))


def main() -> None:
    """Serve until SIGTERM."""
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    with open_store(home_config(home)) as store:
        uvloop.run(_serve(store))


if __name__ == "__main__":
    main()
