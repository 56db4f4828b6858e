"""Units of expired holds go back to stock, also of a product that nobody asks for.

Every batch returns expired holds of its product by itself. For a product without batches a sweeper asks: each server
worker has one, and whichever lives does it; the store decides, so that no unit comes back twice.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import Protocol

from flashsale.batching import Sink
from flashsale.domain.answers import NOT_FOUND, Answer, Swept
from flashsale.domain.requests import Request, Sweep
from flashsale.errors import FlashsaleError
from flashsale.store.links import raise_if_cancelled

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Between two looks. A hold lasts a second at least, so that its deadline is known before it comes."""


class Calendar(Protocol):
    """When holds expire, by the store's clock."""

    async def due(self) -> tuple[list[str], float]:
        """Return the products with holds that may be due, and in how many seconds the next one may be.

        Raises:
            StoreUnavailableError: the store cannot be reached or refuses.
        """
        ...

    async def forget(self, product_id: str) -> None:
        """Take a product out that does not exist any more; raises StoreUnavailableError."""
        ...


class Sweeper:
    """Has the holds swept that are due; a sink of the batcher, at most one request under way for a product."""

    def __init__(self, calendar: Calendar, submit: Callable[[Request, Sink, int], None]) -> None:
        self._calendar = calendar
        self._submit = submit
        self._tickets = count()
        self._asked: dict[int, str] = {}  # ticket -> product
        self._gone: set[str] = set()  # products that were not found
        self._trouble = ""
        self._ended = False

    async def run(self) -> None:
        """Sweep until cancelled; troubles of the store are waited out."""
        try:
            await self._sweep()
        finally:
            self._ended = True  # or a server that drains would wait until there is nothing left to sweep

    async def _sweep(self) -> None:
        while True:
            pause_s = _LOOK_S
            try:
                while self._gone:
                    await self._calendar.forget(self._gone.pop())
                products, next_s = await self._calendar.due()
                self._trouble = ""
            except FlashsaleError as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    _log.warning("holds are not swept: %s", error)
            except Exception:  # noqa: BLE001 - a bug, which must not keep units from coming back for ever
                _log.exception("the sweeper failed")
            else:
                for product_id in set(products).difference(self._asked.values()):
                    self._ask(product_id)
                pause_s = min(pause_s, next_s)
            raise_if_cancelled()
            await asyncio.sleep(pause_s)

    def _ask(self, product_id: str) -> None:
        ticket = next(self._tickets)
        self._asked[ticket] = product_id
        self._submit(Sweep(product_id), self, ticket)

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to a sweep: go on while there is more. Any trouble is left to the next look."""
        product_id = self._asked.pop(ticket)
        if answer == NOT_FOUND:
            self._gone.add(product_id)
        elif isinstance(answer, Swept) and answer.more and not self._ended:
            self._ask(product_id)

    def flush(self) -> None:
        """Nothing to send."""
