"""What an answer is over HTTP: the one table of statuses (README, "HTTP")."""

from collections.abc import Mapping

from msgspec import Struct

from flashsale.domain.answers import Answer, Busy, Failed, NotOpen, SoldOut
from flashsale.domain.refusals import FAILURE_REASONS, RATE_LIMITED, REASONS, Reason, failure
from flashsale.http.replies import Reply, problem

_STATUSES = {
    "sold-out": 409,
    "item-taken": 409,
    "limit-exceeded": 429,
    "not-open": 409,
    "paused": 409,
    "closed": 410,
    "cancelled": 410,
    "expired": 410,
    "mismatch": 409,
    "busy": 503,
    "unavailable": 503,
    "unknown": 504,
    "product-not-found": 404,
    "hold-not-found": 404,
    "item-not-found": 404,
    "already-confirmed": 409,
    "rate-limited": 429,
    "bad-request": 400,
}


class Refusal(Struct, frozen=True):
    """What a request that was not fulfilled is over HTTP."""

    status: int
    kind: str
    """The end of the type of a problem, `urn:flashsale:<kind>`."""
    words: str
    retry_after_s: float = 0


def _make(reason: Reason, retry_after_s: float = 0) -> Refusal:
    return Refusal(_STATUSES[reason.kind], reason.kind, reason.words, retry_after_s or reason.retry_after_s)


REFUSALS: dict[type[Answer], Refusal] = {answer: _make(reason) for answer, reason in REASONS.items()}
"""By answer; `Failed` has its own table."""
FAILURES: dict[str, Refusal] = {text: _make(reason) for text, reason in FAILURE_REASONS.items()}
"""By the text of a failure; any other is the request's own fault."""


def refusal_of(answer: Answer) -> Refusal:
    """Return what an answer that fulfils nothing is over HTTP."""
    if isinstance(answer, Busy) and answer.retry_after_ms is not None:
        return _make(RATE_LIMITED, answer.retry_after_ms / 1000)
    if isinstance(answer, Failed):
        return _make(failure(answer.error))
    return REFUSALS[type(answer)]


def problem_of(answer: Answer) -> Reply:
    """Return an answer that fulfils nothing as a problem, with what it tells beyond its words."""
    refusal = refusal_of(answer)
    return problem(refusal.status, refusal.kind, refusal.words, retry_after_s=refusal.retry_after_s, more=_more(answer))


def _more(answer: Answer) -> Mapping[str, object] | None:
    match answer:
        case SoldOut(remaining_stock):
            return {"remaining_stock": remaining_stock}
        case NotOpen(opens_at):
            return {"opens_at": opens_at}
        case _:
            return None
