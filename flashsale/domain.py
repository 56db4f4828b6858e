"""The values that cross borders: requests, answers, batches, outcomes, events.

Immutable, without I/O and without behaviour beyond checking themselves. The names of fields and tags are the
ones on the wire (protocol.md), so that the JSON codecs need no table of their own.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, TypeAlias

from msgspec import Meta, Struct

from flashsale.errors import InvalidValueError

ID_SIZE_MAX = 256
"""The longest product id an operator may create, in UTF-8 bytes."""

STOCK_MAX = 10**14 - 1
"""The largest stock, in units: Lua writes numbers with 14 digits."""

QUANTITY_MAX = 1_000_000
"""The most units in one request."""

REQUEST_ID_SIZE_MAX = 128
"""The longest request id, in UTF-8 bytes."""

ITEMS_MAX = 10_000_000
"""The most numbered items of a product: each costs a bit."""

HOLD_MAX_S = 30 * 86_400
"""The longest hold, in seconds, whatever the terms of a sale say."""

TIME_MAX = 253_402_300_799
"""The last moment that a sale may name, in Unix seconds: the end of the year 9999."""

REQUESTS_KEPT_S = 86_400
"""For at least so long a request id finds its first answer, and an ended hold tells how it ended."""

SWEEP_COUNT_MAX = 512
"""Expired holds that each batch returns to stock before it decides anything: bounds how long one call may take."""

LAZY_COUNT_MAX = 4_096
"""Expired holds that a batch returns beyond those, for purchases that would otherwise be told SOLD_OUT."""

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

Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
RequestId = Annotated[str, Meta(min_length=1, max_length=REQUEST_ID_SIZE_MAX)]
ItemId = Annotated[int, Meta(ge=1, le=ITEMS_MAX)]
Version = Annotated[int, Meta(ge=0, le=STOCK_MAX)]
HoldSeconds = Annotated[int, Meta(ge=1, le=HOLD_MAX_S)]
Epoch = Annotated[str, Meta(max_length=64)]


# Requests of buyers. Empty ids and codes are the connection's to refuse; every one may be asked `product_id` and
# `user_id`, of which the queue of the batcher is made.


class Purchase(Struct, frozen=True, gc=False, omit_defaults=True):
    """Units of a product for one user, sold at once."""

    product_id: str = ""
    user_id: str = ""
    quantity: Quantity = 1
    request_id: RequestId | None = None
    """The idempotency key: asked again, the request has no second effect and gets its first answer."""
    item_id: ItemId | None = None
    """The number of the item wanted; None takes any. Of numbered products alone."""


class Reserve(Struct, frozen=True, gc=False, omit_defaults=True):
    """Units taken out of stock for a while; the answer's code confirms, extends or cancels the hold."""

    product_id: str = ""
    user_id: str = ""
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


# Answers


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


class Busy(Struct, frozen=True, gc=False, tag_field="status", tag="BUSY"):
    """A bound was reached; the request was not executed and may be repeated later."""


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

SOLD_OUT = SoldOut()
BUSY = Busy()
UNKNOWN = Unknown()
NOT_FOUND = Failed(PRODUCT_NOT_FOUND)
NOT_EXECUTED = Unavailable()


# What codes and order ids are made of

CODE_SEPARATOR = "."
TOKEN_LENGTH = 22
"""Characters of a hold's secret: 128 bits in base64."""


def make_code(token: str, product_id: str) -> str:
    """Return the code of a hold: the secret, and the product, so that any server finds it."""
    return f"{token}{CODE_SEPARATOR}{product_id}"


def token_of(code: str) -> str:
    """Return the secret of a hold."""
    return code.partition(CODE_SEPARATOR)[0]


class OrderRef(Struct, frozen=True):
    """What an order id says: when and as which change of which sale of a product the units were sold."""

    product_id: str
    epoch: str
    """Of the product, 8 hex digits; another one after it was deleted and opened again."""
    version: int
    at_ms: int
    """Unix milliseconds."""


def make_order_id(order: OrderRef) -> str:
    """Return an id that is unique, sorts by time and then by version, and carries its product."""
    return f"{order.at_ms:011x}-{order.version:010x}-{order.epoch}-{order.product_id}"


def parse_order_id(order_id: str) -> OrderRef | None:
    """Return what the id says; None when it is none."""
    parts = order_id.split("-", 3)
    try:
        at_ms, version, epoch, product_id = int(parts[0], 16), int(parts[1], 16), parts[2], parts[3]
    except (ValueError, IndexError):
        return None
    order = OrderRef(product_id, epoch, version, at_ms)
    possible = version <= STOCK_MAX and at_ms <= TIME_MAX * 1000
    return order if possible and make_order_id(order) == order_id else None


# The terms of a sale


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


# Group commit


class Batch(Struct, frozen=True):
    """Requests for one product, in order of arrival, that an engine decides in one atomic step.

    `sequence` grows with every batch of a session. A batch that is sent again keeps its sequence, so that the engine
    can give the first outcome again instead of selling twice. `fenced` asks the engine to remember the sequence even
    when nothing changed: the fate of an earlier send is open, and it must find the door shut should it arrive late.
    """

    product_id: str
    requests: Sequence[Request]
    sequence: int
    fenced: bool = False


class NotExecuted(Struct, frozen=True):
    """The batch certainly had no effect and may be sent again."""

    reason: str


class Ambiguous(Struct, frozen=True):
    """The batch may have had its effect; only a fenced resend with the same sequence can tell."""

    reason: str


class Defective(Struct, frozen=True):
    """The product's keys are not what they should be; nothing was changed, and repeating will not help."""

    reason: str


Outcome: TypeAlias = list[Answer] | NotExecuted | Ambiguous | Defective
"""What became of a batch: one answer for each of its requests, or why there are none."""


# The ledger


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


# Events


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


# Checks of what an operator types


def check_product_id(value: str) -> str:
    """Return the id, or raise InvalidValueError when it is empty, over 256 bytes or holds control characters."""
    if not value:
        raise InvalidValueError("the product id is empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidValueError("the product id is not valid UTF-8") from None
    if size > ID_SIZE_MAX:
        raise InvalidValueError(f"the product id is {size} bytes long; at most {ID_SIZE_MAX} are allowed")
    if not value.isprintable():
        raise InvalidValueError("the product id holds control characters or line breaks")
    return value


def check_stock(value: str) -> int:
    """Return the number of units, or raise InvalidValueError unless it is a whole number from 0 to STOCK_MAX."""
    if value.isascii() and value.isdigit() and len(value) <= len(str(STOCK_MAX)) and int(value) <= STOCK_MAX:
        return int(value)
    raise InvalidValueError(f"'{value}' is not a stock: give a whole number of units from 0 to {STOCK_MAX}")
