"""What a snapshot says of made-up counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.live import ProductView, Snapshot, WorkerView, quantile, summarize
from flashsale.metrics import (
    BATCH,
    CONNECTIONS,
    LATENCY,
    QUEUE,
    REQUESTS,
    ROUND_TRIP,
    Board,
    Histogram,
    Observations,
    Reading,
    place_of,
)

PRODUCT = ProductView(product_id="p", units=100, remaining=3, sold=90, held=7, state="open", lag=12)


def summary(
    before: list[Reading], after: list[Reading], *, elapsed_s: float = 1.0, products: list[ProductView] | None = None
) -> Snapshot:
    return summarize(before, after, elapsed_s=elapsed_s, now_s=112.5, at=1_764_000_000.0004, products=products)


def test_two_workers_are_added_up_over_the_time_between_two_readings() -> None:
    board = Board(2)
    first, second = board.slots
    for number, slot in enumerate(board.slots):
        slot.begin(123 + number, 100.0)
        slot.words[place_of(REQUESTS, "purchase", "SUCCESS")] = 10
        slot.words[place_of(REQUESTS, "reserve", "BUSY")] = 1
        slot.words[place_of(CONNECTIONS, "tcp")] = 10 * (number + 1)
        slot.words[place_of(CONNECTIONS, "http")] = number
        slot.words[place_of(QUEUE)] = 6
        Observations(slot, LATENCY).add(10.0)  # long ago
    before = board.read()
    first.words[place_of(REQUESTS, "purchase", "SUCCESS")] += 4
    first.words[place_of(REQUESTS, "confirm", "SUCCESS")] += 4
    second.words[place_of(REQUESTS, "purchase", "SOLD_OUT")] += 20
    second.words[place_of(REQUESTS, "status", "OK")] += 1_000  # is no attempt
    for _ in range(8):
        Observations(first, LATENCY).add(0.001)
    for _ in range(2):
        Observations(first, BATCH).add(4)
        Observations(second, BATCH).add(10)
    Observations(first, ROUND_TRIP).add(0.0004)
    Observations(first, ROUND_TRIP).add(0.0008)
    found = summary(before, board.read(), elapsed_s=2.0, products=[PRODUCT])
    assert found == Snapshot(
        at=1_764_000_000.0,
        rate=14.0,
        outcomes={"SUCCESS": 4.0, "SOLD_OUT": 10.0, "BUSY": 0.0},
        totals={"SUCCESS": 28, "SOLD_OUT": 20, "BUSY": 2},
        p50_ms=0.75,
        p99_ms=0.995,
        connections={"tcp": 30, "http": 1, "grpc": 0},
        queue=12,
        batch=7.0,
        store_up=True,
        store_round_trip_ms=0.6,
        products=[PRODUCT],
        workers=[
            WorkerView(number=0, pid=123, rate=4.0, p99_ms=0.995, connections=10, up_s=12.5),
            WorkerView(number=1, pid=124, rate=10.0, p99_ms=None, connections=21, up_s=12.5),
        ],
    )


def test_when_nothing_happened_there_is_no_latency_and_when_the_store_is_away_there_are_no_products() -> None:
    board = Board(1)
    board.slots[0].begin(1, 112.5)
    found = summary(board.read(), board.read())
    assert (found.rate, found.outcomes, found.totals, found.batch) == (0.0, {}, {}, 0.0)
    assert found.p50_ms is found.p99_ms is found.store_round_trip_ms is found.workers[0].p99_ms is None
    assert (found.store_up, found.products) == (False, [])
    assert summary([], [], products=[]).store_up


def test_a_worker_that_was_not_there_before_has_counted_all_it_has_since() -> None:
    board = Board(2)
    board.slots[0].begin(1, 100.0)
    before = board.read()
    board.slots[1].begin(2, 112.0)
    board.slots[1].words[place_of(REQUESTS, "purchase", "SUCCESS")] = 3
    found = summary(before, board.read())
    assert [(worker.number, worker.rate, worker.up_s) for worker in found.workers] == [(0, 0, 12.5), (1, 3, 0.5)]


def histogram(*counts: float) -> Histogram:
    return Histogram((1.0, 2.0, 4.0), counts, 0.0)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((10, 0, 0, 0), 0.5, 0.5),
        ((0, 10, 0, 0), 0.5, 1.5),
        ((5, 5, 0, 0), 0.5, 1.0),
        ((5, 0, 5, 0), 0.75, 3.0),
        ((0, 0, 100, 0), 0.99, 3.98),
        ((1, 0, 0, 9), 0.5, 4.0),  # somewhere beyond
    ],
)
def test_a_quantile_is_interpolated(counts: tuple[int, ...], share: float, expected: float | None) -> None:
    found = quantile(histogram(*counts), share)
    assert found is None if expected is None else found == pytest.approx(expected)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=100), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_one_it_is_about(waited_s: list[float], share: float) -> None:
    bounds = LATENCY.bounds
    counts = [0] * (len(bounds) + 1)
    for waited in waited_s:
        counts[sum(waited > bound for bound in bounds)] += 1
    found = quantile(Histogram(bounds, counts, sum(waited_s)), share)
    assert found is not None
    up_to = sum(waited <= found for waited in waited_s if waited <= found)
    high = min((bound for bound in bounds if bound >= found), default=bounds[-1])
    assert sum(waited <= high for waited in waited_s) >= share * len(waited_s) - 1e-6
    assert up_to <= len(waited_s)
