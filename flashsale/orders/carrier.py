"""What moving orders always is: look which products there are, read their ledgers from where they stand, hand on.

Where to is a subclass's business. Whatever fails is tried again, in order, so that no change overtakes another of its
product.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from flashsale.crash import crash_point
from flashsale.domain.sale import Portion
from flashsale.errors import BrokerUnavailableError, DatabaseError, StoreUnavailableError
from flashsale.store.links import raise_if_cancelled
from flashsale.store.outbox import Delivery

_WAIT_S = 0.5
"""For changes, between two looks at which products there are."""
_TEND_S = 2.0
"""Between two times that what need not be done soon is done."""
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0
"""After a failure of the store, the database or the brokers, growing."""
_PUT_OFF_S = 0.5
"""Until a product is tried again whose next change was not taken."""
_TRIMMED_TOGETHER_COUNT = 64
"""Products whose ledgers are trimmed after a look."""

_log = logging.getLogger(__name__)


class Outbox(Protocol):
    """The ledgers of all products, or what was published of them; see flashsale.store.outbox, flashsale.kafka.inbox.

    Its calls raise StoreUnavailableError, or BrokerUnavailableError.
    """

    async def epochs(self) -> dict[str, str]:
        """Return the sale that each product has at present."""
        ...

    async def read(self, positions: dict[str, int], wait_s: float) -> list[Delivery]:
        """Return what follows these versions, or a part of it."""
        ...

    async def note(self, product_id: str, epoch: str, version: int) -> None:
        """Note up to where a sale was handed on."""
        ...

    async def note_missing(self, positions: Mapping[str, tuple[str, int]]) -> None:
        """Note up to which epoch and version these sales were handed on, where the last `epochs` found no such note."""
        ...

    async def trim(self, product_ids: Iterable[str]) -> None:
        """Forget what need not be kept of these ledgers."""
        ...


class Carrier(ABC):
    """One that moves; `run` it once."""

    def __init__(self, outbox: Outbox, revive: Callable[[], Awaitable[None]] | None = None) -> None:
        """Move from there.

        Args:
            outbox: the ledgers.
            revive: called when the store cannot be reached: it may start it again.
        """
        self._outbox = outbox
        self._revive = revive
        self._positions: dict[str, tuple[str, int]] = {}  # as far as is known; another one may be ahead
        self._troubles: dict[str, str] = {}  # products whose next change cannot be moved, and why
        self._again_at: dict[str, float] = {}  # when they are tried again
        self._trimmed_last = ""  # the product with which the last trimming ended, in the order of names
        self._ending = asyncio.Event()
        self.moved_count = 0
        """Changes moved."""

    @abstractmethod
    async def _prepare(self) -> None:
        """Make ready what the changes go to; called until it succeeds."""

    @abstractmethod
    async def _known(self, epochs: Mapping[str, str]) -> dict[str, tuple[str, int]]:
        """Return epoch and version up to which the changes of products were handed on; these are their sales."""

    @abstractmethod
    async def _carry(self, portions: Sequence[Portion]) -> int:
        """Hand on portions, one for each product; return how many changes were moved."""

    def end(self) -> None:
        """Have `run` return once what it is moving is handed on."""
        self._ending.set()

    async def run(self) -> None:
        """Move until told to end; troubles are waited out."""
        pause_s, trouble, looked_at, tended_at, prepared = _PAUSE_S, "", float("-inf"), float("-inf"), False
        while not self._ending.is_set():
            raise_if_cancelled()  # a driver that is rolling back may keep it to itself
            try:
                if not prepared:
                    await self._prepare()
                    prepared = True
                now = asyncio.get_running_loop().time()
                tends = now - tended_at >= _TEND_S
                if tends:
                    await self.tend()
                    tended_at = now
                # not both at once, unless nothing is known: what is to be moved waits meanwhile
                if now - looked_at >= _WAIT_S and not (tends and self._positions):
                    await self.look()
                    looked_at = now
                await self.step(_WAIT_S)
                if trouble:
                    _log.info("orders are moved again")
                pause_s, trouble = _PAUSE_S, ""
            except (BrokerUnavailableError, DatabaseError, StoreUnavailableError) as error:
                if str(error) != trouble:
                    _log.warning("orders are not moved: %s", error)
                pause_s, trouble = min(2 * pause_s, _PAUSE_MAX_S), str(error)
                looked_at = tended_at = float("-inf")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), pause_s)
                if isinstance(error, StoreUnavailableError) and self._revive is not None and not self._ending.is_set():
                    with suppress(StoreUnavailableError):
                        await self._revive()

    async def look(self) -> None:
        """Learn which products there are, and how far each is."""
        epochs = await self._outbox.epochs()
        known = await self._known(epochs)
        self._positions = {
            name: known[name] if known.get(name, ("", 0))[0] == epoch else (epoch, 0) for name, epoch in epochs.items()
        }
        for told in (self._troubles, self._again_at):
            for name in told.keys() - epochs.keys():
                del told[name]
        with suppress(StoreUnavailableError):  # as in _advance
            await self._outbox.note_missing(self._positions)  # who handed it on may have died before he noted it

    async def tend(self) -> None:
        """Do what need not be done soon."""
        await self.trim()

    async def trim(self) -> None:
        """Have the ledgers of some products trimmed, by turns."""
        names = sorted(self._positions)
        behind = bisect_right(names, self._trimmed_last)
        some = (names[behind:] + names[:behind])[:_TRIMMED_TOGETHER_COUNT]
        if some:
            await self._outbox.trim(some)
            self._trimmed_last = some[-1]

    async def step(self, wait_s: float) -> int:
        """Move what there is, or what comes within so many seconds; return how many changes that were."""
        now = asyncio.get_running_loop().time()
        wanted = {
            name: version for name, (_, version) in self._positions.items() if self._again_at.get(name, now) <= now
        }
        if not wanted:
            await asyncio.sleep(wait_s)
            return 0
        deliveries = await self._outbox.read(wanted, wait_s)
        for found in deliveries:
            if not found.changes:
                self._put_off(found.product_id, found.fault)
        if deliveries:
            crash_point("after-fetch")
        return await self._carry([found for found in deliveries if found.changes])

    async def _advance(self, portion: Portion) -> None:
        version = portion.changes[-1].version
        self._positions[portion.product_id] = portion.epoch, version
        self._troubles.pop(portion.product_id, None)
        with suppress(StoreUnavailableError):  # it may be full, or read-only: what is there is moved all the same
            await self._outbox.note(portion.product_id, portion.epoch, version)

    def _put_off(self, product_id: str, why: str) -> None:
        """Leave a product alone for a while."""
        if self._troubles.get(product_id) != why:
            _log.warning("orders of product '%s' are not moved: %s", product_id, why)
        self._troubles[product_id] = why
        self._again_at[product_id] = asyncio.get_running_loop().time() + _PUT_OFF_S
