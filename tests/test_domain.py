"""The checks of what an operator types, and the vocabulary of answers."""

from typing import get_args

import pytest

from flashsale.domain.answers import Answer, Cancelled, Changed, Held, ProductStatus, SoldOut, Success, last_version
from flashsale.domain.bounds import ID_SIZE_MAX, STOCK_MAX, TIME_MAX
from flashsale.domain.counters import Counters
from flashsale.domain.events import PurchaseEvent, SoldOutEvent
from flashsale.domain.ids import (
    TOKEN_LENGTH,
    OrderRef,
    check_product_id,
    make_code,
    make_order_id,
    parse_order_id,
    token_of,
)
from flashsale.domain.requests import Cancel, Confirm, Extend, Refund
from flashsale.domain.sale import Change, Kind
from flashsale.errors import (
    ConfigError,
    FlashsaleError,
    InvalidValueError,
    ProductNotFoundError,
)
from flashsale.terms import check_stock


@pytest.mark.parametrize(
    "value",
    [
        "iphone15",
        "a",
        "x" * ID_SIZE_MAX,
        "é" * (ID_SIZE_MAX // 2),
        "книга",
        "😀",
        "a b",
        "a:b",
        "{a}",
        "*",
        "-1",
        "'\"",
    ],
)
def test_product_id_is_taken_as_it_is(value: str) -> None:
    assert check_product_id(value) == value


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", "the product id is empty"),
        ("x" * 257, "the product id is 257 bytes long; at most 256 are allowed"),
        ("é" * 129, "the product id is 258 bytes long; at most 256 are allowed"),
        ("a\nb", "the product id holds control characters or line breaks"),
        ("a\x00b", "the product id holds control characters or line breaks"),
        ("\x1b[31m", "the product id holds control characters or line breaks"),
        ("a\x7f", "the product id holds control characters or line breaks"),
        ("a\u2028b", "the product id holds control characters or line breaks"),
        ("\u202eevil", "the product id holds control characters or line breaks"),
        ("a\udcff", "the product id is not valid UTF-8"),
    ],
)
def test_product_id_is_refused_with_a_sentence(value: str, sentence: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_product_id(value)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("value", "stock"),
    [("0", 0), ("1", 1), ("100", 100), ("007", 7), (str(STOCK_MAX), STOCK_MAX), ("99999999999999", 10**14 - 1)],
)
def test_stock_is_read(value: str, stock: int) -> None:
    assert check_stock(value) == stock


@pytest.mark.parametrize(
    "value",
    ["", " ", "abc", "-1", "+1", "1.5", "1e3", "1_000", " 1", "1\n", "0x10", "½", "٣", "100000000000000", "9" * 5000],
)
def test_stock_is_refused_with_a_sentence(value: str) -> None:
    with pytest.raises(InvalidValueError, match=r"is not a stock: give a whole number of units from 0 to "):
        check_stock(value)


def test_each_answer_and_event_has_a_tag_of_its_own() -> None:
    for union in (Answer, PurchaseEvent | SoldOutEvent):
        kinds = get_args(union)
        assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds) > 1


# Codes and order ids

ORDER = OrderRef("a-b.c", "0f3c9a21", 0xABC, 1_760_000_000_000)


def test_code_carries_its_product() -> None:
    code = make_code("A" * TOKEN_LENGTH, "a.b-c")
    assert code == "A" * 22 + ".a.b-c"
    assert token_of(code) == "A" * 22
    for request in (Confirm(code), Cancel(code), Extend(code, 5)):
        assert (request.product_id, request.user_id) == ("a.b-c", "")
    assert Confirm("no code").product_id == ""
    assert token_of("no code") == "no code"


def test_order_id_is_read_and_written() -> None:
    order_id = make_order_id(ORDER)
    assert order_id == "199c82cc000-0000000abc-0f3c9a21-a-b.c"
    assert parse_order_id(order_id) == ORDER
    assert Refund(order_id).product_id == "a-b.c"
    assert Refund("none").product_id == ""


def test_order_ids_sort_by_time_and_then_by_version() -> None:
    moments = [(1, 10**13), (2, 10), (2, 11), (10, 9), (2**40, 1)]
    ids = [make_order_id(OrderRef("p", "ffffffff", version, at_ms)) for at_ms, version in moments]
    assert sorted(ids) == ids


@pytest.mark.parametrize("edge", [OrderRef("p", "", STOCK_MAX, 0), OrderRef("p", "", 0, TIME_MAX * 1000)], ids=repr)
def test_order_id_of_the_last_version_and_of_the_last_moment(edge: OrderRef) -> None:
    assert parse_order_id(make_order_id(edge)) == edge


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "199c82cc000-0000000abc-0f3c9a21",
        "199c82cc000-abc-0f3c9a21-p",
        "99c82cc000-0000000abc-0f3c9a21-p",
        "199C82CC000-0000000abc-0f3c9a21-p",
        "+99c82cc000-0000000abc-0f3c9a21-p",
        "0x9c82cc000-0000000abc-0f3c9a21-p",
        "199c82_c000-0000000abc-0f3c9a21-p",
        "199c82cc000 -0000000abc-0f3c9a21-p",
        make_order_id(OrderRef("p", "0f3c9a21", STOCK_MAX + 1, 1)),
        make_order_id(OrderRef("p", "0f3c9a21", 1, TIME_MAX * 1000 + 1)),
        make_order_id(OrderRef("p", "0f3c9a21", 2**64, 1)),
        "f" * 5000 + "-0000000abc-0f3c9a21-p",
    ],
)
def test_text_that_is_no_order_id(text: str) -> None:
    assert parse_order_id(text) is None


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Success(1).remaining_stock = 2  # type: ignore[misc]


def test_errors_are_sentences_of_one_family() -> None:
    assert issubclass(ConfigError, InvalidValueError)
    assert issubclass(InvalidValueError, FlashsaleError)
    assert issubclass(InvalidValueError, ValueError)
    error = ProductNotFoundError("x")
    assert str(error) == "Product 'x' not found"
    assert error.product_id == "x"


def test_counters_add_up_what_changes_say() -> None:
    def change(kind: Kind, version: int, quantity: int = 0, ref: int = 0) -> Change:
        return Change(kind=kind, version=version, at_ms=1, remaining=0, quantity=quantity, ref=ref)

    sums = Counters()
    told = [
        change(Kind.OPENED, 1, 20, 3),
        change(Kind.SOLD, 2, 2),
        change(Kind.HELD, 3, 4),
        change(Kind.EXTENDED, 4, 4, 3),
        change(Kind.HELD, 5, 1),
        change(Kind.CONFIRMED, 6, 4, 3),
        change(Kind.HELD, 7, 5),
        change(Kind.CANCELLED, 8, 1, 5),
        change(Kind.EXPIRED, 9, 5, 7),
        change(Kind.REFUNDED, 10, 2, 2),
        change(Kind.RESTOCKED, 11, 10),
        change(Kind.HELD, 12, 2),
    ]
    for one in told:
        sums.follow(one)
    assert sums == Counters(12, 20, 10, 3 + 4, 2, "open")
    assert (sums.units, sums.remaining) == (30, 21)
    for kind, state in ((Kind.PAUSED, "paused"), (Kind.RESUMED, "open"), (Kind.CLOSED, "closed")):
        sums.follow(change(kind, sums.version + 1))
        assert sums.state == state
    assert sums.remaining == 21


def test_the_last_version_is_that_of_the_last_change_that_is_told_of() -> None:
    assert last_version([]) == last_version([SoldOut(), ProductStatus(1, 2, 3, "open", 9)]) == 0
    assert last_version([Success(1, "o", 4), Cancelled(1, 7), Held("c", 1, 1, 5), SoldOut()]) == 7
    assert last_version([Changed(1, 3)]) == 3
