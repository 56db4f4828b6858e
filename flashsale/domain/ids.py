"""What ids are made of: of products, holds and orders."""

from msgspec import Struct

from flashsale.domain.bounds import ID_SIZE_MAX, STOCK_MAX, TIME_MAX
from flashsale.errors import InvalidValueError

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
