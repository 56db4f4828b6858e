"""The values that cross borders: requests, answers, batches, outcomes, events.

Immutable, without I/O and without behaviour beyond checking themselves. The names of fields and tags are the
ones on the wire (protocol.md), so that the JSON codecs need no table of their own.
"""

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from msgspec import Struct

from flashsale.errors import InvalidValueError

ID_SIZE_MAX = 256
"""The longest product id an operator may create, in UTF-8 bytes."""

STOCK_MAX = 2**53 - 1
"""The largest stock, in units: Lua counts in doubles, which are exact up to here."""

PRODUCT_NOT_FOUND = "product not found"
UNAVAILABLE = "unavailable"
OUTCOME_UNKNOWN = "outcome unknown"


# Requests


class Purchase(Struct, frozen=True, gc=False):
    """One unit of a product for one user. Empty fields are the connection's to refuse."""

    product_id: str = ""
    user_id: str = ""


class GetStatus(Struct, frozen=True, gc=False):
    """How many units of a product are left and how many are sold. Nobody's request: it has no user."""

    product_id: str = ""
    user_id: ClassVar[str] = ""


Request: TypeAlias = Purchase | GetStatus


# Answers


class Success(Struct, frozen=True, gc=False, tag_field="status", tag="SUCCESS"):
    """The unit is sold to this user; `remaining_stock` units are left after it."""

    remaining_stock: int


class SoldOut(Struct, frozen=True, gc=False, tag_field="status", tag="SOLD_OUT"):
    """No unit was left; nothing changed."""


class ProductStatus(Struct, frozen=True, gc=False, tag_field="status", tag="OK"):
    """Units left and units sold at one instant."""

    remaining_stock: int
    sold: int


class Busy(Struct, frozen=True, gc=False, tag_field="status", tag="BUSY"):
    """A bound was reached; the request was not executed and may be repeated later."""


class Unknown(Struct, frozen=True, gc=False, tag_field="status", tag="UNKNOWN"):
    """The request may or may not have been executed: the store fell silent in the middle of it."""

    error: str = OUTCOME_UNKNOWN


class Failed(Struct, frozen=True, gc=False, tag_field="status", tag="ERROR"):
    """The request was not executed; `error` says why, in the exact words of protocol.md."""

    error: str


Answer: TypeAlias = Success | SoldOut | ProductStatus | Busy | Unknown | Failed

SOLD_OUT = SoldOut()
BUSY = Busy()
UNKNOWN = Unknown()
NOT_FOUND = Failed(PRODUCT_NOT_FOUND)
NOT_EXECUTED = Failed(UNAVAILABLE)


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


# Events


class PurchaseEvent(Struct, frozen=True, tag_field="event", tag="purchase"):
    """A unit was sold. `timestamp` is the store's clock in Unix seconds."""

    product_id: str
    buyer: str
    remaining: int
    timestamp: int


class SoldOutEvent(Struct, frozen=True, tag_field="event", tag="sold_out"):
    """The last unit went."""

    product_id: str
    timestamp: int


Event: TypeAlias = PurchaseEvent | SoldOutEvent


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
    """Return the number of units, or raise InvalidValueError unless it is a whole number from 0 to 2^53-1."""
    if value.isascii() and value.isdigit() and len(value) <= len(str(STOCK_MAX)) and int(value) <= STOCK_MAX:
        return int(value)
    raise InvalidValueError(f"'{value}' is not a stock: give a whole number of units from 0 to {STOCK_MAX}")
