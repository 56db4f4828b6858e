"""What can be asked: by buyers, by operators, and by the engine itself."""

from typing import ClassVar, TypeAlias

from msgspec import Struct

from flashsale.domain.bounds import Epoch, HoldSeconds, ItemId, Quantity, RequestId, UserId, Version
from flashsale.domain.ids import CODE_SEPARATOR, parse_order_id

# Requests of buyers. Empty ids and codes are the connection's to refuse; every one may be asked `product_id` and
# `user_id`, of which the queue of the batcher is made.


class Purchase(Struct, frozen=True, gc=False, omit_defaults=True):
    """Units of a product for one user, sold at once."""

    product_id: str = ""
    user_id: UserId = ""
    quantity: Quantity = 1
    request_id: RequestId | None = None
    """The idempotency key: asked again, the request has no second effect and gets its first answer."""
    item_id: ItemId | None = None
    """The number of the item wanted; None takes any. Of numbered products alone."""


class Reserve(Struct, frozen=True, gc=False, omit_defaults=True):
    """Units taken out of stock for a while; the answer's code confirms, extends or cancels the hold."""

    product_id: str = ""
    user_id: UserId = ""
    quantity: Quantity = 1
    request_id: RequestId | None = None
    item_id: ItemId | None = None
    hold_seconds: HoldSeconds | None = None
    """At most the product's hold time, which is also what None means."""


class _OfHold(Struct, frozen=True, gc=False, omit_defaults=True):
    code: str = ""
    user_id: ClassVar[str] = ""

    @property
    def product_id(self) -> str:
        """The product that the code carries; empty when it carries none."""
        return self.code.partition(CODE_SEPARATOR)[2]


class Confirm(_OfHold, frozen=True, gc=False, omit_defaults=True):
    """The hold becomes an order."""

    request_id: RequestId | None = None


class Cancel(_OfHold, frozen=True, gc=False, omit_defaults=True):
    """The units of a hold go back to stock."""


class Extend(_OfHold, frozen=True, gc=False, omit_defaults=True):
    """A later deadline for a hold: so many seconds from now, as far as the product's terms allow."""

    hold_seconds: HoldSeconds | None = None
    """None means the product's hold time."""


class GetStatus(Struct, frozen=True, gc=False):
    """How many units of a product are left and how many are sold. Nobody's request: it has no user."""

    product_id: str = ""
    user_id: ClassVar[str] = ""


# Requests of operators and of the engine itself; no door takes them from a buyer.


class Restock(Struct, frozen=True, gc=False):
    """More units."""

    product_id: str
    quantity: int
    user_id: ClassVar[str] = ""


class Refund(Struct, frozen=True, gc=False):
    """An order's units go back to stock and off the user's count."""

    order_id: str
    known: tuple[str, int, int] | None = None
    """User, units and item (0 for none) of an order of which the ledger may not tell any more."""
    user_id: ClassVar[str] = ""

    @property
    def product_id(self) -> str:
        """The product that the order id carries; empty when it is none."""
        order = parse_order_id(self.order_id)
        return order.product_id if order else ""


class Pause(Struct, frozen=True, gc=False):
    """No purchase and no hold until the sale is resumed; what is held may be confirmed."""

    product_id: str
    user_id: ClassVar[str] = ""


class Resume(Struct, frozen=True, gc=False):
    """The paused sale goes on."""

    product_id: str
    user_id: ClassVar[str] = ""


class Close(Struct, frozen=True, gc=False):
    """No purchase and no hold any more; what is held may be confirmed."""

    product_id: str
    user_id: ClassVar[str] = ""


class Sweep(Struct, frozen=True, gc=False):
    """Return expired holds to stock, which every batch does; for a product that nobody asks for."""

    product_id: str
    user_id: ClassVar[str] = ""


class Subscribe(Struct, frozen=True, gc=False, omit_defaults=True):
    """The changes of a product, or of all, as they come. The door's to answer: it decides nothing."""

    product_id: str | None = None
    after_version: Version | None = None
    """Replay the ledger from behind this version; None begins with the next change. Of one product alone."""
    epoch: Epoch | None = None
    """The epoch that `after_version` belongs to, so that a product that was opened anew meanwhile is noticed."""


BuyerRequest: TypeAlias = Purchase | Reserve | Confirm | Cancel | Extend | GetStatus
OperatorRequest: TypeAlias = Restock | Refund | Pause | Resume | Close | Sweep
Request: TypeAlias = BuyerRequest | OperatorRequest
