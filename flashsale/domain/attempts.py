"""What of the requests is an attempt of a buyer, and what can become of one."""

from typing import get_args

from flashsale.domain.answers import Answer, Changed, ProductStatus, Subscribed, Swept
from flashsale.domain.requests import Cancel, Confirm, Extend, Purchase, Request, Reserve

KINDS: tuple[tuple[type[Request], str], ...] = (
    (Purchase, "purchase"),
    (Reserve, "reserve"),
    (Confirm, "confirm"),
    (Cancel, "cancel"),
    (Extend, "extend"),
)
"""The requests that are attempts of a buyer; what the others ask, or the server itself, is none."""
OUTCOMES: tuple[str, ...] = tuple(
    str(kind.__struct_config__.tag)
    for kind in get_args(Answer)
    if kind not in {ProductStatus, Changed, Swept, Subscribed}  # which answer other requests
)
"""What can become of one: the statuses of the wire."""
