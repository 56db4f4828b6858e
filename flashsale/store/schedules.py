"""Schedules in the store: what an operator has said, which sales came of it, and which of these may go.

What is opened when is decided by scripts, by the store's clock: any number of servers may ask for the same sale.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct
from redis.exceptions import ResponseError

from flashsale.domain.schedules import KEEP_S, SCHEDULE_COUNT_MAX, CurrentSale, Due, Schedule, find_due
from flashsale.errors import RefusedError, ScheduleNotFoundError, StoreUnavailableError
from flashsale.store import keys, scripts
from flashsale.store.links import make_client, store_errors

T = TypeVar("T")

_ANSWER_TIMEOUT_S = 2.0
_RETIRE_COUNT_MAX = 64
"""Sales that are deleted in one go."""
_STAY_S = 60
"""Until it is asked again whether a sale may be deleted that had to stay."""

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_schedule = msgspec.json.Decoder(Schedule).decode
_decode_sale = msgspec.json.Decoder(CurrentSale).decode


class Overview(Struct, frozen=True):
    """All schedules at one instant."""

    now_s: float
    """The store's clock, in Unix seconds."""
    schedules: dict[str, Schedule]
    opened: dict[str, CurrentSale]
    """The last sale of each, by the schedule's name; also of schedules that were removed."""

    @property
    def due(self) -> list[Due]:
        """Return the sales that are to be opened."""
        return find_due(self.schedules.values(), self.opened, int(self.now_s))

    @property
    def current(self) -> dict[str, CurrentSale]:
        """Return the sales that go on, by their schedules' names, sorted by these."""
        going = {name: sale for name, sale in sorted(self.opened.items()) if sale.ends_at > self.now_s}
        return {name: sale for name, sale in going.items() if not sale.is_far_ahead(self.now_s)}


class RedisSchedules:
    """The schedules of a store. Every call raises StoreUnavailableError; each may be repeated."""

    def __init__(self, url: str) -> None:
        """Name the store by its URL; connects with the first call."""
        self._errors = partial(store_errors, url)
        self._redis = make_client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        """Give up the connection."""
        await self._redis.aclose()

    async def add(self, schedule: Schedule, *, replace: bool = False) -> Schedule | None:
        """Add a schedule; return the one of that name that there was before.

        Raises:
            RefusedError: there is one of that name with other terms and `replace` is not given, or there are too many.
        """
        name = schedule.name
        write = ("HSET" if replace else "HSETNX", keys.SCHEDULES, name, _encode(schedule))
        async with self._errors():
            count, is_known = await self._transact(("HLEN", keys.SCHEDULES), ("HEXISTS", keys.SCHEDULES, name))
            if count >= SCHEDULE_COUNT_MAX and not is_known:
                raise RefusedError(f"There are {count} schedules already, which is as many as there may be")
            found, _ = await self._transact(("HGET", keys.SCHEDULES, name), write)  # of two at once, one is first
        before: Schedule | None = dict(_read({b"": found or b""}, _decode_schedule)).get("")
        if found is not None and before != schedule and not replace:
            raise RefusedError(f"Schedule '{name}' has other terms: --replace changes them from its next sale on")
        return before

    async def remove(self, name: str) -> None:
        """Remove a schedule; a sale that goes on goes on to its end. Raises ScheduleNotFoundError."""
        async with self._errors():
            [removed] = await self._transact(("HDEL", keys.SCHEDULES, name))
        if not removed:
            raise ScheduleNotFoundError(name)

    async def look(self) -> Overview:
        """Return all schedules and their last sales, as of one instant; without what somebody else has written."""
        async with self._errors():
            now, schedules, opened = await self._transact(
                ("TIME",), ("HGETALL", keys.SCHEDULES), ("HGETALL", keys.SCHEDULES_OPENED)
            )
        read = {name: schedule for name, schedule in _read(schedules, _decode_schedule) if schedule.name == name}
        seconds, microseconds = now
        return Overview(seconds + microseconds / 1e6, read, dict(_read(opened, _decode_sale)))

    async def open(self, due: Due) -> bool:
        """Open a sale that is due, unless another one was first; return whether it was opened now."""
        sale = due.product_id
        names = (*keys.script_keys(sale), keys.MOVERS, keys.SCHEDULES, keys.SCHEDULES_OPENED, keys.SCHEDULES_SALES)
        return bool(await self._run(scripts.DUE, names, sale, due.schedule.name, due.begins_at, due.epoch))

    async def retire(self) -> int:
        """Delete sales that have been over for long enough, a few at most; return how many those were."""
        async with self._errors():
            [(now_s, _)] = await self._transact(("TIME",))
            found = cast(
                "list[bytes]",
                await self._redis.zrangebyscore(keys.SCHEDULES_SALES, "-inf", now_s, 0, _RETIRE_COUNT_MAX),
            )
        count = 0
        for sale in (name.decode(errors="replace") for name in found):
            names = (*keys.script_keys(sale), keys.MOVERS, keys.SCHEDULES_SALES)
            try:
                count += await self._run(scripts.RETIRE, names, sale, _STAY_S)
            except StoreUnavailableError as error:
                if not isinstance(error.__cause__, ResponseError):
                    raise
                _log.warning("sale %s is not deleted: %s", sale, error.__cause__)  # its keys are damaged
        return count

    async def keep(self, sale: str, ends_at: int) -> None:
        """Note when a sale that was rebuilt may be deleted, unless that is noted: its schedule may be gone by now."""
        async with self._errors():
            await self._transact(("ZADD", keys.SCHEDULES_SALES, "NX", str(ends_at + KEEP_S), sale))

    async def forget(self, names: Iterable[str]) -> None:
        """Forget which sales were opened last for schedules that were removed."""
        async with self._errors():
            await self._transact(*(("HDEL", keys.SCHEDULES_OPENED, name) for name in names))

    async def _transact(self, *commands: tuple[str | bytes, ...]) -> list[Any]:
        """Return the answers to commands that nothing comes between."""
        async with self._redis.pipeline(transaction=True) as step:
            for command in commands:
                step.execute_command(*command)
            return list(await step.execute())

    async def _run(self, script: scripts.Script, names: tuple[str, ...], *values: str | int) -> int:
        async with self._errors():
            # EVAL, not EVALSHA: these are rare, and so they work on a store that has just lost its scripts
            return int(await cast("Any", self._redis.eval(script.source.decode(), len(names), *names, *values)))


def _read(found: dict[bytes, bytes], decode: Any) -> list[tuple[str, Any]]:
    """Return names and values of a hash; without those that are not what was written."""
    read = []
    for name, packed in found.items():
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            read.append((name.decode(), decode(packed)))
    return read
