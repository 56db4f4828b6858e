"""What an operator does to products, and what a subscriber hears: the calls behind the CLI."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from flashsale.domain.answers import NOT_FOUND, Answer, Changed, Failed, ProductStatus
from flashsale.domain.batches import Batch, Defective, NotExecuted
from flashsale.domain.events import Event
from flashsale.domain.ids import make_code
from flashsale.domain.requests import GetStatus, OperatorRequest, Refund, Request
from flashsale.domain.sale import PLAIN, Terms
from flashsale.domain.schedules import is_sale_id
from flashsale.errors import (
    OutcomeUnknownError,
    ProductExistsError,
    ProductNotFoundError,
    RefusedError,
    StoreUnavailableError,
)
from flashsale.store import keys, scripts
from flashsale.store.address import shown_url
from flashsale.store.audit import Audit, ReadBase
from flashsale.store.durability import Durability
from flashsale.store.engine import RedisEngine
from flashsale.store.faults import NOT_EXECUTED_CODES, error_code
from flashsale.store.links import make_client, raise_if_cancelled
from flashsale.store.rebuild import answers, sale_fields
from flashsale.store.records import HoldRecord, Sale, read_hold, read_sale
from flashsale.store.replay import Base
from flashsale.store.report import Command, Report
from flashsale.store.schedules import RedisSchedules
from flashsale.store.trimming import encode_checkpoint
from flashsale.wire import decode_event

T = TypeVar("T")

ANSWER_TIMEOUT_S = 5.0
REPAIR_TRIES = 10
_PAGE_COUNT = 10_000
_HOLDS_PAGE_COUNT = 1_000
_RESUBSCRIBE_PAUSE_S = 0.2
_MOVE_LOOKS, _MOVE_LOOK_S = 50, 0.1
"""Looks at whether everything is in the database, and the time between two."""


class Admin:
    """The operator's hands on a store; an async context manager.

    Every method raises StoreUnavailableError when the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._url = url
        self._redis = make_client(url, answer_timeout_s=ANSWER_TIMEOUT_S)
        self.schedules = RedisSchedules(url)
        """Recurring sales."""
        self._engine: RedisEngine | None = None  # connects with the first request that needs a decision
        self._sequence = 0

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            await self._engine.close()
        await self.schedules.close()
        await self._redis.aclose()

    async def init(
        self, product_id: str, stock: int, terms: Terms = PLAIN, *, force: bool = False, discard: bool = False
    ) -> None:
        """Open a sale of `stock` units.

        Raises:
            ProductExistsError: the product has buyers or holds, and `force` is not given.
            RefusedError: some of its changes are not in the database yet, and `discard` is not given.
        """

        async def attempt() -> tuple[tuple[int, int], int]:
            buyers, holds, unmoved = await self._script(scripts.INIT, product_id, *values, int(discard))
            return (buyers, holds), unmoved

        values = (
            *(stock, int(force), secrets.token_hex(4)),
            *(terms.limit, terms.opens_at, terms.closes_at, terms.hold_s, terms.hold_total_s, int(terms.numbered)),
        )
        buyers, holds = await self._once_moved(product_id, attempt)
        if buyers or holds:
            found = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((buyers, "buyer"), (holds, "hold")) if n]
            raise ProductExistsError(
                f"Product '{product_id}' already has {' and '.join(found)}; --force starts it anew and forgets them"
            )

    async def reopen(self, product_id: str) -> int:
        """Open a sale anew, with the units it was opened with and on its terms; return how many these are.

        Its buyers and holds are forgotten here; its orders stay in the database.

        Raises:
            ProductNotFoundError: there is none of that id.
            RefusedError: its window is over, or some of its changes are not in the database yet.
        """
        sale, now_s = await self.sale(product_id), await self.now()
        if 0 < sale.terms.closes_at <= now_s:
            raise RefusedError(f"Product '{product_id}' is past its window: open it anew with flashsale init")
        await self.init(product_id, sale.initial, sale.terms, force=True)
        return sale.initial

    @staticmethod
    async def _once_moved(product_id: str, attempt: Callable[[], Awaitable[tuple[T, int]]]) -> T:
        """Try until nothing is left that is not in the database yet, for a little while; return what that gave."""
        for left in reversed(range(_MOVE_LOOKS)):
            found, unmoved = await attempt()
            if not unmoved:
                return found
            if unmoved < 0:
                raise RefusedError(
                    f"The database knows more of product '{product_id}' than this store: rebuild it with flashsale"
                    " recover, or give --discard to forget it here"
                )
            if left:
                await asyncio.sleep(_MOVE_LOOK_S)
        raise RefusedError(
            f"{unmoved} changes of product '{product_id}' are not in the database yet: see that a server or a"
            " worker moves them, or give --discard to lose them"
        )

    async def now(self) -> int:
        """Return the store's clock, in Unix seconds."""
        async with self._errors():
            seconds, _ = await self._redis.time()
        return int(seconds)

    async def reset(self, product_id: str, *, discard: bool = False) -> None:
        """Delete the product with all that is known of it here.

        Raises:
            ProductNotFoundError: there is none.
            RefusedError: some of its changes are not in the database yet, and `discard` is not given.
        """

        async def attempt() -> tuple[int, int]:
            found, unmoved = await self._script(scripts.RESET, product_id, int(discard))
            return found, unmoved

        if not await self._once_moved(product_id, attempt):
            raise ProductNotFoundError(product_id)

    async def change(self, request: OperatorRequest) -> Changed:
        """Have an operator's request decided; its ledger tells of it.

        Raises:
            ProductNotFoundError: there is none of that id.
            RefusedError: the rules do not allow it; the text says why.
        """
        answer = await self._decide(request)
        if isinstance(answer, Changed):
            return answer
        assert isinstance(answer, Failed)
        raise RefusedError(answer.error)

    async def take_back(self, order_id: str) -> None:
        """Refund an order that the database does not take, unless it was refunded or forgotten."""
        with suppress(RefusedError, ProductNotFoundError):
            await self.change(Refund(order_id))

    async def status(self, product_id: str) -> ProductStatus:
        """Return units left, sold and held at one instant; raises ProductNotFoundError."""
        answer = await self._decide(GetStatus(product_id))
        assert isinstance(answer, ProductStatus)
        return answer

    async def sale(self, product_id: str) -> Sale:
        """Return a sale with its terms, its counters at one instant; raises ProductNotFoundError."""
        status = await self.status(product_id)  # also finds keys that are not what they should be
        async with self._errors(), self._redis.pipeline(transaction=True) as step:
            step.get(keys.key(product_id, "stock"))
            step.llen(keys.key(product_id, "buyers"))
            step.hgetall(keys.key(product_id, "sale"))
            stock, buyer_count, fields = await step.execute()
        if stock is None:
            raise ProductNotFoundError(product_id)
        return read_sale(int(stock), buyer_count, fields, status.state)

    async def _decide(self, request: Request) -> Answer:
        """Have one request decided by the engine, as a batch of its own."""
        if self._engine is None:
            engine = RedisEngine(self._url, durability=Durability.RELAXED)  # it asks for no promise
            await engine.open()
            self._engine = engine
        self._sequence += 1
        batch = Batch(request.product_id, [request], self._sequence)
        [outcome] = await self._engine.commit([batch], timeout_s=ANSWER_TIMEOUT_S)
        match outcome:
            case [answer]:
                if answer == NOT_FOUND:
                    raise ProductNotFoundError(request.product_id)
                return answer
            case NotExecuted(reason):
                raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {reason}")
            case Defective(reason):
                raise StoreUnavailableError(f"Product '{request.product_id}' cannot be sold: {reason}")
            case _ if isinstance(request, GetStatus):
                raise StoreUnavailableError(f"Redis at {shown_url(self._url)} did not answer")
            case _:
                raise self._unknown()

    def _unknown(self) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"Redis at {shown_url(self._url)} did not answer; it is not known whether the command was done"
        )

    async def buyers(self, product_id: str) -> AsyncIterator[str]:
        """Yield the buyers in order of purchase, those up to now; raises ProductNotFoundError.

        Sales push to the head of the list, so positions counted from its tail stay what they are meanwhile.
        """
        await self.status(product_id)
        async with self._errors():
            sold = await self._redis.llen(keys.key(product_id, "buyers"))
        for start in range(0, sold, _PAGE_COUNT):
            stop = min(start + _PAGE_COUNT, sold)
            async with self._errors():
                page = await cast(
                    "Awaitable[list[bytes]]",
                    self._redis.lrange(keys.key(product_id, "buyers"), -stop, -1 - start),
                )
            for buyer in reversed(page):
                yield buyer.decode(errors="replace")

    async def holds(self, product_id: str) -> AsyncIterator[tuple[str, HoldRecord, int]]:
        """Yield (code, hold, when it expires) by deadline; those that begin or end meanwhile or not.

        A page begins at the deadline with which the last one ended, behind as many as were seen of that second.

        Raises:
            ProductNotFoundError: there is none of that id.
        """
        await self.status(product_id)
        last, seen = 0.0, 0
        while True:
            async with self._errors():
                page = cast(
                    "list[tuple[bytes, float]]",
                    await self._redis.zrangebyscore(
                        keys.key(product_id, "deadlines"), last, "+inf", seen, _HOLDS_PAGE_COUNT, withscores=True
                    ),
                )
                if not page:
                    return
                tokens = [token for token, _ in page]
                async with self._redis.pipeline(transaction=True) as step:
                    for part in ("requests", "requests_before"):
                        step.hmget(keys.key(product_id, part), tokens)
                    records = zip(*await step.execute(), strict=True)
            for (token, deadline), (packed, packed_before) in zip(page, records, strict=True):
                last, seen = deadline, seen + 1 if deadline == last else 1
                hold = read_hold(packed or packed_before)
                if hold is not None:  # else it ended meanwhile, or somebody else wrote it
                    yield make_code(token.decode(), product_id), hold, int(deadline)

    async def audit(self, product_id: str, read_base: ReadBase | None = None) -> Report:
        """Compare a product's keys with its ledger.

        Args:
            product_id: the product.
            read_base: returns what the database knows of it, for the beginning of a ledger that is trimmed: without
                that only its sums are compared.

        Raises:
            ProductNotFoundError: there is none of that id.
            RefusedError: it changed every time in a way that does not let it be looked at.
        """
        async with self._errors():
            return await Audit(self._redis, product_id, read_base).look()

    async def repair(self, product_id: str, read_base: ReadBase | None = None) -> tuple[Report, Report]:
        """Set a product's keys to what its ledger says; return what an audit found before and after.

        Nothing is written when the product has changed since it was looked at: then it is looked at again.

        Raises:
            ProductNotFoundError: there is none of that id.
            RefusedError: the ledger itself is not whole, or the product changes all the time, or it is frozen.
        """
        return await self._repair(product_id, read_base, [], thaws=False)

    async def recover(self, product_id: str, read_base: ReadBase) -> tuple[Base | None, Report]:
        """Rebuild a product of which the database knows more than this store, and go on selling it.

        Return what the database knew, None when it knew nothing more, and what an audit found after that.

        Raises:
            RefusedError: the database does not know it either, or its ledger cannot be relied on.
        """
        base = await read_base()
        if base is None:
            raise RefusedError(f"The database does not know product '{product_id}'")
        counters = base.counters
        fields, left = sale_fields(base), max(counters.remaining, 0)
        checkpoint = encode_checkpoint(counters)
        lost = await self._script(scripts.REBUILD, product_id, base.epoch, counters.version, checkpoint, left, *fields)
        more = answers(base, await self.now()) if lost else []
        _, after = await self._repair(product_id, read_base, more, thaws=True)
        ends_at = base.terms.closes_at if base.terms is not None else 0
        if ends_at and is_sale_id(product_id):
            await self.schedules.keep(product_id, ends_at)  # the note was lost with the sale
        return base if lost else None, after

    async def _repair(
        self, product_id: str, read_base: ReadBase | None, more: list[Command], *, thaws: bool
    ) -> tuple[Report, Report]:
        """Repair a product; `more` is written as well. A frozen one goes on, or is refused."""
        audit = Audit(self._redis, product_id, read_base)
        for _ in range(REPAIR_TRIES):
            async with self._errors():
                before = await audit.look()
            snapshot = audit.snapshot
            assert snapshot is not None
            why = f"its ledger {before.fault}" if before.fault else ""
            if before.trimmed and not before.ok:
                why = f"its ledger begins at version {before.first_version}, and the database does not help"
            if snapshot.sale.get(b"state") == b"frozen" and not thaws:
                why = "the database knows more of it than this store: rebuild it with flashsale recover"
            if why:
                raise RefusedError(f"Product '{product_id}' was left as it is: {why}")
            if not before.commands and not more:
                return before, before
            epoch, version, repairs = map(snapshot.sale.get, (b"epoch", b"version", b"repairs"))
            found = (epoch, version, snapshot.stock, repairs)
            commands = [part for command in (*before.commands, *more) for part in (len(command) - 2, *command)]
            if await self._script(scripts.REPAIR, product_id, *(value or b"" for value in found), *commands):
                async with self._errors():
                    return before, await audit.look()
        raise RefusedError(
            f"Product '{product_id}' changed each of {REPAIR_TRIES} times it was looked at: pause it, then repair it"
        )

    async def products(self) -> list[str]:
        """Return the ids of all products, also of those whose stock was set by hand, sorted."""
        async with self._errors():
            found = {
                keys.product_id_of(key.decode(errors="replace"))
                async for key in self._redis.scan_iter(match=keys.STOCK_PATTERN, count=1000)
            }
        return sorted(found)

    async def only_product(self) -> str:
        """Return the id of the one product that there is.

        Raises:
            RefusedError: there is none, or more than one.
        """
        found = await self.products()
        if len(found) != 1:
            raise RefusedError(f"there are {len(found)} products: say which" if found else "there is no product")
        return found[0]

    async def audited_products(self) -> list[str]:
        """Return the ids of all products, also of those that have a ledger but no stock any more, sorted."""
        async with self._errors():
            listed = await cast("Awaitable[set[bytes]]", self._redis.smembers(keys.PRODUCTS))
        return sorted({*await self.products(), *(name.decode(errors="replace") for name in listed)})

    async def events(self) -> AsyncIterator[tuple[Event, bytes] | None]:
        """Yield sale events as they are published, each with the message that told it, for ever.

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
                    raise_if_cancelled()
                    message = await pubsub.get_message(timeout=math.inf)
                    if message is None:
                        continue
                    if message["type"] == "subscribe":
                        yield None
                    elif message["type"] == "message":
                        try:
                            event = decode_event(message["data"])
                        except (ValueError, RecursionError):
                            continue  # somebody else's message on the channel
                        yield event, message["data"]
            except NoPermissionError as error:  # waiting would not help
                raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {error}") from error
            except (RedisError, OSError):
                await asyncio.sleep(_RESUBSCRIBE_PAUSE_S)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _script(self, script: scripts.Script, product_id: str, *arguments: str | int | bytes) -> Any:
        names = (*keys.script_keys(product_id), keys.MOVERS)
        async with self._errors():
            await self._redis.ping()  # connects: what fails from here on may have been done
            try:
                # EVAL, not EVALSHA: these are rare, and so they work on a store that has just lost its scripts
                return await self._redis.eval(script.source.decode(), len(names), *names, product_id, *arguments)
            except (RedisTimeoutError, RedisConnectionError) as error:
                if error_code(error) in NOT_EXECUTED_CODES:  # LOADING and the like end the link, as redis-py sees it
                    raise
                raise self._unknown() from error

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except ResponseError as error:
            raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"cannot reach Redis at {shown_url(self._url)}: {error}") from error
