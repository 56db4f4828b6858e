"""Writes the attempts of buyers into the database, beside the sale: it may be late, and takes what the sale leaves.

Attempts are evidence, not orders: what a killed process had in its hands is lost. But nothing is lost in silence, and
nothing is there twice: the row of a server's run in `attempt_recorders` says how many attempts are settled, which is
in `attempts` or counted in `attempts_dropped`, and moves on in the transaction that writes them. A recorder that is
started after another was killed sees from it how many left the pipe and never came to the database.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from flashsale.attempts import Group, Pipe
from flashsale.domain.attempts import KINDS
from flashsale.errors import DatabaseError
from flashsale.orders.database import Database
from flashsale.orders.inserting import insert
from flashsale.orders.tables import attempt_recorders, attempts, attempts_dropped
from flashsale.store.links import raise_if_cancelled

FULL = "full"
"""Dropped by a worker: more were waiting than its bound allows."""
REFUSED = "refused"
"""The database does not take them, such as a user id with a NUL in PostgreSQL."""
KILLED = "killed"
"""A recorder had taken them and was killed."""

_ROW_COUNT_MAX = 5_000
"""In one transaction, and some more: a group is not divided."""
_GATHER_S = 0.2
"""Attempts wait so long for others to be written with."""
_REST = 9
"""After each transaction it rests so many times as long as that took: a sale on few cores wants them all."""
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0
"""After a failure of the database, growing."""
_OF_HOLDS = {"confirm", "cancel", "extend"}
_DUPLICATE = "duplicate"

_log = logging.getLogger(__name__)
Row = dict[str, Any]


def rows_of(group: Group) -> list[Row]:
    """Return a row for each attempt of a group."""
    rows = []
    for number, delay_ms, asked, told in zip(group.kinds, group.delays_ms, group.requests, group.answers, strict=True):
        kind = KINDS[number][1]
        rows.append(
            {
                "at": group.begun_ms + delay_ms,
                "product_id": asked.product,
                "user_id": asked.user_id,
                "kind": kind,
                "quantity": None if kind in _OF_HOLDS else asked.quantity,
                "item_id": told.item_id or asked.item_id,
                "request_id": asked.request_id,
                "outcome": told.status,
                "detail": told.error or (_DUPLICATE if told.duplicate else None),
                "version": told.version,
            }
        )
    return rows


class Recorder:
    """Takes attempts from a pipe; `run` it once."""

    def __init__(self, pipe: Pipe, database: Database) -> None:
        """Record from there to there.

        Args:
            pipe: of a server; no other recorder may take from it.
            database: its tables are made first, if they are not there.
        """
        self._pipe = pipe
        self._database = database
        self._is_ours = attempt_recorders.c.name == pipe.name
        self._known = sa.select(attempt_recorders.c.settled).where(self._is_ours).with_for_update()
        self._settled_count = 0
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Have `run` return once what is in the pipe is in the tables; what that takes too long may be cancelled."""
        self._ending.set()

    @property
    def unsettled_count(self) -> int:
        """Attempts that were taken and are not in the tables."""
        return self._pipe.taken_count - self._settled_count

    async def run(self) -> None:
        """Record until told to end; troubles are waited out, and nothing more is taken meanwhile."""
        await self._insist(self._begin)
        if self.unsettled_count:
            await self._settle([], {KILLED: self.unsettled_count})
        while True:
            groups = await self._take()
            if not groups:
                return
            begun = time.monotonic()
            rows = [row for group in groups for row in rows_of(group)]
            await self._settle(rows, {FULL: sum(group.dropped_count for group in groups)})
            await self._rest(min(_REST * (time.monotonic() - begun), _PAUSE_MAX_S))

    async def _take(self) -> list[Group]:
        """Wait for a group, then take what comes within _GATHER_S; return nothing when it is time to end."""
        groups: list[Group] = []
        count, until = 0, float("inf")
        while count < _ROW_COUNT_MAX:
            group = self._pipe.take()
            if group is not None:
                if not groups:
                    until = asyncio.get_running_loop().time() + _GATHER_S
                groups.append(group)
                count += len(group.kinds)
            elif self._ending.is_set() or not await self._readable(until):
                break
        return groups

    async def _readable(self, until: float) -> bool:
        """Wait until there is something in the pipe, or it is time to end; return False when neither is so in time."""
        loop = asyncio.get_running_loop()
        stirred = asyncio.Event()
        loop.add_reader(self._pipe.receiving, stirred.set)
        waiting = {loop.create_task(stirred.wait()), loop.create_task(self._ending.wait())}
        try:
            timeout_s = None if until == float("inf") else max(0.0, until - loop.time())
            done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            loop.remove_reader(self._pipe.receiving)
            for task in waiting:
                task.cancel()

    async def _rest(self, pause_s: float) -> None:
        """Do nothing for so long, unless it is time to end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), pause_s)

    async def _settle(self, rows: Sequence[Row], dropped: dict[str, int]) -> None:
        """Write rows and how many were dropped; rows that the database will never take are dropped as well."""

        async def write() -> None:
            await self._write(rows, dropped)

        try:
            await self._insist(write)
        except DatabaseError as error:
            if not rows:
                raise
            if len(rows) > 1:
                middle = len(rows) // 2
                await self._settle(rows[:middle], dropped)
                await self._settle(rows[middle:], {})
            else:
                _log.warning("an attempt is not recorded: %s", error)
                await self._settle([], dropped | {REFUSED: 1})

    async def _write(self, rows: Sequence[Row], dropped: dict[str, int]) -> None:
        """Write them in one transaction, unless an earlier try has, whose end was not heard of."""
        settled_count = self._settled_count + len(rows) + sum(dropped.values())
        now_ms = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000_000
        async with self._database.writing() as connection:
            if (await connection.execute(self._known)).scalar_one() < settled_count:
                await insert(connection, attempts, rows)
                told = [(reason, count) for reason, count in dropped.items() if count]
                counted = [{"at": now_ms, "attempt_count": count, "reason": reason} for reason, count in told]
                await insert(connection, attempts_dropped, counted)
                await connection.execute(
                    sa.update(attempt_recorders).where(self._is_ours).values(settled=settled_count)
                )
        self._settled_count = settled_count

    async def _begin(self) -> None:
        """Learn how many attempts of this run are settled already."""
        await self._database.upgrade()
        async with self._database.writing() as connection:
            settled_count = (await connection.execute(self._known)).scalar_one_or_none()
            if settled_count is None:
                settled_count = 0
                row = {"name": self._pipe.name, "settled": settled_count}
                await connection.execute(sa.insert(attempt_recorders), [row])
        self._settled_count = settled_count

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while the database is away.

        Raises:
            DatabaseError: the rows themselves are refused, for good.
        """
        pause_s, trouble = _PAUSE_S, ""
        while True:
            raise_if_cancelled()  # a driver that is rolling back may keep it to itself
            try:
                await step()
            except DatabaseError as error:
                if error.is_final:
                    raise
                if str(error) != trouble:
                    _log.warning("attempts are not recorded: %s", error)
                pause_s, trouble = min(2 * pause_s, _PAUSE_MAX_S), str(error)
                await self._rest(pause_s)
                if self._ending.is_set():
                    await asyncio.sleep(_PAUSE_S)  # and once more, until that is cancelled
            else:
                if trouble:
                    _log.info("attempts are recorded again")
                return
