"""Counters in memory that the workers of a server share."""

import os

import pytest

from flashsale.metrics import (
    BATCH,
    CONNECTIONS,
    LATENCY,
    METRICS,
    NOTHING,
    QUEUE,
    REQUESTS,
    Board,
    Observations,
    Type,
    place_of,
    total,
)

SOLD = place_of(REQUESTS, "purchase", "SUCCESS")


def test_each_number_has_a_place_of_its_own() -> None:
    places = [
        place + offset
        for metric in METRICS
        for place in [place_of(metric, *metric.series[0])]
        for offset in range(metric.word_count)
    ]
    assert len(places) == len(set(places))
    assert [place_of(CONNECTIONS, door) - place_of(CONNECTIONS, "tcp") for door in ("tcp", "http", "grpc")] == [0, 1, 2]
    with pytest.raises(ValueError, match="tuple"):
        place_of(CONNECTIONS, "telnet")


def test_names_are_what_prometheus_wants() -> None:
    for metric in METRICS:
        assert metric.name.startswith("flashsale_")
        assert metric.name.endswith("_total") == (metric.type is Type.COUNTER)
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert bool(metric.bounds) == (metric.type is Type.HISTOGRAM)


def test_what_a_child_counts_is_read_here() -> None:
    board = Board(3)
    for number in (0, 2):
        pid = os.fork()
        if pid == 0:
            slot = board.slots[number]
            slot.begin(os.getpid(), 100.0 + number)
            slot.words[SOLD] += number + 1
            Observations(slot, BATCH).add(4)
            os._exit(0)
        os.waitpid(pid, 0)
    readings = board.read()
    assert [reading.number for reading in readings] == [0, 2]
    assert [reading.begun_s for reading in readings] == [100.0, 102.0]
    assert len({reading.pid for reading in readings} - {os.getpid()}) == 2
    everything = total(readings)
    assert everything.value(REQUESTS, "purchase", "SUCCESS") == 4
    assert everything.values(REQUESTS)["purchase", "SUCCESS"] == 4
    assert sum(everything.values(REQUESTS).values()) == 4
    batches = everything.histogram(BATCH)
    assert (batches.counts[2], batches.count, batches.sum) == (2, 2, 8)
    assert len(batches.counts) == len(batches.bounds) + 1
    assert everything.histogram(LATENCY).count == 0


def test_a_worker_that_is_started_again_goes_on_counting_and_has_nothing_at_the_moment() -> None:
    slot = Board(1).slots[0]
    slot.begin(11, 1.0)
    slot.words[SOLD] = 5
    slot.words[place_of(QUEUE)] = 7
    slot.words[place_of(CONNECTIONS, "grpc")] = 3
    Observations(slot, LATENCY).add(0.5)
    before = slot.read()
    slot.begin(22, 2.0)
    after = slot.read()
    assert (after.pid, after.begun_s) == (22, 2.0)
    assert (after.value(QUEUE), after.value(CONNECTIONS, "grpc")) == (0, 0)
    assert after.value(REQUESTS, "purchase", "SUCCESS") == 5
    assert after.histogram(LATENCY) == before.histogram(LATENCY)
    slot.words[SOLD] += 1
    assert slot.read().since(before).value(REQUESTS, "purchase", "SUCCESS") == 1


def test_nothing_is_what_nobody_adds_up_to() -> None:
    assert total([]) == NOTHING
    assert Board(2).read() == []
