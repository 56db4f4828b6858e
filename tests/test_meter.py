"""What is counted of a batch: compared with counting one by one."""

from bisect import bisect_left
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.domain.answers import (
    BUSY,
    NOT_EXECUTED,
    NOT_FOUND,
    SOLD_OUT,
    Answer,
    Changed,
    Expired,
    ProductStatus,
    Success,
    Swept,
)
from flashsale.domain.batches import Ambiguous, Batch, Defective, NotExecuted, Outcome
from flashsale.domain.requests import Confirm, GetStatus, Pause, Purchase, Request, Sweep
from flashsale.meter import Meter, MeteredEngine
from flashsale.metrics import AWAY, BATCH, LATENCY, REQUESTS, RESPONSES, ROUND_TRIP, ROUNDS_FAILED, Board, Slot

NOW = 5_000.0
BUY = Purchase("p", "ann")


@pytest.fixture
def slot() -> Slot:
    """Where is counted."""
    return Board(1).slots[0]


def counted(slot: Slot) -> dict[tuple[str, ...], float]:
    return {labels: count for labels, count in slot.read().values(REQUESTS).items() if count}


def measure(slot: Slot, *pairs: tuple[Request, Answer], waited_s: Sequence[float] = ()) -> None:
    arrivals = [NOW - waited for waited in waited_s] or [NOW] * len(pairs)
    requests, answers = zip(*pairs, strict=True)
    Meter(slot, lambda: NOW).measure(requests, answers, arrivals)


def test_a_batch_of_one_kind_and_one_of_many_are_counted_alike(slot: Slot) -> None:
    measure(slot, *[(BUY, SOLD_OUT)] * 5)
    measure(slot, (BUY, SOLD_OUT), (BUY, Success(1)), (Confirm("x.p"), Expired()), (GetStatus("p"), NOT_FOUND))
    measure(slot, (GetStatus("p"), ProductStatus(1, 2)))
    assert counted(slot) == {
        ("purchase", "SOLD_OUT"): 6,
        ("purchase", "SUCCESS"): 1,
        ("confirm", "EXPIRED"): 1,
        ("status", "ERROR"): 1,
        ("status", "OK"): 1,
    }
    batches = slot.read().histogram(BATCH)
    assert (batches.count, batches.sum) == (3, 10)
    assert slot.read().histogram(LATENCY).count == 10


def test_what_the_server_and_the_operator_ask_is_not_counted(slot: Slot) -> None:
    measure(slot, (Sweep("p"), Swept(more=False)))
    measure(slot, (Pause("p"), Changed(1, 2)), (BUY, SOLD_OUT))
    assert counted(slot) == {("purchase", "SOLD_OUT"): 1}
    assert slot.read().histogram(BATCH).count == 1


def test_who_is_refused_at_once_is_counted_and_has_not_waited(slot: Slot) -> None:
    Meter(slot).refuse([BUY, Sweep("p"), BUY], [BUSY, BUSY, NOT_EXECUTED])
    assert counted(slot) == {("purchase", "BUSY"): 1, ("purchase", "UNAVAILABLE"): 1}
    assert slot.read().histogram(LATENCY).count == slot.read().histogram(BATCH).count == 0


@given(st.lists(st.integers(0, 20 * 8_192), min_size=1, max_size=40))
def test_each_is_in_the_bucket_of_what_it_waited(ticks: list[int]) -> None:
    slot = Board(1).slots[0]
    waited_s = [tick / 8_192 for tick in sorted(ticks, reverse=True)]  # no sum or difference of these is rounded
    measure(slot, *[(BUY, SOLD_OUT)] * len(waited_s), waited_s=waited_s)
    expected = [0] * (len(LATENCY.bounds) + 1)
    for waited in waited_s:
        expected[bisect_left(LATENCY.bounds, waited)] += 1
    found = slot.read().histogram(LATENCY)
    assert (found.counts, found.sum) == (expected, sum(waited_s))


@pytest.mark.parametrize(
    ("waited_s", "bucket"), [(0.0, 0), (0.0002, 0), (0.0003, 1), (0.9, 12), (1.1, 13), (9.9, 15), (11, 16)]
)
def test_the_buckets(slot: Slot, waited_s: float, bucket: int) -> None:
    measure(slot, (BUY, SOLD_OUT), waited_s=[waited_s])
    assert [place for place, count in enumerate(slot.read().histogram(LATENCY).counts) if count] == [bucket]


def test_responses_are_counted_by_class(slot: Slot) -> None:
    meter = Meter(slot)
    for status in (200, 201, 404, 503, 304, 100):
        meter.respond(status)
    found = {labels[0]: count for labels, count in slot.read().values(RESPONSES).items()}
    assert found == {"1xx": 1, "2xx": 2, "3xx": 1, "4xx": 1, "5xx": 1}


class Told:
    """An engine that does as it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        return self.outcomes


async def test_rounds_are_measured_and_a_store_that_decides_nothing_is_away(slot: Slot) -> None:
    told = Told()
    engine = MeteredEngine(told, slot)
    silent, refused, broken = Ambiguous("silent"), NotExecuted("refused"), Defective("broken")
    steps: list[tuple[list[Outcome], bool]] = [
        ([[SOLD_OUT]], False),
        ([refused, silent], True),
        ([refused, [SOLD_OUT]], False),
        ([silent], True),
        ([broken], False),
    ]
    for outcomes, is_away in steps:
        told.outcomes = outcomes
        assert await engine.commit([], timeout_s=1) is outcomes
        assert slot.read().value(AWAY) == is_away
    assert slot.read().value(ROUNDS_FAILED) == 2
    round_trips = slot.read().histogram(ROUND_TRIP)
    assert round_trips.count == 3
    assert 0 < round_trips.sum < 1
