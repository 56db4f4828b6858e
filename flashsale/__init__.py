"""flashsale: sells N units to a crowd in the same second, and never one more."""

from importlib.metadata import version

from flashsale.client import Client
from flashsale.domain.answers import (
    Answer,
    Busy,
    Cancelled,
    Closed,
    Expired,
    Failed,
    Held,
    ItemTaken,
    LimitExceeded,
    Mismatch,
    NotOpen,
    Paused,
    ProductStatus,
    SoldOut,
    Success,
    Unavailable,
    Unknown,
)
from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.sale import Kind

__version__ = version("flashsale")
__all__ = [
    "Answer",
    "Busy",
    "Cancelled",
    "Client",
    "Closed",
    "Expired",
    "Failed",
    "FeedEvent",
    "Held",
    "ItemTaken",
    "Kind",
    "LimitExceeded",
    "Mark",
    "Mismatch",
    "NotOpen",
    "Paused",
    "ProductStatus",
    "SoldOut",
    "Success",
    "Unavailable",
    "Unknown",
    "__version__",
]
