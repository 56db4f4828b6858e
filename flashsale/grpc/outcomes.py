"""What an answer is over gRPC: the one table of status codes, and what goes beside them (README, "gRPC")."""

from typing import Any

import grpc
from msgspec import Struct

from flashsale.domain.answers import Answer, Busy, Failed, NotOpen, SoldOut
from flashsale.domain.refusals import FAILURE_REASONS, RATE_LIMITED, REASONS, Reason, failure

REASON_KEY = "reason"
RETRY_KEY = "retry-after"
REMAINING_KEY = "remaining"
OPENS_AT_KEY = "opens-at"
ID_KEY = "x-request-id"
FIRST_KEY = "first-response-bin"
"""The bytes of the response that a request got when it came first."""

Metadata = tuple[tuple[str, str | bytes], ...]

_PAUSE_S = 1
"""After so many seconds a stream that ended with its server is worth another try, at another one."""

_Code = grpc.StatusCode
_CODES = {
    "sold-out": _Code.RESOURCE_EXHAUSTED,
    "limit-exceeded": _Code.RESOURCE_EXHAUSTED,
    "item-taken": _Code.FAILED_PRECONDITION,
    "not-open": _Code.FAILED_PRECONDITION,
    "paused": _Code.FAILED_PRECONDITION,
    "closed": _Code.FAILED_PRECONDITION,
    "cancelled": _Code.FAILED_PRECONDITION,
    "expired": _Code.FAILED_PRECONDITION,
    "mismatch": _Code.FAILED_PRECONDITION,
    "busy": _Code.UNAVAILABLE,
    "unavailable": _Code.UNAVAILABLE,
    "unknown": _Code.DEADLINE_EXCEEDED,  # the one code of which gRPC says that it may all the same have been done
    "product-not-found": _Code.NOT_FOUND,
    "hold-not-found": _Code.NOT_FOUND,
    "item-not-found": _Code.NOT_FOUND,
    "already-confirmed": _Code.FAILED_PRECONDITION,
    "rate-limited": _Code.RESOURCE_EXHAUSTED,
    "bad-request": _Code.INVALID_ARGUMENT,
}


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


def _make(reason: Reason) -> Refusal:
    return Refusal(_CODES[reason.kind], reason.kind, reason.words, reason.retry_after_s)


REFUSALS: dict[type[Answer], Refusal] = {answer: _make(reason) for answer, reason in REASONS.items()}
"""By answer; `Failed` has its own table."""
FAILURES: dict[str, Refusal] = {text: _make(reason) for text, reason in FAILURE_REASONS.items()}
"""By the text of a failure; any other is the request's own fault."""

TOO_OFTEN = _make(RATE_LIMITED)
UNREADABLE = Refusal(_Code.INVALID_ARGUMENT, "unreadable", "the message cannot be read")
LATE = Refusal(_Code.RESOURCE_EXHAUSTED, "late", "the message took too long to come; nothing was done")
DUPLICATE = Refusal(_Code.ALREADY_EXISTS, "duplicate", "duplicate request")
TOO_SLOW = Refusal(_Code.RESOURCE_EXHAUSTED, "too-slow", "the events were not taken; go on from where you were")
ENDING = Refusal(_Code.UNAVAILABLE, "ending", "the server ends; go on at another one from where you were", _PAUSE_S)
DEFECT = Refusal(_Code.INTERNAL, "defect", "internal error; it is not known whether this was done")
OTHERS = (TOO_OFTEN, _make(failure("")), UNREADABLE, LATE, DUPLICATE, TOO_SLOW, ENDING, DEFECT)
"""Those that are no answer's."""

_TOLD = {kind: (refusal, refusal.as_metadata()) for kind, refusal in REFUSALS.items()}


def bad_request(words: str) -> Refusal:
    """Return what a request is told that is wrong in itself."""
    return _make(failure(words))


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
