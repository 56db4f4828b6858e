"""Reading the ledgers of products: where they stand, page by page, and as they grow.

Nothing is written. A page is read together with the epoch of the product, so that the changes of a sale are never taken
for those of another one that had the same id.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from flashsale.domain.sale import Change, Kind, Page, Standing
from flashsale.errors import StoreUnavailableError
from flashsale.store import keys
from flashsale.store.address import shown_url
from flashsale.store.encoding import decode_message
from flashsale.store.links import make_pool

ANSWER_TIMEOUT_S = 2.0
MESSAGE_COUNT_MAX = 32
"""Messages in a page. Each holds the changes of one batch, at most some thousands."""
ORDER_COUNT_MAX = 64
"""Refunded orders of a page that are looked up; the others are told without their ids."""
STANDING_COUNT_MAX = 256
"""Products asked about in one go, before the buyers of this worker have a turn: about 3 ms."""

_log = logging.getLogger(__name__)

_Command: TypeAlias = tuple[str | int, ...]
_Message: TypeAlias = tuple[bytes, list[bytes]]


class RedisLedger:
    """The ledgers in Redis or Valkey; see flashsale.feed.Ledger.

    It has one connection, without retries, which is made with the first call and again after it broke. Not for
    concurrent use: one call at a time.
    """

    def __init__(self, url: str) -> None:
        """Name the store by its URL."""
        self._url = url
        self._pool = make_pool(url)
        self._connection: AbstractConnection | None = None
        self._unreadable: set[str] = set()  # products whose ledger is something else; one would fail a wait for all

    async def close(self) -> None:
        """Give up the connection."""
        await self._drop()

    async def standings(self, product_ids: Sequence[str]) -> list[Standing | None]:
        """Return how far each ledger has come; None for one that cannot be read."""
        found: list[Standing | None] = []
        for first in range(0, len(product_ids), STANDING_COUNT_MAX):
            commands: list[_Command] = []
            for product_id in product_ids[first : first + STANDING_COUNT_MAX]:
                commands.append(("HMGET", keys.key(product_id, "sale"), "epoch", "version"))
                commands.append(("EXISTS", keys.key(product_id, "stock")))
            replies = await self._call(commands)
            found += [_standing(*pair) for pair in zip(replies[::2], replies[1::2], strict=True)]
        return found

    async def products(self, count_max: int) -> set[str] | None:
        """Return the ids of the products that have a ledger; None when there are more than so many."""
        if await self._ask("SCARD", keys.PRODUCTS) > count_max:
            return None
        return {name.decode(errors="replace") for name in await self._ask("SMEMBERS", keys.PRODUCTS)}

    async def page(self, product_id: str, after_version: int) -> Page | None:
        """Return what the ledger holds behind a version, or the first part of it; None when it cannot be read."""
        orders = keys.key(product_id, "orders")
        first_id = f"{after_version + 1}-0"
        *_, reply = await self._call(
            [
                ("MULTI",),
                ("HMGET", keys.key(product_id, "sale"), "epoch", "version"),
                ("XREVRANGE", orders, first_id, "-", "COUNT", 1),  # the message that this version is somewhere in
                ("XRANGE", orders, f"({first_id}", "+", "COUNT", MESSAGE_COUNT_MAX - 1),
                ("EXEC",),
            ]
        )
        if isinstance(reply, ResponseError) or any(isinstance(part, ResponseError) for part in reply):
            return None
        standing = _standing(reply[0], 0)
        if standing is None:
            return None
        self._unreadable.discard(product_id)
        batches, position = await _decode(product_id, reply[1] + reply[2], after_version)
        order_times: dict[int, int] = {}
        refunds = _refunds(batches)
        if refunds:
            order_times, epoch = await self._order_times(product_id, refunds)
            if epoch != standing.epoch:  # those may be the orders of another sale
                order_times = {}
        return Page(
            product_id=product_id,
            epoch=standing.epoch,
            version=standing.version,
            batches=batches,
            complete=len(reply[2]) < MESSAGE_COUNT_MAX - 1,
            position=position,
            order_times=order_times,
        )

    async def wait(self, positions: Mapping[str, int], timeout_s: float) -> list[Page]:
        """Wait until one of these ledgers grows beyond its position; return what came, nothing after the time-out.

        The epoch of a page is that of a moment after its changes were read: if it is what it was before, they are its.
        """
        positions = {name: version for name, version in positions.items() if name not in self._unreadable}
        if not positions:
            await asyncio.sleep(timeout_s)
            return []
        names = [keys.key(product_id, "orders") for product_id in positions]
        ids = [f"{version}-0" for version in positions.values()]
        block: _Command = (
            "XREAD",
            "COUNT",
            MESSAGE_COUNT_MAX,
            "BLOCK",
            max(1, round(timeout_s * 1000)),
            "STREAMS",
            *names,
            *ids,
        )
        [reply] = await self._call([block], timeout_s=timeout_s + ANSWER_TIMEOUT_S)
        if isinstance(reply, ResponseError):
            await self._note_unreadable(list(positions), reply)
            return []
        products = dict(zip(map(str.encode, names), positions, strict=True))
        found = {products[name]: messages for name, messages in reply or []}
        pages = []
        for product_id, messages in found.items():
            batches, position = await _decode(product_id, messages, positions[product_id])
            order_times, epoch = await self._order_times(product_id, _refunds(batches))
            if epoch is None:
                self._unreadable.add(product_id)
                continue
            pages.append(
                Page(
                    product_id=product_id,
                    epoch=epoch,
                    version=position,
                    batches=batches,
                    complete=False,
                    position=position,
                    order_times=order_times,
                )
            )
        return pages

    async def _order_times(self, product_id: str, order_versions: Sequence[int]) -> tuple[dict[int, int], str | None]:
        """Return when these orders were made, by their versions, and the epoch of the product after that was read.

        The epoch is empty when there is none, and None when it cannot be read.
        """
        orders = keys.key(product_id, "orders")
        commands: list[_Command] = [
            ("XREVRANGE", orders, f"{version}-0", "-", "COUNT", 1) for version in order_versions[:ORDER_COUNT_MAX]
        ]
        *replies, last = await self._call([*commands, ("HGET", keys.key(product_id, "sale"), "epoch")])
        times: dict[int, int] = {}
        for version, reply in zip(order_versions, replies, strict=False):
            if not isinstance(reply, ResponseError):
                [changes] = (await _decode(product_id, reply, version - 1))[0] or [[]]
                times |= {
                    change.version: change.at_ms
                    for change in changes
                    if change.version == version and change.kind in {Kind.SOLD, Kind.CONFIRMED}
                }
        if isinstance(last, ResponseError):
            return {}, None
        return times, last.decode() if last else ""

    async def _note_unreadable(self, product_ids: Sequence[str], error: ResponseError) -> None:
        """Find out which ledgers are none, so that the others can be waited for."""
        kinds = await self._call([("TYPE", keys.key(product_id, "orders")) for product_id in product_ids])
        found = {name for name, kind in zip(product_ids, kinds, strict=True) if kind not in {b"stream", b"none"}}
        if not found:
            raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {error}")
        _log.error("the ledgers of %s cannot be read: %s", sorted(found), error)
        self._unreadable |= found

    async def _ask(self, *command: str | int) -> Any:
        """Send one command that the store does not refuse, and return its reply."""
        [reply] = await self._call([command])
        if isinstance(reply, ResponseError):
            raise StoreUnavailableError(f"Redis at {shown_url(self._url)} refused: {reply}")
        return reply

    async def _call(self, commands: Sequence[_Command], timeout_s: float = ANSWER_TIMEOUT_S) -> list[Any]:
        """Send commands in one go and return their replies, errors among them as values.

        Raises:
            StoreUnavailableError: the store cannot be reached, or fell silent.
        """
        if not commands:
            return []
        old = self._connection is not None
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._exchange(commands)
                except (RedisError, ConnectionError):
                    if not old:
                        raise
                    await self._drop()  # it may have broken long ago, and nothing is changed by asking twice
                    return await self._exchange(commands)
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            await self._drop()
            reason = "it does not answer in time" if isinstance(error, TimeoutError) else error
            raise StoreUnavailableError(f"cannot read from Redis at {shown_url(self._url)}: {reason}") from error
        except BaseException:
            await self._drop()  # the replies would be taken for those to the next commands
            raise

    async def _exchange(self, commands: Sequence[_Command]) -> list[Any]:
        connection = self._connection or await self._connect()
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await _reply(connection) for _ in commands]

    async def _connect(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        return connection

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.disconnect(nowait=True)


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _standing(fields: Any, exists: Any) -> Standing | None:
    try:
        epoch, version = fields
        return Standing(exists == 1, epoch.decode(), int(version)) if epoch else Standing(exists == 1)
    except (TypeError, ValueError):  # an error, or counters that are none
        return None


async def _decode(product_id: str, messages: Sequence[_Message], after_version: int) -> tuple[list[list[Change]], int]:
    """Return the changes behind a version, by message, and the version up to which the messages go.

    A message that nobody here has written is left out: if it stands for changes, they show as a gap. The buyers of this
    worker have a turn after each.
    """
    batches, position = [], after_version
    for message_id, fields in messages:
        try:
            found = decode_message(message_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            changes = [change for change in found if change.version > after_version]
        except ValueError as error:
            _log.error("a message in the ledger of %r cannot be read: %s", product_id, error)
            changes = []
        if changes:
            batches.append(changes)
            position = max(position, changes[-1].version)
        position = max(position, int(message_id.partition(b"-")[0]))
        await asyncio.sleep(0)
    return batches, position


def _refunds(batches: Iterable[Sequence[Change]]) -> list[int]:
    """Return the versions of the orders that are refunded here."""
    return [change.ref for changes in batches for change in changes if change.kind is Kind.REFUNDED]
