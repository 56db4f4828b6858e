"""The one table of what an answer is over gRPC: status code, reason and words (README, "gRPC")."""

from typing import Any

import grpc
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

REASON_KEY = "reason"
RETRY_KEY = "retry-after"
REMAINING_KEY = "remaining"
OPENS_AT_KEY = "opens-at"
ID_KEY = "x-request-id"
FIRST_KEY = "first-response-bin"
"""The bytes of the response that a request got when it came first."""

Metadata = tuple[tuple[str, str | bytes], ...]

_PAUSE_S = 1
"""After so many seconds it is worth another try when a queue was full, or the store was away."""

_Code = grpc.StatusCode


class Refusal(Struct, frozen=True):
    """What a request that was not fulfilled is over gRPC."""

    code: Any
    """A grpc.StatusCode."""
    reason: str
    """A word that programs may go by."""
    words: str
    retry_after_s: int = 0

    def as_metadata(self) -> Metadata:
        """Return what goes into the trailing metadata."""
        retry = ((RETRY_KEY, str(self.retry_after_s)),) if self.retry_after_s else ()
        return ((REASON_KEY, self.reason), *retry)


REFUSALS: dict[type[Answer], Refusal] = {
    SoldOut: Refusal(_Code.RESOURCE_EXHAUSTED, "sold-out", "sold out"),
    LimitExceeded: Refusal(_Code.RESOURCE_EXHAUSTED, "limit-exceeded", "user purchase limit exceeded"),
    ItemTaken: Refusal(_Code.FAILED_PRECONDITION, "item-taken", "the item is sold or held"),
    NotOpen: Refusal(_Code.FAILED_PRECONDITION, "not-open", "the sale is not open yet"),
    Paused: Refusal(_Code.FAILED_PRECONDITION, "paused", "the sale is paused"),
    Closed: Refusal(_Code.FAILED_PRECONDITION, "closed", "the sale is closed"),
    Cancelled: Refusal(_Code.FAILED_PRECONDITION, "cancelled", "the hold was cancelled"),
    Expired: Refusal(_Code.FAILED_PRECONDITION, "expired", "the hold has expired"),
    Mismatch: Refusal(_Code.FAILED_PRECONDITION, "mismatch", "request_id belongs to another request"),
    Busy: Refusal(_Code.UNAVAILABLE, "busy", "too many requests wait", _PAUSE_S),
    Unavailable: Refusal(_Code.UNAVAILABLE, "unavailable", "the store is away; nothing was done", _PAUSE_S),
    Unknown: Refusal(
        _Code.DEADLINE_EXCEEDED,  # the one code of which gRPC says that it may all the same have been done
        "unknown",
        "it is not known whether this was done; ask again with the same id",
        _PAUSE_S,
    ),
}
"""By answer; `Failed` has its own table."""

FAILURES: dict[str, Refusal] = {
    PRODUCT_NOT_FOUND: Refusal(_Code.NOT_FOUND, "product-not-found", PRODUCT_NOT_FOUND),
    HOLD_NOT_FOUND: Refusal(_Code.NOT_FOUND, "hold-not-found", HOLD_NOT_FOUND),
    ITEM_NOT_FOUND: Refusal(_Code.NOT_FOUND, "item-not-found", ITEM_NOT_FOUND),
    ALREADY_CONFIRMED: Refusal(_Code.FAILED_PRECONDITION, "already-confirmed", ALREADY_CONFIRMED),
}
"""By the text of a failure; any other is the request's own fault."""

TOO_OFTEN = Refusal(_Code.RESOURCE_EXHAUSTED, "rate-limited", "too many requests")
"""From this user, from this client, or for this operation."""
_BAD = Refusal(_Code.INVALID_ARGUMENT, "bad-request", "")
UNREADABLE = Refusal(_Code.INVALID_ARGUMENT, "unreadable", "the message cannot be read")
LATE = Refusal(_Code.RESOURCE_EXHAUSTED, "late", "the message took too long to come; nothing was done")
DUPLICATE = Refusal(_Code.ALREADY_EXISTS, "duplicate", "duplicate request")
TOO_SLOW = Refusal(_Code.RESOURCE_EXHAUSTED, "too-slow", "the events were not taken; go on from where you were")
ENDING = Refusal(_Code.UNAVAILABLE, "ending", "the server ends; go on at another one from where you were", _PAUSE_S)
DEFECT = Refusal(_Code.INTERNAL, "defect", "internal error; it is not known whether this was done")
OTHERS = (TOO_OFTEN, _BAD, UNREADABLE, LATE, DUPLICATE, TOO_SLOW, ENDING, DEFECT)
"""Those that are no answer's."""

_TOLD = {kind: (refusal, refusal.as_metadata()) for kind, refusal in REFUSALS.items()}


def bad_request(words: str) -> Refusal:
    """Return what a request is told that is wrong in itself."""
    return FAILURES.get(words) or Refusal(_BAD.code, _BAD.reason, words)


def refusal_of(answer: Answer) -> tuple[Refusal, Metadata]:
    """Return what an answer that fulfils nothing is over gRPC, and its metadata."""
    told = _TOLD.get(type(answer))
    if told is None:
        assert isinstance(answer, Failed), answer  # all else fulfils something
        refusal = bad_request(answer.error)
        return refusal, refusal.as_metadata()
    if isinstance(answer, SoldOut) and answer.remaining_stock:
        return told[0], (*told[1], (REMAINING_KEY, str(answer.remaining_stock)))
    if isinstance(answer, NotOpen):
        return told[0], (*told[1], (OPENS_AT_KEY, str(answer.opens_at)))
    if isinstance(answer, Busy) and answer.retry_after_ms is not None:
        return TOO_OFTEN, (*TOO_OFTEN.as_metadata(), (RETRY_KEY, str(-(-answer.retry_after_ms // 1000))))
    return told


def refuse(context: Any, refusal: Refusal, metadata: Metadata | None = None) -> bytes:
    """Have a call end with a status that is not OK; return what its handler has to return.

    Args:
        context: the call's grpc.aio.ServicerContext.
        refusal: what it is told.
        metadata: instead of what the refusal says by itself.
    """
    context.set_code(refusal.code)
    context.set_details(refusal.words)
    context.set_trailing_metadata(refusal.as_metadata() if metadata is None else metadata)
    return b""


def refuse_with(context: Any, answer: Answer) -> bytes:
    """Have a call end with what an answer is that fulfils nothing; return what its handler has to return."""
    return refuse(context, *refusal_of(answer))
