import asyncio

import pytest

from bench.buyer import Buyer, Frames, Tally, clock_ns
from flashsale.domain.answers import BUSY, UNKNOWN, Failed, SoldOut, Success
from flashsale.domain.requests import Purchase
from flashsale.wire import FrameReader, MessageType, decode_request, encode_answer

ANSWERS = b"".join(
    encode_answer(MessageType.PURCHASE, answer)
    for answer in [Success(0), Success(12_345), SoldOut(), BUSY, UNKNOWN, Failed("unavailable"), SoldOut()]
)
COUNTS = {"SUCCESS": 2, "SOLD_OUT": 2, "BUSY": 1, "UNKNOWN: outcome unknown": 1, "ERROR: unavailable": 1}


class Line(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = b""

    def is_closing(self):
        return False

    def write(self, data):
        self.written += data


def connected(product_id="iphone15"):
    tally, line = Tally(1), Line()
    buyer = Buyer(42, Frames(product_id), tally)
    buyer.connection_made(line)
    return buyer, tally, line


def requests_in(data):
    reader = FrameReader()
    requests = [decode_request(frame) for frame in reader.feed(data)]
    assert not reader.incomplete
    return requests


@pytest.mark.parametrize("chunk", [1, 2, 7, 26, 1_000])
def test_answers_are_counted_however_they_are_cut(chunk):
    buyer, tally, _ = connected()
    buyer.start(7, 7)
    for start in range(0, len(ANSWERS), chunk):
        buyer.data_received(ANSWERS[start : start + chunk])
    assert tally.counts() == COUNTS
    assert sum(tally.latencies_us.values()) == 7
    assert tally.finished.is_set()


def test_the_closed_loop_keeps_its_depth_and_ends_after_its_count():
    buyer, tally, line = connected('né"w')
    buyer.start(3, 250)
    while not tally.finished.is_set():
        assert buyer.waiting_count == min(3, 250 - tally.counts().get("SOLD_OUT", 0))
        buyer.data_received(encode_answer(MessageType.PURCHASE, SoldOut()))
    requests = requests_in(line.written)
    assert requests[:2] == [Purchase('né"w', f"user_00042_{number:08d}") for number in (0, 1)]
    assert len({request.user_id for request in requests}) == len(requests) == 250


def test_request_ids_are_as_long_as_uuids_and_never_the_same():
    frames = Frames("p", request_ids=True)
    requests = requests_in(frames.block(42, 0) + frames.block(42, 1) + frames.block(43, 0))
    assert len(frames.block(42, 0)) == 100 * frames.size
    assert requests[101] == Purchase("p", "user_00042_00000101", request_id="request-0f8fad5b-d9cb-00042_00000101")
    assert {len(request.request_id) for request in requests} == {36}
    assert len({request.request_id for request in requests}) == len(requests) == 300


def test_latency_counts_from_the_moment_that_was_intended():
    buyer, tally, _ = connected()
    buyer.send(1, clock_ns() - 5_000_000_000)
    buyer.data_received(encode_answer(MessageType.PURCHASE, SoldOut()))
    (latency_us,) = tally.latencies_us
    assert 5_000_000 <= latency_us < 6_000_000


def test_a_lost_connection_is_counted_for_every_request():
    buyer, tally, _ = connected()
    buyer.start(4, 10)
    buyer.data_received(encode_answer(MessageType.PURCHASE, SoldOut()))
    buyer.connection_lost(None)
    assert tally.counts() == {"SOLD_OUT": 1, "CONNECTION_LOST": 4, "NOT_SENT": 5}
    assert tally.finished.is_set()


def test_a_refused_connection_is_counted_as_busy():
    buyer, tally, _ = connected()
    buyer.start(1, 3)
    buyer.data_received(encode_answer(MessageType.NOTICE, BUSY))
    buyer.connection_lost(None)
    assert tally.counts() == {"BUSY": 1, "NOT_SENT": 2}
