"""What is told of a sale to those who listen."""

from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

from flashsale.domain.sale import Kind


class PurchaseEvent(Struct, frozen=True, tag_field="event", tag="purchase"):
    """A unit was sold. `timestamp` is the store's clock in Unix seconds."""

    product_id: str
    buyer: str
    remaining: int
    timestamp: int
    quantity: int = 1
    version: int = 0


class SoldOutEvent(Struct, frozen=True, tag_field="event", tag="sold_out"):
    """The last unit went."""

    product_id: str
    timestamp: int


class ChangeEvent(Struct, frozen=True, omit_defaults=True):
    """Anything else that changed a product: `event` says what."""

    event: Kind
    product_id: str
    remaining: int
    timestamp: int
    quantity: int
    version: int
    buyer: str = ""


Event: TypeAlias = PurchaseEvent | SoldOutEvent | ChangeEvent


class Mark(StrEnum):
    """Events of a subscription that are no changes."""

    SUBSCRIBED = "subscribed"
    """To all products: this one is followed from behind `version` of `epoch`."""
    GAP = "gap"
    """The changes behind `after_version` up to `version` are no longer kept; what follows comes after them."""
    RESET = "reset"
    """The product was deleted or opened anew: nothing that was told of it holds; what follows is the new sale's."""


class FeedEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of a product as a subscriber hears it, or a mark: what a frame of type EVENT carries.

    `{"event":"sold","product_id":"p","version":8,"timestamp":1764000000,"remaining":91,"buyer":"u","quantity":2,
    "order_id":"19ab…"}`. Fields that do not apply are absent. The client's request id and the codes of holds are
    nobody else's business and never in it.
    """

    event: str
    """A Kind or a Mark; others may come to be."""
    product_id: str
    version: int = 0
    """Of a change: one more than that of the change before. Absent of `reset`."""
    timestamp: int = 0
    """The store's clock when it changed, in Unix seconds; of changes alone."""
    remaining: int | None = None
    """Units left after it; of changes alone."""
    buyer: str = ""
    """The user id."""
    quantity: int = 0
    """Units sold, held, given back or added; of `opened`, the units of the whole sale."""
    item_id: int = 0
    order_id: str = ""
    """Of `sold` and `confirmed`; of `refunded` as far as the ledger still knows the order."""
    after_version: int | None = None
    """Of `gap` alone: the last version before those that are missing; the subscriber may have heard some of them."""
    epoch: str = ""
    """Of `opened`, `reset` and `subscribed`: the sale that versions belong to from here on."""
