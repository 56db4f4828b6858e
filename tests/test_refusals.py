"""Why a request was not fulfilled: each answer that fulfils nothing has its reason, and no two share a word."""

from typing import get_args

import pytest

from flashsale.domain.answers import (
    HOLD_NOT_FOUND,
    PRODUCT_NOT_FOUND,
    Answer,
    Changed,
    Failed,
    Held,
    ProductStatus,
    Subscribed,
    Success,
    Swept,
)
from flashsale.domain.refusals import FAILURE_REASONS, RATE_LIMITED, REASONS, Reason, failure

FULFILLED = {Success, Held, ProductStatus, Subscribed}
NO_BUYERS = {Changed, Swept}


def test_every_answer_that_fulfils_nothing_has_a_reason() -> None:
    assert set(REASONS) | {Failed} | FULFILLED | NO_BUYERS == set(get_args(Answer))
    assert not set(REASONS) & ({Failed} | FULFILLED | NO_BUYERS)


def test_no_two_reasons_share_their_word() -> None:
    reasons = [*REASONS.values(), *FAILURE_REASONS.values(), RATE_LIMITED, failure("invalid quantity")]
    assert len({reason.kind for reason in reasons}) == len(reasons)
    assert len({reason.words for reason in reasons}) == len(reasons)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (PRODUCT_NOT_FOUND, "product-not-found"),
        (HOLD_NOT_FOUND, "hold-not-found"),
        ("invalid quantity", "bad-request"),
        ("", "bad-request"),
    ],
)
def test_a_failure_goes_by_its_text(words: str, kind: str) -> None:
    assert failure(words) == Reason(kind, words)
