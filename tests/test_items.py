"""Names and pictures of items: the same ones whoever asks, and well-formed whatever the sale is called."""

import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from flashsale.domain.items import draw, make_item

SALE = "sale_1640995200_a1b2c3d4"
SVG = "{http://www.w3.org/2000/svg}"


def test_an_item_is_the_same_one_for_ever() -> None:
    item = make_item(SALE, 4711)
    assert item == make_item(SALE, 4711)
    assert (item.number, item.name, item.colour) == (4711, "Polished Easel No. 5", "#759b7f")


def test_ten_thousand_items_have_thousands_of_names_and_colours() -> None:
    items = [make_item(SALE, number) for number in range(1, 10_001)]
    assert len({item.name for item in items}) > 9_000
    assert len({item.colour for item in items}) > 9_000
    assert len({draw(item) for item in items}) == 10_000


def test_another_sale_has_other_items() -> None:
    others = [make_item("sale_1640998800_a1b2c3d4", number).name for number in range(1, 101)]
    assert sum(make_item(SALE, number).name == name for number, name in enumerate(others, 1)) < 5


@given(st.text(max_size=40), st.integers(1, 10_000_000))
def test_a_picture_is_a_small_svg_that_says_what_it_shows(product_id: str, number: int) -> None:
    item = make_item(product_id, number)
    text = draw(item)
    assert len(text) < 2_000
    picture = ET.fromstring(text)
    assert picture.tag == f"{SVG}svg"
    assert [words.text for words in picture.iter(f"{SVG}text")] == [item.name, f"#{number}"]
    assert re.fullmatch("#[0-9a-f]{6}", item.colour)
    for disc in picture.iter(f"{SVG}circle"):
        assert -50 < int(disc.get("cx", "")) < 290
        assert 10 < int(disc.get("r", "")) < 60


def test_writing_can_be_read_on_any_colour() -> None:
    for number in range(1, 300):
        values = bytes.fromhex(make_item(SALE, number).colour[1:])
        assert all(72 <= value < 200 for value in values)
