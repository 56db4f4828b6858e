"""Every Redis key and channel, built here and nowhere else.

| key | type | holds |
|---|---|---|
| product:<id>:stock | integer | units left; a key set by hand is a valid sale |
| product:<id>:buyers | list | one user id per unit sold, the newest first |
| product:<id>:sessions | hash | server session -> its last remembered batch (lua/purchase.lua) |
"""

EVENTS_CHANNEL = "flashsale_events"

_PREFIX = "product:"
_STOCK_SUFFIX = ":stock"
STOCK_PATTERN = f"{_PREFIX}*{_STOCK_SUFFIX}"


def stock_key(product_id: str) -> str:
    """Return the key of the number of units left."""
    return f"{_PREFIX}{product_id}{_STOCK_SUFFIX}"


def buyers_key(product_id: str) -> str:
    """Return the key of the list of buyers."""
    return f"{_PREFIX}{product_id}:buyers"


def sessions_key(product_id: str) -> str:
    """Return the key of the hash of sessions."""
    return f"{_PREFIX}{product_id}:sessions"


def product_id_of(stock_key: str) -> str:
    """Return the product id in a stock key."""
    return stock_key.removeprefix(_PREFIX).removesuffix(_STOCK_SUFFIX)
