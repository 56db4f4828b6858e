"""The ledgers as an outbox: what is not in the database yet, read as it comes.

A ledger and its sale are written by the decision script in one step, so that whatever was sold is found here. Where the
reading stands is known by whoever writes it down, in the transaction of the rows; nothing of that is kept in the store
but a note, for operators and for whoever must wait.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from redis.exceptions import ResponseError

from flashsale.domain.sale import Change, Portion, Standing
from flashsale.store import keys, scripts
from flashsale.store.encoding import decode_message
from flashsale.store.faults import error_code
from flashsale.store.links import make_client, store_errors
from flashsale.store.trimming import Trimmer, Window

_ANSWER_TIMEOUT_S = 5.0
_MESSAGE_COUNT_MAX = 64
"""Messages of a product in one read; each holds the changes of one batch, at most some thousands."""
_STREAM_COUNT_MAX = 256
"""Products in one read."""
_UNREADABLE = Standing(exists=True)


class Delivery(Portion, frozen=True):
    """A part of a ledger as it was read."""

    fault: str = ""
    """What is wrong with the message behind them, which cannot be read."""


class RedisOutbox:
    """Reads the ledgers of all products. Not for concurrent use: one call at a time."""

    def __init__(self, url: str, window: Window | None = None, *, stores: bool = True) -> None:
        """Connect with the first call.

        Args:
            url: of the store.
            window: what stays of a ledger although it was handed on.
            stores: whether it is handed on to the database itself, for which some wait.
        """
        self._errors = partial(store_errors, url)
        self._stores = stores
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
        self._trimmer = Trimmer(self._redis, window or Window())
        self._begin = 0  # at which product the next reading begins, so that each gets its turn
        self._ends: dict[str, int] = {}  # versions with which messages end, as far as they were read
        self._noted: dict[str, int] = {}  # up to which version each product was handed on, as it is noted

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()

    async def epochs(self) -> dict[str, str]:
        """Return the sale that each product has at present whose ledger can be read, but for those that are frozen.

        From the first call on nobody deletes a product before all of it was noted to be in the database.
        """
        async with self._errors():
            found = sorted(await cast("Any", self._redis.smembers(keys.PRODUCTS)))
            names = [name.decode(errors="replace") for name in found]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.hmget(keys.key(name, "sale"), "epoch", "state", "stored" if self._stores else "moved")
                    pipeline.type(keys.key(name, "orders"))
                # a name that no store had before; one that is full may refuse it
                pipeline.set(keys.MOVERS, secrets.token_hex(16), nx=True)
                told = await pipeline.execute(raise_on_error=False)
        sales = {
            name: sale
            for name, sale, kind in zip(names, told[:-1:2], told[1:-1:2], strict=True)
            if isinstance(sale, list) and sale[0] is not None and sale[1] != b"frozen" and kind == b"stream"
        }
        for gone in self._ends.keys() - sales.keys():
            del self._ends[gone]
        self._noted = {name: int(noted) if noted and noted.isdigit() else 0 for name, (_, _, noted) in sales.items()}
        return {name: epoch.decode(errors="replace") for name, (epoch, _, _) in sales.items()}

    async def read(self, positions: Mapping[str, int], wait_s: float) -> list[Delivery]:
        """Return what follows these versions, or a part of it; waits for so long if there is nothing yet."""
        async with self._errors():
            found = await self._read_rests(positions) or await self._read_next(positions, wait_s)
        deliveries = [_deliver(name, messages) for name, messages in found]
        self._ends |= {found.product_id: found.changes[-1].version for found in deliveries if found.changes}
        return deliveries

    async def _read_rests(self, positions: Mapping[str, int]) -> list[tuple[str, Any]]:
        """Return messages of which only a beginning stands before these versions: XREAD would pass over them."""
        unsure = [name for name, version in positions.items() if version and self._ends.get(name) != version]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in unsure:
                pipeline.xrevrange(keys.key(name, "orders"), f"{positions[name]}-0", count=1)
            found = await pipeline.execute() if unsure else []
        rests = []
        for name, messages in zip(unsure, found, strict=True):
            begun = _deliver(name, messages)
            if begun.fault or (begun.changes and begun.changes[-1].version > positions[name]):
                rests.append((name, messages))
            else:
                self._ends[name] = positions[name]
        return rests

    async def _read_next(self, positions: Mapping[str, int], wait_s: float) -> list[tuple[str, Any]]:
        streams = {keys.key(name, "orders").encode(): f"{version}-0" for name, version in positions.items()}
        order = list(streams)
        found: list[Any] = []
        if len(order) > _STREAM_COUNT_MAX:  # nobody waits while one of the others has something
            order = order[self._begin % len(order) :] + order[: self._begin % len(order)]
            for first in range(0, len(order), _STREAM_COUNT_MAX):
                self._begin += _STREAM_COUNT_MAX
                some: Any = {key: streams[key] for key in order[first : first + _STREAM_COUNT_MAX]}
                found = cast("Any", await self._redis.xread(some, count=_MESSAGE_COUNT_MAX)) or []
                if found:
                    break
        if not found:
            wait_ms = max(1, round(wait_s * 1000))
            found = cast("Any", await self._redis.xread(cast("Any", streams), _MESSAGE_COUNT_MAX, wait_ms)) or []
        names = dict(zip(streams, positions, strict=True))
        return [(names[key], messages) for key, messages in found]

    async def store_name(self, *, give: bool = False) -> str:
        """Return the name that this store was given when its orders first went into a database; empty before.

        Args:
            give: whether to give it one now, if it has none.
        """
        async with self._errors():
            if give:
                await self._redis.set(keys.MOVERS, secrets.token_hex(16), nx=True)
            name = cast("bytes | None", await self._redis.get(keys.MOVERS))
        return (name or b"").decode(errors="replace")

    async def listed(self) -> list[str]:
        """Return the products that have a ledger here."""
        async with self._errors():
            found = await cast("Any", self._redis.smembers(keys.PRODUCTS))
        return [name.decode(errors="replace") for name in found]

    async def standings(self, product_ids: Sequence[str]) -> list[Standing]:
        """Return how far these products have come here; of one that cannot be read, and so not be sold, that it is."""
        async with self._errors(), self._redis.pipeline(transaction=False) as pipeline:
            for name in product_ids:
                pipeline.hmget(keys.key(name, "sale"), "epoch", "version")
                pipeline.exists(keys.key(name, "stock"))
            told = await pipeline.execute(raise_on_error=False)
            return [_standing(sale, exists) for sale, exists in zip(told[::2], told[1::2], strict=True)]

    async def run_name(self) -> str:
        """Return what is another one each time that the store is started, or that another one stands in its place."""
        async with self._errors():
            return str((await self._redis.info("server")).get("run_id", ""))

    async def moments(self, versions: Mapping[str, int]) -> dict[str, int]:
        """Return when changes happened here, in Unix ms, by their products; without those that no ledger holds."""
        moments: dict[str, int] = {}
        names = list(versions)
        for first in range(0, len(names), _STREAM_COUNT_MAX):
            some = names[first : first + _STREAM_COUNT_MAX]
            async with self._errors(), self._redis.pipeline(transaction=False) as pipeline:
                for name in some:
                    pipeline.xrevrange(keys.key(name, "orders"), f"{versions[name]}-0", count=1)
                found = await pipeline.execute(raise_on_error=False)
            for name, messages in zip(some, found, strict=True):
                if isinstance(messages, list) and messages:
                    with suppress(ValueError, KeyError):
                        moments[name] = int(messages[0][1][b"at"])
        return moments

    async def freeze(self, product_id: str, found: Standing, epoch: str, version: int) -> bool:
        """Stop the sale of a product that the database knows up to that epoch and version; return whether it is now.

        It is not if it was before, or has begun another sale than was found, or has come farther by now.
        """
        values = (product_id, found.epoch, found.version, epoch, version)
        async with self._errors():
            return bool(await self._eval(scripts.FREEZE, product_id, *values))

    async def _eval(self, script: scripts.Script, product_id: str, *values: str | int) -> Any:
        names = keys.script_keys(product_id)
        return await cast("Any", self._redis.eval(script.source.decode(), len(names), *names, *values))

    async def note(self, product_id: str, epoch: str, version: int) -> None:
        """Note up to where the changes of a sale were handed on."""
        async with self._errors():
            await self._eval(scripts.MOVED, product_id, epoch, version, product_id, int(self._stores))

    async def note_missing(self, positions: Mapping[str, tuple[str, int]]) -> None:
        """Note these epochs and versions, but for those that the last `epochs` found noted."""
        for name, (epoch, version) in positions.items():
            noted = self._noted.get(name, version)
            if noted < version or (noted > version and self._stores):  # a database may be set back
                await self.note(name, epoch, version)

    async def trim(self, product_ids: Iterable[str]) -> None:
        """Forget the beginnings of these ledgers that are in the database and beyond the window, or a part of them."""
        async with self._errors():
            await self._trimmer.trim(product_ids)


def _standing(sale: Any, exists: Any) -> Standing:
    if isinstance(sale, ResponseError) and error_code(sale) == "WRONGTYPE":
        return _UNREADABLE
    for told in (sale, exists):
        if isinstance(told, ResponseError):
            raise told
    epoch, version = sale
    with suppress(ValueError):
        return Standing(bool(exists), (epoch or b"").decode(errors="replace"), int(version or 0))
    return _UNREADABLE


def _deliver(product_id: str, messages: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Delivery:
    """Return what follows each other without a gap, of one sale; what is behind that comes with the next reading."""
    epoch, changes, fault = "", list[Change](), ""
    for message_id, fields in messages:
        try:
            told, of_epoch = list(decode_message(message_id, fields)), fields[b"epoch"].decode()
        except (ValueError, KeyError):
            fault = f"message {message_id.decode()} of its ledger cannot be read"
            break
        if changes and (of_epoch != epoch or (told[:1] and told[0].version != changes[-1].version + 1)):
            break
        changes += told
        epoch = of_epoch
    return Delivery(product_id, epoch, changes, fault)
