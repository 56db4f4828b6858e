"""What is answered. Names of fields and tags are those on the wire (protocol.md): the codecs need no table."""

from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct

PRODUCT_NOT_FOUND = "product not found"
HOLD_NOT_FOUND = "hold not found"
ITEM_NOT_FOUND = "item not found"
ORDER_NOT_FOUND = "order not found"
ALREADY_CONFIRMED = "already confirmed"
ONE_ITEM_AT_A_TIME = "one numbered item at a time"
SALE_IS_CLOSED = "the sale is closed"
STOCK_TOO_LARGE = "the stock would be too large"
UNAVAILABLE = "unavailable"
OUTCOME_UNKNOWN = "outcome unknown"
OTHER_REQUEST = "request_id belongs to another request"


class Success(Struct, frozen=True, gc=False, tag_field="status", tag="SUCCESS", omit_defaults=True):
    """The units are sold to this user; `remaining_stock` units are left after it."""

    remaining_stock: int
    order_id: str = ""
    version: int = 0
    """Of the change in the product's ledger that this sale is."""
    item_id: int | None = None
    duplicate: bool = False
    """The request was seen before; this is the answer it got then."""


class Held(Struct, frozen=True, gc=False, tag_field="status", tag="HELD", omit_defaults=True):
    """The units are taken out of stock until `expires_at`, in Unix seconds by the store's clock."""

    code: str
    expires_at: int
    remaining_stock: int
    version: int
    item_id: int | None = None
    duplicate: bool = False


class Cancelled(Struct, frozen=True, gc=False, tag_field="status", tag="CANCELLED", omit_defaults=True):
    """The hold was given up and its units are back."""

    remaining_stock: int
    version: int
    duplicate: bool = False


class Expired(Struct, frozen=True, gc=False, tag_field="status", tag="EXPIRED"):
    """The hold's time was over; its units are back."""


class SoldOut(Struct, frozen=True, gc=False, tag_field="status", tag="SOLD_OUT", omit_defaults=True):
    """Fewer units were left than wanted; nothing changed."""

    remaining_stock: int = 0


class LimitExceeded(Struct, frozen=True, gc=False, tag_field="status", tag="LIMIT_EXCEEDED"):
    """The user would have bought and held more than the limit allows; nothing changed."""


class NotOpen(Struct, frozen=True, gc=False, tag_field="status", tag="NOT_OPEN"):
    """The sale begins at `opens_at`, in Unix seconds; nothing changed."""

    opens_at: int


class Closed(Struct, frozen=True, gc=False, tag_field="status", tag="CLOSED"):
    """The sale is over; nothing changed."""


class Paused(Struct, frozen=True, gc=False, tag_field="status", tag="PAUSED"):
    """The sale stands still until the operator resumes it; nothing changed."""


class ItemTaken(Struct, frozen=True, gc=False, tag_field="status", tag="ITEM_TAKEN"):
    """The item wanted is sold or held; nothing changed."""


class Mismatch(Struct, frozen=True, gc=False, tag_field="status", tag="MISMATCH"):
    """The request id was used for a request with other content; nothing changed."""

    error: str = OTHER_REQUEST


class ProductStatus(Struct, frozen=True, gc=False, tag_field="status", tag="OK"):
    """Units left, sold and held at one instant, and whether the sale is open, paused, closed or not_open."""

    remaining_stock: int
    sold: int
    held: int = 0
    state: str = "open"
    version: int = 0


class Changed(Struct, frozen=True, gc=False, tag_field="status", tag="CHANGED", omit_defaults=True):
    """What the operator asked for holds now; `version` is the ledger's last."""

    remaining_stock: int
    version: int
    duplicate: bool = False
    """It held before."""


class Swept(Struct, frozen=True, gc=False, tag_field="status", tag="SWEPT"):
    """Expired holds went back to stock; `more` may be due, beyond what one batch returns."""

    more: bool


class Subscribed(Struct, frozen=True, gc=False, kw_only=True, tag_field="status", tag="SUBSCRIBED", omit_defaults=True):
    """Events follow: `{"status":"SUBSCRIBED","product_id":"p","version":7,"epoch":"0f3c9a21"}`.

    To a subscription to all products it is `{"status":"SUBSCRIBED","version":0}`, and one event `subscribed` for each
    product tells where it begins.
    """

    product_id: str | None = None
    version: int
    """The ledger's last; 0 when it has not begun. Without `after_version` the next event is the one after it."""
    epoch: str = ""
    """Of the product, which order ids carry too; absent when its ledger has not begun."""


class Busy(Struct, frozen=True, gc=False, tag_field="status", tag="BUSY", omit_defaults=True):
    """A bound was reached; the request was not executed and may be repeated later."""

    retry_after_ms: int | None = None
    """When that is worth a try, of one who came too often; None when nobody knows."""


class Unavailable(Struct, frozen=True, gc=False, tag_field="status", tag="UNAVAILABLE"):
    """The store is away or may not be trusted; the request was not executed."""

    error: str = UNAVAILABLE


class Unknown(Struct, frozen=True, gc=False, tag_field="status", tag="UNKNOWN"):
    """The request may or may not have been executed: the store fell silent in the middle of it."""

    error: str = OUTCOME_UNKNOWN


class Failed(Struct, frozen=True, gc=False, tag_field="status", tag="ERROR"):
    """The request was not executed; `error` says why, in the exact words of protocol.md."""

    error: str


Answer: TypeAlias = (
    Success
    | Held
    | Cancelled
    | Expired
    | SoldOut
    | LimitExceeded
    | NotOpen
    | Closed
    | Paused
    | ItemTaken
    | Mismatch
    | ProductStatus
    | Changed
    | Swept
    | Subscribed
    | Busy
    | Unavailable
    | Unknown
    | Failed
)


def last_version(answers: Iterable[Answer]) -> int:
    """Return the version of the last change that these answers tell of as done; 0 when they tell of none."""
    return max(
        (answer.version for answer in answers if isinstance(answer, Success | Held | Cancelled | Changed)), default=0
    )


SOLD_OUT = SoldOut()
BUSY = Busy()
UNKNOWN = Unknown()
NOT_FOUND = Failed(PRODUCT_NOT_FOUND)
NOT_EXECUTED = Unavailable()
