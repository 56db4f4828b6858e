"""Recurring sales: each worker has those opened that are due, knows which go on, and has old ones deleted.

Any number may do it at once: the store decides what is due, by its own clock, and whoever asks first opens a sale.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import Protocol

from flashsale.domain.schedules import CurrentSale, Due, next_begin
from flashsale.errors import FlashsaleError, StoreUnavailableError
from flashsale.store.links import raise_if_cancelled
from flashsale.store.schedules import Overview

_LOOK_S = 1.0
"""Between two looks, unless a period ends before that."""
_RETIRE_S = 10.0
"""Between two times that old sales are deleted, and before the first: a database that was set back meanwhile has to be
looked at by a mover first, who notes what it has."""
_CALM_S = 2.0
"""From a look to the end of a period, at least, for old sales to be deleted: the next one is not to wait for that."""
_MARGIN_S = 0.002
"""How much later than reckoned a look at the end of a period is: one that came too early would be for nothing."""

_log = logging.getLogger(__name__)


class Schedules(Protocol):
    """The schedules of a store; see flashsale.store.schedules. Its calls raise StoreUnavailableError."""

    async def look(self) -> Overview:
        """Return all schedules and their last sales."""
        ...

    async def open(self, due: Due) -> bool:
        """Open a sale that is due, unless another one was first; return whether it was opened now."""
        ...

    async def retire(self) -> int:
        """Delete some sales that have been over for long enough."""
        ...

    async def forget(self, names: Iterable[str]) -> None:
        """Forget which sales were opened last for schedules that were removed."""
        ...


class Scheduler:
    """One of any number; `start` it, then `run` it."""

    def __init__(
        self,
        schedules: Schedules,
        *,
        check: Callable[[Sequence[str]], Awaitable[object]] | None = None,
        compare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Open what these say.

        Args:
            schedules: the schedules of the store.
            check: called with sales that are due before they are opened: it may find that the database knows one
                already, and freeze it, which is not opened then. What it raises is told to the log.
            compare: called after a sale was opened: it may find the same, later.
        """
        self._schedules = schedules
        self._check = check
        self._compare = compare
        self._current: dict[str, CurrentSale] = {}  # by schedules, the first by name first
        self._retired_at: float | None = None
        self._troubles: dict[str, str] = {}  # what cannot be done -> why, as far as the log knows

    def find(self, name: str | None = None) -> CurrentSale | None:
        """Return the sale of a schedule that goes on, or of the first one by name; None when there is none.

        A sale that has just ended is returned until the next one is known; to ask for it is answered CLOSED.
        """
        if name is not None:
            return self._current.get(name)
        return next(iter(self._current.values()), None)

    @property
    def current(self) -> CurrentSale | None:
        """Return the sale that goes on; of several the one whose schedule comes first by name."""
        return self.find()

    async def start(self) -> None:
        """Look once, so that from the first request on it is known what goes on; troubles are left to `run`."""
        await self._try_step()

    async def run(self) -> None:
        """Look again and again until cancelled; troubles of the store are waited out."""
        while True:
            pause_s = await self._try_step()
            raise_if_cancelled()
            await asyncio.sleep(pause_s)

    async def _try_step(self) -> float:
        """Look, and do what is due; return in how many seconds to look again."""
        try:
            pause_s = await self._step()
        except FlashsaleError as error:
            self._note("schedules are not looked at", error)
        except Exception:  # noqa: BLE001 - a bug, which must not keep sales from being opened for ever
            _log.exception("the scheduler failed")
        else:
            self._note("schedules are not looked at", None)
            return pause_s
        return _LOOK_S

    async def _step(self) -> float:
        look = await self._schedules.look()
        if look.due:
            await self._check_due(look.due)
        opened = [due for due in look.due if await self._open(due)]
        if look.due:
            look = await self._schedules.look()
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        self._current = look.current
        if opened and self._compare is not None:
            await self._compare()
        ends = [next_begin(schedule, int(look.now_s)) - look.now_s for schedule in look.schedules.values()]
        left_s = min(ends, default=inf)
        if self._retired_at is None:
            self._retired_at = looked_at
        if loop.time() - self._retired_at >= _RETIRE_S and left_s - (loop.time() - looked_at) >= _CALM_S:
            self._retired_at = loop.time()
            await self._tidy(look)
        return max(min(_LOOK_S, left_s + _MARGIN_S) - (loop.time() - looked_at), 0)

    async def _check_due(self, due: Sequence[Due]) -> None:
        """Have asked whether the database knows these sales; if it does not answer, they are opened all the same."""
        if self._check is None:
            return
        what = "sales are opened that the database was not asked about"
        try:
            await self._check([one.product_id for one in due])
        except Exception as error:  # noqa: BLE001 - whatever it is, there is a sale to be opened
            self._note(what, error)
        else:
            self._note(what, None)

    async def _open(self, due: Due) -> bool:
        """Have a sale opened; return whether it was opened now. If one cannot be, others are tried all the same."""
        what = f"the sale of schedule '{due.schedule.name}' is not opened"
        try:
            opened = await self._schedules.open(due)
        except StoreUnavailableError as error:
            self._note(what, error)
            return False
        self._note(what, None)
        if opened:
            _log.info("sale %s is open, of schedule '%s'", due.product_id, due.schedule.name)
        return opened

    async def _tidy(self, look: Overview) -> None:
        """Have old sales deleted, and what is known of schedules that were removed."""
        with suppress(
            StoreUnavailableError
        ):  # what must stay is asked again later; what cannot be reached is told above
            count = await self._schedules.retire()
            if count:
                _log.info("%d sales that are over and in the database were deleted from the store", count)
            gone = look.opened.keys() - look.current.keys() - look.schedules.keys()
            await self._schedules.forget(gone)

    def _note(self, what: str, error: Exception | None) -> None:
        """Tell the log what cannot be done, once."""
        if error is None:
            self._troubles.pop(what, None)
        elif self._troubles.get(what) != str(error):
            self._troubles[what] = str(error)
            _log.warning("%s: %s", what, error)
