"""A sale: its terms, and the changes in its ledger."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct


class Terms(Struct, frozen=True, kw_only=True):
    """What an operator says when opening a sale. Moments are Unix seconds by the store's clock, 0 for none."""

    limit: int = 0
    """Units that one user may buy and hold together; 0 for any number."""
    opens_at: int = 0
    closes_at: int = 0
    """The first moment at which nothing is sold any more."""
    hold_s: int = 900
    """How long a hold lasts, at most and by default."""
    hold_total_s: int = 3_600
    """How long it lasts with all its extensions."""
    numbered: bool = False
    """Each unit is an item of its own, with a number from 1."""


PLAIN = Terms()
"""What holds for a sale whose stock was set by hand."""


class Kind(StrEnum):
    """What a change of a product was."""

    OPENED = "opened"
    SOLD = "sold"
    HELD = "held"
    EXTENDED = "extended"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUNDED = "refunded"
    RESTOCKED = "restocked"
    PAUSED = "paused"
    RESUMED = "resumed"
    CLOSED = "closed"


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of a product: an entry of its ledger."""

    kind: Kind
    version: int
    """Grows by one with every change of the product."""
    at_ms: int
    """The store's clock, in Unix milliseconds."""
    remaining: int
    """Units left after it."""
    user_id: str = ""
    quantity: int = 0
    """Units sold, held, given back or added; of `opened`, the units of the whole sale."""
    item_id: int = 0
    request_id: str = ""
    ref: int = 0
    """The version of the hold that ended or was extended, or of the order that was refunded; of `opened`, the units
    that were sold before the ledger began."""
    expires_at: int = 0
    """When the hold ends, in Unix seconds."""
    terms: Terms | None = None
    """Of `opened`: what the operator said; None for a stock that was set by hand."""


class Portion(Struct, frozen=True):
    """Changes of one sale, in the order of their versions, without a gap."""

    product_id: str
    epoch: str
    changes: Sequence[Change]


class Standing(Struct, frozen=True):
    """How far the ledger of a product has come."""

    exists: bool
    """There is such a sale, perhaps one whose stock was set by hand and whose ledger has not begun."""
    epoch: str = ""
    """Empty while there is no ledger."""
    version: int = 0


class Page(Struct, frozen=True, kw_only=True):
    """A stretch of the ledger of a product."""

    product_id: str
    epoch: str
    version: int
    """The ledger's last, which may be far behind the end of the page."""
    batches: list[list[Change]]
    """Changes in order, those of one batch together."""
    complete: bool
    """The page ends where the ledger ends, at `version`: what is missing before that is missing for good."""
    position: int = 0
    """Read on behind this version; more than the last change's when somebody else has written there."""
    order_times: dict[int, int] = {}
    """Version of an order that was refunded here -> when it was made, in Unix ms, as far as it is known."""
