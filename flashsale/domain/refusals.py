"""Why a request was not fulfilled, in the words of every door that has no words of its own for it."""

from msgspec import Struct

from flashsale.domain.answers import (
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    PRODUCT_NOT_FOUND,
    Answer,
    Busy,
    Cancelled,
    Closed,
    Expired,
    ItemTaken,
    LimitExceeded,
    Mismatch,
    NotOpen,
    Paused,
    SoldOut,
    Unavailable,
    Unknown,
)

_PAUSE_S = 1
"""After so many seconds it is worth another try when a queue was full, or the store was away."""


class Reason(Struct, frozen=True):
    """Why."""

    kind: str
    """A word that programs may go by."""
    words: str
    """One sentence for a person."""
    retry_after_s: int = 0
    """When it is worth another try; 0 when that is not known."""


REASONS: dict[type[Answer], Reason] = {
    SoldOut: Reason("sold-out", "sold out"),
    ItemTaken: Reason("item-taken", "the item is sold or held"),
    LimitExceeded: Reason("limit-exceeded", "user purchase limit exceeded"),
    NotOpen: Reason("not-open", "the sale is not open yet"),
    Paused: Reason("paused", "the sale is paused"),
    Closed: Reason("closed", "the sale is closed"),
    Cancelled: Reason("cancelled", "the hold was cancelled"),
    Expired: Reason("expired", "the hold has expired"),
    Mismatch: Reason("mismatch", "request_id belongs to another request"),
    Busy: Reason("busy", "too many requests wait", _PAUSE_S),
    Unavailable: Reason("unavailable", "the store is away; nothing was done", _PAUSE_S),
    Unknown: Reason("unknown", "it is not known whether this was done; ask again with the same id", _PAUSE_S),
}
"""By answer; `Failed` has its own table."""

FAILURE_REASONS: dict[str, Reason] = {
    PRODUCT_NOT_FOUND: Reason("product-not-found", PRODUCT_NOT_FOUND),
    HOLD_NOT_FOUND: Reason("hold-not-found", HOLD_NOT_FOUND),
    ITEM_NOT_FOUND: Reason("item-not-found", ITEM_NOT_FOUND),
    ALREADY_CONFIRMED: Reason("already-confirmed", ALREADY_CONFIRMED),
}
"""By the text of a failure; any other is the request's own fault."""

RATE_LIMITED = Reason("rate-limited", "too many requests")
"""From this user, from this client, or for this operation: of a BUSY that says when to come again."""


def failure(words: str) -> Reason:
    """Return why a request failed with that text."""
    return FAILURE_REASONS.get(words) or Reason("bad-request", words)
