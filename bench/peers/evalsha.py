"""The same server without group commit: one EVALSHA for each request, each on a connection of its own.

    python -m bench.peers.evalsha --listen 127.0.0.1:0 --home DIRECTORY

Everything else is the project's own: the TCP door, the script (with a batch of one), the embedded store. The
connections are bare ones, used as the project's engine uses its own. A hundred engines that commit batches of one
request would be less code, but took half as much CPU again; nor is a smaller or larger number of connections faster.
"""

import asyncio
import sys
from collections import deque
from pathlib import Path

import msgspec
import uvloop
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from bench.peers.life import live
from bench.stage import home_config
from flashsale.app import Store, open_store
from flashsale.domain import NOT_FOUND, SOLD_OUT, UNKNOWN, Answer, Failed, Purchase, Request, Success
from flashsale.server import Session, TcpServer
from flashsale.store import keys, scripts

_CONNECTION_COUNT = 100
_DECIDED, _NOT_FOUND = 0, 1
_encode_users = msgspec.msgpack.Encoder().encode


class _Slot:
    """A connection and its session of the script: within a session sequences must not overtake."""

    __slots__ = ("_connection", "_name", "_sequence")

    def __init__(self, name: str, connection: AbstractConnection) -> None:
        self._name = name
        self._connection = connection
        self._sequence = 0

    async def open(self) -> None:
        """Connect and load the script."""
        await self._connection.send_command("SCRIPT", "LOAD", scripts.PURCHASE.source)
        await self._connection.read_response()

    async def ask(self, request: Request) -> Answer:
        """Return the store's answer."""
        if not isinstance(request, Purchase):
            return Failed("this peer only sells")
        product_id = request.product_id
        self._sequence += 1
        command = self._connection.pack_command(
            "EVALSHA",
            scripts.PURCHASE.sha,
            3,
            keys.stock_key(product_id),
            keys.buyers_key(product_id),
            keys.sessions_key(product_id),
            self._name,
            self._sequence,
            0,
            1,
            _encode_users([request.user_id]),
            product_id,
        )
        try:
            await self._connection.send_packed_command(command, check_health=False)
            _, code, stock, granted, _ = await self._connection.read_response(disable_decoding=True)
        except (RedisError, OSError):
            return UNKNOWN
        if code == _DECIDED:
            return Success(stock - 1) if granted else SOLD_OUT
        return NOT_FOUND if code == _NOT_FOUND else UNKNOWN


class SingleCommitter:
    """Gives each request a round trip of its own, at most as many at once as there are connections."""

    def __init__(self, url: str) -> None:
        pool = ConnectionPool.from_url(
            url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None, health_check_interval=0
        )
        self._free = [
            _Slot(f"peer-{number}", pool.make_connection())  # type: ignore[no-untyped-call]
            for number in range(_CONNECTION_COUNT)
        ]
        self._waiting: deque[tuple[Request, Session, int]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect."""
        for slot in self._free:
            await slot.open()

    def submit(self, request: Request, session: Session, ticket: int) -> None:
        """Decide a request; its answer goes to the session with the ticket."""
        if not self._free:
            self._waiting.append((request, session, ticket))
            return
        task = asyncio.get_running_loop().create_task(self._work(self._free.pop(), request, session, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, slot: _Slot, request: Request, session: Session, ticket: int) -> None:
        """Decide this request and then, one after the other, those that wait."""
        while True:
            session.answer(ticket, await slot.ask(request))
            session.flush()
            if not self._waiting:
                break
            request, session, ticket = self._waiting.popleft()
        self._free.append(slot)


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
