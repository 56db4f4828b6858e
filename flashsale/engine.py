"""What decides a sale: the Engine protocol, and MemoryEngine, which is the specification.

The rules in plain Python, for reading and for testing. The Redis engine (store/lua/purchase.lua) must give the same
answers for any sequence of batches; tests/contract holds both to it.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from flashsale.domain import (
    NOT_FOUND,
    SOLD_OUT,
    Ambiguous,
    Answer,
    Batch,
    GetStatus,
    Outcome,
    ProductStatus,
    Request,
    Success,
)


class Engine(Protocol):
    """Decides batches. Failures are values: `commit` raises nothing but cancellation."""

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch atomically, in order, and return one outcome for each.

        Args:
            batches: at most one for each product; sequences grow from call to call.
            timeout_s: after so many seconds the outcome is NotExecuted or Ambiguous.
        """
        ...


class _Product(Struct):
    stock: int
    buyers: list[str]


class MemoryEngine:
    """The rules of a sale in memory.

    One instance stands for one session: sequences are compared with those it has seen itself.
    """

    def __init__(self) -> None:
        self._products: dict[str, _Product] = {}
        self._last: dict[str, tuple[int, list[Answer]]] = {}  # by product: the last batch that is remembered

    def create(self, product_id: str, stock: int) -> None:
        """Open a sale of `stock` units; an earlier one of that id is forgotten."""
        self._products[product_id] = _Product(stock, [])

    def delete(self, product_id: str) -> None:
        """Forget the product; does nothing when there is none."""
        self._products.pop(product_id, None)
        self._last.pop(product_id, None)

    def buyers(self, product_id: str) -> list[str]:
        """Return the buyers in order of purchase, one entry for each unit sold."""
        return list(self._products[product_id].buyers)

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch; see Engine."""
        return [self.decide(batch) for batch in batches]

    def decide(self, batch: Batch) -> Outcome:
        """Decide one batch.

        A batch whose sequence was seen last gets the same answers again. One that is older than the last was sent
        long ago and overtaken: it must not sell any more, and nobody waits for its answers.
        """
        last = self._last.get(batch.product_id)
        if last is not None and batch.sequence <= last[0]:
            return last[1] if batch.sequence == last[0] else Ambiguous("overtaken by a later batch of its session")
        product = self._products.get(batch.product_id)
        sold_before = len(product.buyers) if product else 0
        answers = [self._decide_one(product, request) for request in batch.requests]
        if batch.fenced or (product and len(product.buyers) > sold_before):
            self._last[batch.product_id] = (batch.sequence, answers)
        return answers

    @staticmethod
    def _decide_one(product: _Product | None, request: Request) -> Answer:
        if product is None:
            return NOT_FOUND
        if isinstance(request, GetStatus):
            return ProductStatus(product.stock, len(product.buyers))
        if product.stock == 0:
            return SOLD_OUT
        product.stock -= 1
        product.buyers.append(request.user_id)
        return Success(product.stock)
