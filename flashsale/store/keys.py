"""Every Redis key and channel, built here and nowhere else.

| key | type | holds |
|---|---|---|
| product:<id>:stock | integer | units left; a key set by hand is a valid sale |
| product:<id>:buyers | list | one user id per order that stands, the newest first |
| product:<id>:sessions | hash | server session -> its last remembered batch and what it was told |
| product:<id>:sale | hash | terms and counters: epoch, version, initial, restocked, sold, held, state, … |
| product:<id>:orders | stream | the ledger: every change of the product, by version; the outbox of its orders |
| product:<id>:users | hash | user -> units bought and held; of products with a limit |
| product:<id>:deadlines | sorted set | token -> when its hold expires, in Unix seconds; of the holds that stand |
| product:<id>:items | string | a bit for each numbered item, set while it is sold or held |
| product:<id>:requests | hash | request ids -> their answers; tokens -> holds, or how they ended; later the next |
| product:<id>:requests_before | hash | those of the day before, or of longer, if holds can last that long |
| product:<id>:refunds | hash | version of a refunded order -> version of its refund |
| products | set | the ids of products that have a ledger |
| products_due | sorted set | product -> no hold of it expires earlier, in Unix seconds |
| products_moved | string | a name for this store, given when its orders first go into a database |
| products_relayed | hash | product -> "epoch version" up to which its ledger was published to a topic |
| schedules | hash | name -> a schedule, as JSON |
| schedules_opened | hash | name of a schedule -> the last sale that was opened for it, as JSON |
| schedules_sales | sorted set | product that a schedule has opened -> when it may be deleted, in Unix seconds |
"""

from functools import lru_cache

EVENTS_CHANNEL = "flashsale_events"
MOVED_CHANNEL = "flashsale_moved"
"""Of whoever waits for the database: epoch, version and product, with spaces between."""

PRODUCTS = "products"
PRODUCTS_DUE = "products_due"
MOVERS = "products_moved"
RELAYED = "products_relayed"
SCHEDULES = "schedules"
SCHEDULES_OPENED = "schedules_opened"
SCHEDULES_SALES = "schedules_sales"

_PREFIX = "product:"
_PARTS = (
    "stock", "buyers", "sessions", "sale", "orders", "users", "deadlines", "items", "requests", "requests_before",
    "refunds",
)  # fmt: skip
TYPES = (
    "string", "list", "hash", "hash", "stream", "hash", "zset", "string", "hash", "hash", "hash", "set", "zset",
)  # fmt: skip
"""Of the keys that every script gets, in its order."""
STOCK_PATTERN = f"{_PREFIX}*:stock"


def key(product_id: str, part: str) -> str:
    """Return the key of a named part of a product, such as stock."""
    return f"{_PREFIX}{product_id}:{part}"


@lru_cache(maxsize=1024)
def script_keys(product_id: str) -> tuple[str, ...]:
    """Return the keys that every script about a product gets, in its order (lua/frame.lua)."""
    return (*(key(product_id, part) for part in _PARTS), PRODUCTS, PRODUCTS_DUE)


def product_id_of(stock_key: str) -> str:
    """Return the product id in a stock key."""
    return stock_key.removeprefix(_PREFIX).removesuffix(":stock")
