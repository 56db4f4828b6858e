"""The engine over Redis: one connection, one round trip in flight, each batch one call of the decision script.

The library's retries are off: redis-py would send a script again after a time-out, and sell twice. Instead every batch
carries (session, sequence), and the batcher sends it again knowingly (`remember` in lua/ledger.lua).
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from flashsale.domain.batches import Ambiguous, Batch, NotExecuted, Outcome
from flashsale.errors import FlashsaleError, StoreRefusedError, StoreUnavailableError
from flashsale.store import keys, scripts
from flashsale.store.address import shown_url
from flashsale.store.calls import pack_call
from flashsale.store.durability import REQUIRED, Durability, check_durability
from flashsale.store.encoding import Reply, decode_reply, encode_batch
from flashsale.store.faults import NOT_EXECUTED_CODES, RECONNECT_CODES, classify, error_code
from flashsale.store.links import CONNECT_TIMEOUT_S, make_pool

_REFUSAL_CODES = NOT_EXECUTED_CODES - RECONNECT_CODES
_REFUSAL_OVER_S = 1.0  # without one: what is refused now and then fills no log

_TOKEN_SIZE = 16  # bytes, from `secrets`: 128 random bits, so that nobody guesses the code of a hold

_log = logging.getLogger(__name__)

StoreReply: TypeAlias = Reply | ResponseError | None
"""To one call of the script; None when there was none."""


class RedisEngine:
    """Decides batches in Redis or Valkey; see flashsale.engine.Engine.

    Not for concurrent use: one `commit` at a time, which is what the batcher does.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = Durability.LOCAL,
        replicas: int = 0,
        backlog_max: int = 0,
        compare: Callable[[], Awaitable[None]] | None = None,
        revive: Callable[[], Awaitable[None]] | None = None,
        mint: Callable[[], str] = lambda: secrets.token_urlsafe(_TOKEN_SIZE),
    ) -> None:
        """Connect later, on `open` or with the first batch.

        Args:
            url: redis://, rediss:// or unix://.
            durability: what the store must keep; checked on every connect.
            replicas: how many must be connected.
            backlog_max: changes of a product that may wait for the database; 0 for any number.
            compare: called before the first batch that this run of the store decides: it may find that the store went
                backwards, and freeze products.
            revive: called, in the background, when the store cannot be reached: it may start it again.
            mint: gives the secret of each hold.
        """
        self._url = url
        self._durability = durability
        self._replicas = replicas
        self._backlog_max = backlog_max
        self._compare = compare
        self._compared = ""  # the run of the store that was
        self._revive = revive
        self._mint = mint
        self._reviving: asyncio.Task[None] | None = None
        self._session = secrets.token_hex(8)
        self._pool = make_pool(url)  # the batcher's deadline bounds each call
        self._connection: AbstractConnection | None = None
        self._trouble: str | None = None
        self.connect_count = 0
        """How often it has connected."""
        self._refusals: dict[str, float] = {}  # what the store refuses batches with -> when it last did
        self._alarmed: set[str] = set()  # products that cannot be sold, as far as the log knows

    async def open(self) -> None:
        """Connect now.

        Raises:
            StoreUnavailableError: nothing answers there, or not as Redis does.
            StoreRefusedError: the store keeps less than the durability promises.
        """
        try:
            await self._connect()
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"cannot reach Redis at {shown_url(self._url)}: {_reason(error)}") from error

    async def close(self) -> None:
        """Give up the connection; a batch in flight becomes ambiguous."""
        if self._reviving is not None:
            self._reviving.cancel()
        await self._drop()

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch in one round trip; see Engine."""
        replies: list[StoreReply] = [None] * len(batches)
        sent: list[int] = []  # the batches, by position, whose replies are due, in order
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._connection or await self._connect()
                sent = list(range(len(batches)))
                await self._call(connection, batches, sent, replies, b"EVALSHA", scripts.DECIDE.sha.encode())
                sent = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                if sent:  # the scripts were flushed; the source loads it again
                    await self._call(connection, batches, sent, replies, b"EVAL", scripts.DECIDE.source)
        except (RedisError, OSError, FlashsaleError) as error:  # a TimeoutError is an OSError
            await self._lost(error, reachable=bool(sent))
            # LOADING and the like end the link, as redis-py sees it; they tell of the first missing reply alone
            refused = isinstance(error, RedisError) and error_code(error) in NOT_EXECUTED_CODES
            missing = [i for i in sent if replies[i] is None]
            failed: dict[int, Outcome] = {i: Ambiguous(_reason(error)) for i in missing}
            if refused and missing:
                failed[missing[0]] = NotExecuted(_reason(error))
            not_sent = NotExecuted(_reason(error))
            return [
                failed.get(i, not_sent) if reply is None else self._judge(batch, reply)
                for i, (batch, reply) in enumerate(zip(batches, replies, strict=True))
            ]
        except asyncio.CancelledError:
            await self._drop()
            raise
        for reply in replies:
            if isinstance(reply, ResponseError) and error_code(reply) in RECONNECT_CODES:
                await self._lost(reply, reachable=True)
                break
        else:
            if self._trouble is not None:
                _log.warning("the store is back")
                self._trouble = None
        self._note_refusals(replies)
        return [self._judge(batch, reply) for batch, reply in zip(batches, replies, strict=True)]

    def _note_refusals(self, replies: Sequence[StoreReply]) -> None:
        """Tell the log what the store refuses batches with, once, and when that is over."""
        now = asyncio.get_running_loop().time()
        for reply in replies:
            if isinstance(reply, ResponseError) and (code := error_code(reply)) in _REFUSAL_CODES:
                if code not in self._refusals:
                    _log.warning("the store refuses batches with %s: %s", code, reply)
                self._refusals[code] = now
        if self._refusals and not all(isinstance(reply, ResponseError) for reply in replies):
            for code in [code for code, at in self._refusals.items() if now - at >= _REFUSAL_OVER_S]:
                _log.warning("the store refuses no batches with %s any more", code)
                del self._refusals[code]

    def _judge(self, batch: Batch, reply: StoreReply) -> Outcome:
        """Return what became of a batch; a product that cannot be sold is told to the log, once."""
        outcome = _outcome(batch, reply)
        if isinstance(outcome, list):
            self._alarmed.discard(batch.product_id)
        elif not isinstance(outcome, NotExecuted) and batch.product_id not in self._alarmed:
            self._alarmed.add(batch.product_id)
            _log.error("product %r cannot be sold: %s", batch.product_id, outcome.reason)
        return outcome

    async def _call(
        self,
        connection: AbstractConnection,
        batches: Sequence[Batch],
        positions: Sequence[int],
        replies: list[StoreReply],
        command: bytes,
        script: bytes,
    ) -> None:
        """Call the script for the batches at these positions; put each reply in its place as it comes."""
        calls = []
        for i in positions:
            replies[i] = None
            batch = batches[i]
            count, users, requests = encode_batch(batch, self._mint)
            calls.append(
                pack_call(
                    command,
                    script,
                    batch.product_id,
                    self._session,
                    batch.sequence,
                    int(batch.fenced),
                    batch.product_id,
                    count,
                    users,
                    requests,
                    self._backlog_max,
                    keys.MOVERS,
                )
            )
        await connection.send_packed_command(calls, check_health=False)
        for i in positions:
            try:
                reply: Reply = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                replies[i] = error
                continue
            if reply[0] != batches[i].sequence:
                raise StoreUnavailableError("it answered another batch than it was asked")
            replies[i] = reply

    async def _connect(self) -> AbstractConnection:
        """Connect, and look before selling: is it a primary, and does it keep what was promised?"""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                settings: dict[str, str] | None
                try:
                    settings = dict([await _ask(connection, "CONFIG", "GET", name) for name in REQUIRED])
                except (ResponseError, ValueError):  # not allowed, or not known there
                    settings = None
                role = await _ask(connection, "ROLE")
                check_durability(
                    self._durability,
                    settings,
                    role[0],
                    replica_count=len(role[2]) if self._replicas and role[0] == "master" else 0,
                    replicas_needed=self._replicas,
                )
                await _ask(connection, "SCRIPT", "LOAD", scripts.DECIDE.source)
                run = await _run_of(connection) if self._compare else ""
            if self._compare is not None and (not run or run != self._compared):
                await self._compare()
                self._compared = run
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        self.connect_count += 1
        return connection

    async def _lost(self, error: Exception, *, reachable: bool) -> None:
        reason = _reason(error)
        if reason != self._trouble:
            _log.warning("the store is away: %s", reason)
            self._trouble = reason
        await self._drop()
        if reachable or self._revive is None or isinstance(error, StoreRefusedError):
            return
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.get_running_loop().create_task(self._revive_now(self._revive))

    @staticmethod
    async def _revive_now(revive: Callable[[], Awaitable[None]]) -> None:
        try:
            await revive()
        except FlashsaleError as error:
            _log.error("the store does not start: %s", error)

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.disconnect(nowait=True)


def _outcome(batch: Batch, reply: StoreReply) -> Outcome:
    """Return what became of a batch."""
    if isinstance(reply, ResponseError):
        return classify(reply)
    assert reply is not None
    return decode_reply(batch, reply)


async def _ask(connection: AbstractConnection, *command: str | bytes) -> Any:
    await connection.send_command(*command, check_health=False)
    reply = await connection.read_response()
    if isinstance(reply, list):
        return [item.decode() if isinstance(item, bytes) else item for item in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


async def _run_of(connection: AbstractConnection) -> str:
    """Return what is another one each time that a store is started; empty when it does not say."""
    try:
        told = await _ask(connection, "INFO", "server")
    except ResponseError:
        return ""
    return next((line.partition(":")[2] for line in told.splitlines() if line.startswith("run_id:")), "")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return str(error) or type(error).__name__
