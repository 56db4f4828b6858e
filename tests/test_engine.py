"""What MemoryEngine has beyond the contract: its hands for tests, and what it keeps to itself."""

import pytest

from flashsale.domain import NOT_FOUND, SOLD_OUT, Batch, GetStatus, ProductStatus, Purchase, Success
from flashsale.engine import MemoryEngine


def batch(sequence: int, *users: str, fenced: bool = False) -> Batch:
    return Batch("p", [Purchase("p", user) for user in users], sequence, fenced=fenced)


def test_create_again_forgets_the_buyers() -> None:
    engine = MemoryEngine()
    engine.create("p", 2)
    assert engine.decide(batch(1, "a")) == [Success(1)]
    engine.create("p", 5)
    assert engine.buyers("p") == []
    assert engine.decide(batch(2, "b")) == [Success(4)]


def test_create_again_keeps_the_sequence() -> None:
    engine = MemoryEngine()
    engine.create("p", 2)
    assert engine.decide(batch(1, "a")) == [Success(1)]
    engine.create("p", 5)
    assert engine.decide(batch(1, "a")) == [Success(1)]  # a resend of what was decided before
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
    assert first == [Success(0), SOLD_OUT]
    engine.create("p", 9)
    assert engine.decide(batch(1, "a", "b")) == first


async def test_commit_decides_each_batch_in_order() -> None:
    engine = MemoryEngine()
    engine.create("p", 1)
    other = Batch("q", [GetStatus("q")], 2)
    assert await engine.commit([batch(1, "a"), other], timeout_s=1) == [[Success(0)], [NOT_FOUND]]
    assert await engine.commit([], timeout_s=1) == []
    assert engine.decide(Batch("p", [GetStatus("p")], 3)) == [ProductStatus(0, 1)]
