"""The same server without group commit: one EVALSHA for each request, each on a connection of its own.

    python -m bench.peers.evalsha [--bare] --listen 127.0.0.1:0 --home DIRECTORY

Everything else is the project's own: the TCP door, the script (with a batch of one), the embedded store. A hundred
calls at a time go through redis-py's client, as a service would write it; with `--bare` each has a connection of its
own, without the client and its pool, which takes about half the CPU. A smaller or larger number is not faster.
"""

import asyncio
import secrets
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from bench.peers.life import live
from bench.stage import home_config
from flashsale.backends import Store, open_store
from flashsale.domain.answers import UNKNOWN, Answer
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Request
from flashsale.server import Session, TcpServer
from flashsale.store import keys, scripts
from flashsale.store.encoding import Reply, decode_reply, encode_batch

_CONNECTION_COUNT = 100
_TOKEN_SIZE = 16


Call = Callable[..., Awaitable[Reply]]
"""Calls the script: takes what comes behind EVALSHA, returns its reply."""


class _Slot:
    """A session of the script, with a way to call it: within a session sequences must not overtake."""

    __slots__ = ("_call", "_name", "_sequence")

    def __init__(self, name: str, call: Call) -> None:
        self._name = name
        self._call = call
        self._sequence = 0

    async def ask(self, request: Request) -> Answer:
        """Return the store's answer."""
        self._sequence += 1
        batch = Batch(request.product_id, [request], self._sequence)
        names = keys.script_keys(batch.product_id)
        try:
            reply = await self._call(
                scripts.DECIDE.sha,
                len(names),
                *names,
                self._name,
                batch.sequence,
                0,
                batch.product_id,
                *encode_batch(batch, _mint),
            )
        except (RedisError, OSError):
            return UNKNOWN
        outcome = decode_reply(batch, reply)
        return outcome[0] if isinstance(outcome, list) else UNKNOWN


def _mint() -> str:
    return secrets.token_urlsafe(_TOKEN_SIZE)


def _connection(redis: Redis) -> AbstractConnection:
    connection: AbstractConnection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


def _bare(connection: AbstractConnection) -> Call:
    """Return a call over a connection of its own, without the client and its pool."""

    async def call(*arguments: str | int | bytes) -> Reply:
        await connection.send_packed_command(connection.pack_command("EVALSHA", *arguments), check_health=False)
        reply: Reply = await connection.read_response(disable_decoding=True)
        return reply

    return call


class SingleCommitter:
    """Gives each request a round trip of its own, at most as many at once as there are connections."""

    def __init__(self, redis: Redis, *, bare: bool) -> None:
        self._redis = redis
        self._free = [
            _Slot(f"peer-{number}", _bare(_connection(redis)) if bare else redis.evalsha)
            for number in range(_CONNECTION_COUNT)
        ]
        self._waiting: deque[tuple[Request, Session, int]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

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


async def _serve(store: Store, *, bare: bool) -> None:
    redis = Redis.from_url(store.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None)
    await redis.script_load(scripts.DECIDE.source)
    server = TcpServer(SingleCommitter(redis, bare=bare).submit)
    await live(server.start, store=str(store))


def main() -> None:
    """Serve until SIGTERM."""
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    with open_store(home_config(home)) as store:
        uvloop.run(_serve(store, bare="--bare" in sys.argv))


if __name__ == "__main__":
    main()
