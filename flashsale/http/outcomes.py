"""The one table of what an answer is over HTTP: status, kind and words (README, "HTTP")."""

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
    Failed,
    ItemTaken,
    LimitExceeded,
    Mismatch,
    NotOpen,
    Paused,
    SoldOut,
    Unavailable,
    Unknown,
)

TOO_MANY_REQUESTS = "too many requests"
"""From this user, from this client, or for this operation."""
BUSY_S = 1.0
"""After so many seconds it is worth another try when a queue was full, or the store was away."""


class Refusal(Struct, frozen=True):
    """What a request that was not fulfilled is over HTTP."""

    status: int
    kind: str
    """The end of the type of a problem, `urn:flashsale:<kind>`."""
    words: str
    retry_after_s: float = 0


REFUSALS: dict[type[Answer], Refusal] = {
    SoldOut: Refusal(409, "sold-out", "sold out"),
    ItemTaken: Refusal(409, "item-taken", "the item is sold or held"),
    LimitExceeded: Refusal(429, "limit-exceeded", "user purchase limit exceeded"),
    NotOpen: Refusal(409, "not-open", "the sale is not open yet"),
    Paused: Refusal(409, "paused", "the sale is paused"),
    Closed: Refusal(410, "closed", "the sale is closed"),
    Cancelled: Refusal(410, "cancelled", "the hold was cancelled"),
    Expired: Refusal(410, "expired", "the hold has expired"),
    Mismatch: Refusal(409, "mismatch", "request_id belongs to another request"),
    Busy: Refusal(503, "busy", "too many requests wait", BUSY_S),
    Unavailable: Refusal(503, "unavailable", "the store is away; nothing was done", BUSY_S),
    Unknown: Refusal(504, "unknown", "it is not known whether this was done; ask again with the same id", BUSY_S),
}
"""By answer; `Failed` has its own table."""

FAILURES: dict[str, Refusal] = {
    PRODUCT_NOT_FOUND: Refusal(404, "product-not-found", PRODUCT_NOT_FOUND),
    HOLD_NOT_FOUND: Refusal(404, "hold-not-found", HOLD_NOT_FOUND),
    ITEM_NOT_FOUND: Refusal(404, "item-not-found", ITEM_NOT_FOUND),
    ALREADY_CONFIRMED: Refusal(409, "already-confirmed", ALREADY_CONFIRMED),
}
"""By the text of a failure; any other is the request's own fault."""


def refusal_of(answer: Answer) -> Refusal:
    """Return what an answer that fulfils nothing is over HTTP."""
    if isinstance(answer, Busy) and answer.retry_after_ms is not None:
        return Refusal(429, "rate-limited", TOO_MANY_REQUESTS, answer.retry_after_ms / 1000)
    if isinstance(answer, Failed):
        return FAILURES.get(answer.error) or Refusal(400, "bad-request", answer.error)
    return REFUSALS[type(answer)]
