"""The checks of what an operator types, and the vocabulary of answers."""

from typing import get_args

import pytest

from flashsale.domain import (
    ID_SIZE_MAX,
    STOCK_MAX,
    Answer,
    Event,
    Success,
    check_product_id,
    check_stock,
)
from flashsale.errors import (
    ConfigError,
    FlashsaleError,
    InvalidValueError,
    ProductNotFoundError,
)


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
    [("0", 0), ("1", 1), ("100", 100), ("007", 7), (str(STOCK_MAX), STOCK_MAX), ("9007199254740991", 2**53 - 1)],
)
def test_stock_is_read(value: str, stock: int) -> None:
    assert check_stock(value) == stock


@pytest.mark.parametrize(
    "value",
    ["", " ", "abc", "-1", "+1", "1.5", "1e3", "1_000", " 1", "1\n", "0x10", "½", "٣", "9007199254740992", "9" * 5000],
)
def test_stock_is_refused_with_a_sentence(value: str) -> None:
    with pytest.raises(InvalidValueError, match=r"is not a stock: give a whole number of units from 0 to "):
        check_stock(value)


def test_each_answer_and_event_has_a_tag_of_its_own() -> None:
    for union, count in ((Answer, 6), (Event, 2)):
        assert len({kind.__struct_config__.tag for kind in get_args(union)}) == count


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
