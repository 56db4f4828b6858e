"""How large and how long things may be, and the types that say so."""

from typing import Annotated

from msgspec import Meta

ID_SIZE_MAX = 256
"""The longest product id, in UTF-8 bytes; no operator may create a longer one."""

USER_ID_SIZE_MAX = 256
"""The longest user id, in UTF-8 bytes."""

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

SWEEP_COUNT_MAX = 256
"""Expired holds that each batch returns to stock before it decides anything: bounds how long one call may take."""

LAZY_COUNT_MAX = 4_096
"""Expired holds that a batch returns beyond those, for purchases that would otherwise be told SOLD_OUT."""

Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
UserId = Annotated[str, Meta(max_length=USER_ID_SIZE_MAX)]
RequestId = Annotated[str, Meta(min_length=1, max_length=REQUEST_ID_SIZE_MAX)]
ItemId = Annotated[int, Meta(ge=1, le=ITEMS_MAX)]
Version = Annotated[int, Meta(ge=0, le=STOCK_MAX)]
HoldSeconds = Annotated[int, Meta(ge=1, le=HOLD_MAX_S)]
Epoch = Annotated[str, Meta(max_length=64)]
