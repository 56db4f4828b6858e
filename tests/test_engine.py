"""What MemoryEngine has beyond the contract: its hands for tests, and what it keeps to itself."""

import pytest

from flashsale.domain.answers import NOT_FOUND, SOLD_OUT, Held, ProductStatus, Success
from flashsale.domain.batches import Batch, Outcome
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.requests import Confirm, GetStatus, Purchase, Reserve
from flashsale.domain.sale import PLAIN, Change, Kind
from flashsale.memory import MemoryEngine


def batch(sequence: int, *users: str, fenced: bool = False) -> Batch:
    return Batch("p", [Purchase("p", user) for user in users], sequence, fenced=fenced)


def sold(remaining: int, version: int) -> Success:
    return Success(remaining, make_order_id(OrderRef("p", "00000000", version, 0)), version)


def test_create_again_forgets_the_buyers() -> None:
    engine = MemoryEngine()
    engine.create("p", 2)
    assert engine.decide(batch(1, "a")) == [sold(1, 2)]
    engine.create("p", 5)
    assert engine.buyers("p") == []
    assert engine.decide(batch(2, "b")) == [sold(4, 4)]  # the versions go on


def test_create_again_keeps_the_sequence() -> None:
    engine = MemoryEngine()
    engine.create("p", 2)
    assert engine.decide(batch(1, "a")) == [sold(1, 2)]
    engine.create("p", 5)
    assert engine.decide(batch(1, "a")) == [sold(1, 2)]  # a resend of what was decided before
    assert engine.buyers("p") == []


def test_delete_forgets_everything_and_may_be_repeated() -> None:
    engine = MemoryEngine()
    engine.delete("p")
    engine.create("p", 2)
    engine.decide(batch(7, "a"))
    engine.delete("p")
    engine.delete("p")
    with pytest.raises(KeyError):
        engine.buyers("p")
    assert engine.decide(batch(7, "a")) == [NOT_FOUND]


def test_buyers_are_a_copy() -> None:
    engine = MemoryEngine()
    engine.create("p", 2)
    engine.decide(batch(1, "a"))
    engine.buyers("p").clear()
    assert engine.buyers("p") == ["a"]


def test_answers_given_out_are_remembered_apart_from_the_stock() -> None:
    engine = MemoryEngine()
    engine.create("p", 1)
    first = engine.decide(batch(1, "a", "b"))
    assert first == [sold(0, 2), SOLD_OUT]
    engine.create("p", 9)
    assert engine.decide(batch(1, "a", "b")) == first


async def test_commit_decides_each_batch_in_order() -> None:
    engine = MemoryEngine()
    engine.create("p", 1)
    other = Batch("q", [GetStatus("q")], 2)
    assert await engine.commit([batch(1, "a"), other], timeout_s=1) == [[sold(0, 2)], [NOT_FOUND]]
    assert await engine.commit([], timeout_s=1) == []
    assert engine.decide(Batch("p", [GetStatus("p")], 3)) == [ProductStatus(0, 1, version=2)]


def test_ledger_is_a_copy() -> None:
    engine = MemoryEngine()
    engine.now_ms = 5
    engine.create("p", 2)
    opened = Change(kind=Kind.OPENED, version=1, at_ms=5, remaining=2, quantity=2, terms=PLAIN)
    assert engine.ledger("p") == [opened]
    engine.ledger("p").clear()
    assert engine.ledger("p") == [opened]


def test_stock_set_by_hand_has_no_ledger_before_its_first_change() -> None:
    engine = MemoryEngine()
    engine.set_stock("p", 2, ["x"])
    assert engine.ledger("p") == []
    assert engine.buyers("p") == ["x"]
    assert engine.decide(batch(1, "a")) == [sold(1, 2)]
    assert [change.kind for change in engine.ledger("p")] == [Kind.OPENED, Kind.SOLD]


def test_secrets_of_holds_are_made_for_each_that_is_asked_for() -> None:
    def reserve(sequence: int) -> Outcome:
        return engine.decide(Batch("p", [Reserve("p", "a")], sequence))

    engine = MemoryEngine(iter("abc").__next__)
    engine.create("p", 1)
    assert reserve(1) == [Held("a.p", 900, 0, 2)]
    assert reserve(2) == [SOLD_OUT]
    assert reserve(2) == [SOLD_OUT]
    with pytest.raises(StopIteration):
        reserve(3)
    engine = MemoryEngine()
    engine.create("p", 2)
    assert reserve(1) == [Held("0" * 21 + "1.p", 900, 1, 2)]
    engine.now_ms = 900_000
    assert reserve(2) == [Held("0" * 21 + "2.p", 1_800, 1, 4)]
    order_id = make_order_id(OrderRef("p", "00000000", 5, 900_000))
    assert engine.decide(Batch("p", [Confirm("0" * 21 + "2.p")], 3)) == [Success(1, order_id, 5)]
