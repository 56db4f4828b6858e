"""Breakers: whoever has just been found to be away is not asked again by everybody.

Closed: all are let through. Open: all are refused at once, until it is time for the next try. Half-open: one try is
under way, and its end decides. Pure: the clock is handed in.
"""

from enum import StrEnum

_PATIENCES = 2
"""After so many times as long as a try may take, without having heard of any, nothing is known any more."""


class State(StrEnum):
    """Whether requests are let through."""

    CLOSED = "closed"
    """All of them."""
    OPEN = "open"
    """None."""
    HALF_OPEN = "half-open"
    """One is on its way."""


class Breaker:
    """Of one thing that may be away. All times are in seconds, on the clock of whoever asks."""

    __slots__ = ("_failed_at", "_patience_s", "_pause_s", "_try_at", "opened_at", "state")

    def __init__(self, *, pause_s: float, patience_s: float) -> None:
        """Begin closed.

        Args:
            pause_s: from a try that failed to the next.
            patience_s: how long a try may take before another one is let through.
        """
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._failed_at = 0.0
        self._try_at = 0.0
        self.state = State.CLOSED
        self.opened_at = 0.0
        """When it opened last; it may have been half-open since."""

    def is_ready(self, now: float) -> bool:
        """Whether a request would be let through."""
        return self.state is State.CLOSED or now >= self._try_at

    def enter(self, now: float) -> None:
        """Let a request through, for which it is ready; unless it is closed, that is a try.

        A failure of long ago says nothing: it is closed then, and does not refuse a crowd for the sake of one try.
        """
        if self.state is State.CLOSED:
            return
        if now - self._failed_at >= self._pause_s + _PATIENCES * self._patience_s:
            self.state = State.CLOSED
            return
        self.state = State.HALF_OPEN
        self._try_at = now + self._patience_s

    def fail(self, now: float) -> None:
        """Take note that there was no answer: open, and begin the pause anew.

        The first try need not wait: what those before it waited for in vain may have been one link's trouble.
        """
        if self.state is State.CLOSED:
            self.opened_at = self._try_at = now
        else:
            self._try_at = now + self._pause_s
        self.state = State.OPEN
        self._failed_at = now

    def succeed(self) -> None:
        """Take note that there was an answer: close."""
        self.state = State.CLOSED


class Breakers:
    """Of a store as a whole, and of each product in it that is in trouble by itself."""

    def __init__(self, *, pause_s: float, patience_s: float, count_max: int) -> None:
        """Begin closed.

        Args:
            pause_s: see Breaker.
            patience_s: see Breaker.
            count_max: products; beyond it the one that has been in trouble for longest is let through again.
        """
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._count_max = count_max
        self._products: dict[str, Breaker] = {}  # those that are not closed
        self.store = Breaker(pause_s=pause_s, patience_s=patience_s)
        self.are_closed = True
        """Whether all are: then there is nothing to ask."""

    @property
    def product_count(self) -> int:
        """How many products are refused, or tried."""
        return len(self._products)

    def admit(self, product_id: str, now: float) -> bool:
        """Let a request through, or refuse it: both the store's and the product's breaker must be ready for it."""
        product = self._products.get(product_id)
        if not self.store.is_ready(now) or (product is not None and not product.is_ready(now)):
            return False
        self.store.enter(now)
        if product is not None:
            product.enter(now)
            if product.state is State.CLOSED:
                del self._products[product_id]
        self._note()
        return True

    def opened_at(self, product_id: str) -> float | None:
        """Return since when requests for a product are refused; None when they are not."""
        product = self._products.get(product_id)
        if self.store.state is not State.CLOSED:
            return self.store.opened_at
        return product.opened_at if product is not None else None

    def fail_store(self, now: float) -> bool:
        """Take note that the store as a whole does not answer; return whether it had been closed."""
        was_closed = self.store.state is State.CLOSED
        self.store.fail(now)
        self._note()
        return was_closed

    def fail_product(self, product_id: str, now: float) -> bool:
        """Take note that one product is not decided; return whether it had been closed."""
        known = self._products.get(product_id)
        is_new = known is None
        if known is None:
            if len(self._products) >= self._count_max:
                del self._products[next(iter(self._products))]
            known = self._products[product_id] = Breaker(pause_s=self._pause_s, patience_s=self._patience_s)
        known.fail(now)
        self._note()
        return is_new

    def fail_again(self, product_id: str, now: float) -> None:
        """Take note that a try has failed, of whichever is not closed."""
        if self.store.state is not State.CLOSED:
            self.store.fail(now)
        elif product_id in self._products:
            self._products[product_id].fail(now)

    def succeed(self, product_id: str) -> tuple[bool, bool]:
        """Take note that a product was decided; return whether that closed the store's breaker, and the product's."""
        store_was_open = self.store.state is not State.CLOSED
        self.store.succeed()
        product_was_open = self._products.pop(product_id, None) is not None
        self._note()
        return store_was_open, product_was_open

    def _note(self) -> None:
        self.are_closed = self.store.state is State.CLOSED and not self._products
