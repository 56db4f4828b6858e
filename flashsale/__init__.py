"""flashsale: sells N units to a crowd in the same second, and never one more."""

from importlib.metadata import version

from flashsale.client import Client
from flashsale.domain import Answer, Busy, Failed, ProductStatus, SoldOut, Success, Unavailable, Unknown

__version__ = version("flashsale")
__all__ = [
    "Answer",
    "Busy",
    "Client",
    "Failed",
    "ProductStatus",
    "SoldOut",
    "Success",
    "Unavailable",
    "Unknown",
    "__version__",
]
