import pytest
from msgspec import structs

from bench.books import Books
from flashsale.domain.answers import ProductStatus
from flashsale.domain.sale import Change, Kind

# 10 units: one is bought; of two holds of 2 units one is confirmed and the other expires.
HONEST = [
    Change(kind=Kind.OPENED, version=7, at_ms=0, remaining=10, quantity=10),
    Change(kind=Kind.SOLD, version=8, at_ms=0, remaining=9, user_id="ann", quantity=1),
    Change(kind=Kind.HELD, version=9, at_ms=0, remaining=7, user_id="bob", quantity=2, expires_at=5),
    Change(kind=Kind.HELD, version=10, at_ms=0, remaining=5, user_id="eve", quantity=2, expires_at=5),
    Change(kind=Kind.CONFIRMED, version=11, at_ms=0, remaining=5, user_id="bob", quantity=2, ref=9),
    Change(kind=Kind.EXPIRED, version=12, at_ms=0, remaining=7, user_id="eve", quantity=2, ref=10),
]
STATUS = ProductStatus(remaining_stock=7, sold=3)
BUYERS = ["bob", "ann"]


def changed(position, **values):
    return [structs.replace(change, **values) if i == position else change for i, change in enumerate(HONEST)]


def test_an_honest_sale_adds_up():
    books = Books(HONEST)
    assert books.faults(10, STATUS, BUYERS) == []
    assert (list(books.orders), list(books.holds), list(books.ends)) == ([8, 11], [9, 10], [9, 10])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (HONEST[:-1], "the store counts 7 left, 3 sold and 0 held, its ledger 5, 3 and 2"),
        (HONEST[1:], "the ledger opens 0 times"),
        (changed(3, version=11), "versions are missing or told twice"),
        (changed(1, remaining=10), "1 changes leave another stock"),
        (changed(4, user_id="eve"), "ends of holds belong to no such hold"),
        (changed(5, ref=9), "holds ended twice"),
        (changed(5, kind=Kind.REFUNDED), "1 changes are refunded, which nobody asked for"),
        (changed(1, user_id="bob"), "the list of 2 buyers is not that of the 2 orders"),
    ],
)
def test_what_does_not_add_up_is_told(changes, words):
    assert any(words in fault for fault in Books(changes).faults(10, STATUS, BUYERS))


def test_units_that_are_gone_or_sold_twice_are_told():
    assert "7 + 3 + 0 units left, sold and held are not the 11 of the start" in Books(HONEST).faults(11, STATUS, BUYERS)
    assert any("OVERSOLD" in fault for fault in Books(HONEST).faults(2, STATUS, BUYERS))
