"""What every door asks of a request, whatever it was written in; what the wire alone can say is in test_wire.py."""

import pytest

from flashsale.domain.answers import HOLD_NOT_FOUND, PRODUCT_NOT_FOUND
from flashsale.domain.checks import MISSING_CODE, MISSING_FIELD, check, check_purchase
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Reserve, Subscribe

CODE = f"{'A' * 22}.p"

GOOD: list[BuyerRequest | Subscribe] = [
    Purchase("p", "u"),
    Purchase("é" * 128, "é" * 128, 1_000_000, "r" * 128, 10_000_000),
    Reserve("p", "u", 1, "r", 1, 2_592_000),
    Confirm(CODE),
    Confirm(CODE, "r"),
    Cancel(CODE),
    Extend(CODE, 1),
    GetStatus("p"),
    Subscribe(),
    Subscribe("p", 0, "e"),
]
BAD: list[tuple[BuyerRequest | Subscribe, str]] = [
    (Purchase("", "u"), MISSING_FIELD),
    (Purchase("p", ""), MISSING_FIELD),
    (Purchase("p", "é" * 129), "invalid user_id"),
    (Purchase("p", "a\0"), "invalid user_id"),
    (Purchase("p", "u", 0), "invalid quantity"),
    (Purchase("p", "u", 1_000_001), "invalid quantity"),
    (Purchase("p", "u", 1, ""), "invalid request_id"),
    (Purchase("p", "u", 1, "\0"), "invalid request_id"),
    (Purchase("p", "u", 1, "r" * 129), "invalid request_id"),
    (Purchase("p", "u", 1, None, 0), "invalid item_id"),
    (Reserve("p", "u", 1, None, 10_000_001), "invalid item_id"),
    (Reserve("p", "u", 1, None, None, 0), "invalid hold_seconds"),
    (Reserve("p", "u", 1, None, None, 2_592_001), "invalid hold_seconds"),
    (Purchase("é" * 129, "u"), PRODUCT_NOT_FOUND),
    (Confirm(""), MISSING_CODE),
    (Confirm(CODE, ""), "invalid request_id"),
    (Extend(CODE, 0), "invalid hold_seconds"),
    (Cancel("A.p"), HOLD_NOT_FOUND),
    (Cancel("A" * 22), HOLD_NOT_FOUND),
    (Cancel(CODE + "p" * 256), HOLD_NOT_FOUND),
    (GetStatus(""), MISSING_FIELD),
    (GetStatus("p" * 257), PRODUCT_NOT_FOUND),
    (Subscribe(None, 1), "invalid after_version"),
    (Subscribe("p" * 257), PRODUCT_NOT_FOUND),
]


@pytest.mark.parametrize("request_", GOOD, ids=repr)
def test_what_is_right_passes(request_: BuyerRequest | Subscribe) -> None:
    assert check(request_) == ""


@pytest.mark.parametrize(("request_", "text"), BAD)
def test_what_is_wrong_is_told(request_: BuyerRequest | Subscribe, text: str) -> None:
    assert check(request_) == text
    if isinstance(request_, Purchase | Reserve):
        assert check_purchase(request_) == text
