"""The connection without its socket: order, errors, the in-flight limit, the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.connection import (
    EARLY_SIZE_MAX,
    IN_FLIGHT_DEFAULT,
    TURN_COUNT_MAX,
    TURN_SIZE_MAX,
    ServerConnection,
)
from flashsale.domain.answers import BUSY, SOLD_OUT, Failed, ProductStatus, Subscribed, Success
from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import GetStatus, Purchase, Subscribe
from flashsale.wire import (
    PAYLOAD_SIZE_DEFAULT,
    ClientRequest,
    FrameReader,
    decode_answer,
    decode_feed_event,
    encode_answer,
    encode_feed_event,
    encode_frame,
    encode_request,
)


def connection(in_flight_count_max: int = IN_FLIGHT_DEFAULT) -> ServerConnection:
    return ServerConnection(payload_size_max=PAYLOAD_SIZE_DEFAULT, in_flight_count_max=in_flight_count_max)


def buy(number: int) -> bytes:
    return encode_request(Purchase("p", str(number)))


def event(number: int) -> FeedEvent:
    return FeedEvent(event="sold", product_id="p", version=number, remaining=0)


def answers(data: bytes) -> list[object]:
    """Return the answers and the events in the bytes, PINGs as their payload."""
    reader = FrameReader()
    frames = reader.feed(data)
    assert not reader.incomplete
    readers = {0x06: bytes, 0x11: decode_feed_event}
    return [readers.get(kind, decode_answer)(payload) for kind, payload in frames]


def test_request_is_handed_out_and_its_answer_echoes_the_type() -> None:
    it = connection()
    [(ticket, request)] = it.receive(encode_request(GetStatus("p")))
    assert request == GetStatus("p")
    assert it.unanswered_count == 1
    assert it.data_to_send() == b""
    it.answer(ticket, ProductStatus(1, 2))
    assert it.unanswered_count == 0
    assert it.data_to_send() == encode_answer(5, ProductStatus(1, 2))
    assert it.data_to_send() == b""


def test_answers_given_backwards_come_in_the_order_of_requests() -> None:
    it = connection()
    tickets = [ticket for ticket, _ in it.receive(b"".join(buy(number) for number in range(5)))]
    for number in (4, 2, 3, 1):
        it.answer(tickets[number], Success(number))
        assert it.data_to_send() == b""
    assert it.unanswered_count == 5
    it.answer(tickets[0], Success(0))
    assert answers(it.data_to_send()) == [Success(number) for number in range(5)]
    assert it.unanswered_count == 0


def test_ping_waits_for_the_answers_before_it() -> None:
    it = connection()
    [(ticket, _)] = it.receive(encode_frame(6, b"first") + buy(0) + encode_frame(6, b"second"))
    assert answers(it.data_to_send()) == [b"first"]
    it.answer(ticket, SOLD_OUT)
    assert answers(it.data_to_send()) == [SOLD_OUT, b"second"]


def test_errors_are_answered_in_turn_and_the_connection_stays() -> None:
    it = connection()
    requests = it.receive(
        encode_frame(0x12, b"{}")
        + encode_frame(0x01, b"")
        + buy(1)
        + encode_frame(0x01, b"{}")
        + encode_frame(0xFE, b"")
        + encode_frame(0x00, b"")
    )
    first = it.data_to_send()
    assert first == encode_answer(0x12, Failed("unknown message type")) + encode_answer(0x01, Failed("invalid json"))
    [(ticket, request)] = requests
    assert request == Purchase("p", "1")
    it.answer(ticket, BUSY)
    assert it.data_to_send() == (
        encode_answer(0x01, BUSY)
        + encode_answer(0x01, Failed("missing product_id or user_id"))
        + encode_answer(0xFE, Failed("unknown message type"))
        + encode_answer(0x00, Failed("unknown message type"))
    )
    assert not it.closing
    assert len(it.receive(buy(2))) == 1


def test_oversized_frame_is_answered_last_and_ends_the_connection() -> None:
    it = connection()
    [(ticket, _)] = it.receive(buy(1) + b"\x05\x00\x01\x00\x01" + buy(2))
    assert it.closing
    assert it.unanswered_count == 2
    assert it.data_to_send() == b""
    assert it.receive(buy(3)) == []
    it.answer(ticket, Success(0))
    assert it.data_to_send() == encode_answer(1, Success(0)) + encode_answer(5, Failed("payload too large"))
    assert it.unanswered_count == 0
    assert it.receive(buy(4)) == []
    assert it.resume() == []
    assert it.data_to_send() == b""


def test_oversized_frame_behind_the_in_flight_limit_is_answered_after_what_waits() -> None:
    it = connection(2)
    taken = it.receive(buy(0) + buy(1) + buy(2) + b"\x01\xff\xff\xff\xff")
    assert [request.user_id for _, request in taken] == ["0", "1"]
    assert it.saturated
    assert not it.closing
    assert it.receive(buy(9)) == []  # the reader takes nothing more
    it.answer(taken[0][0], Success(0))
    it.answer(taken[1][0], Success(1))
    taken = it.resume()
    assert [request.user_id for _, request in taken] == ["2"]
    assert it.closing
    assert not it.saturated
    it.answer(taken[0][0], Success(2))
    assert answers(it.data_to_send()) == [Success(0), Success(1), Success(2), Failed("payload too large")]


def test_in_flight_limit_holds_back_and_resumes_in_order() -> None:
    it = connection(2)
    taken = it.receive(b"".join(buy(number) for number in range(5)) + encode_frame(6, b"ping"))
    assert [request.user_id for _, request in taken] == ["0", "1"]
    assert it.saturated
    assert it.resume() == []  # nothing was answered yet
    assert it.saturated
    assert it.receive(buy(5)) == []  # a segment that was on its way when reading stopped
    it.answer(taken[1][0], Success(1))  # answered, but not sent: it still counts
    assert it.resume() == []
    it.answer(taken[0][0], Success(0))
    seen = ["0", "1"]
    for _ in range(10):
        taken = it.resume()
        seen += [request.user_id for _, request in taken]
        for ticket, request in taken:
            it.answer(ticket, Success(int(request.user_id)))
    assert seen == [str(number) for number in range(6)]
    assert not it.saturated
    sent = answers(it.data_to_send())
    assert sent == [*map(Success, range(5)), b"ping", Success(5)]


def test_default_in_flight_limit() -> None:
    it = connection()
    requests = it.receive(b"".join(buy(number) for number in range(IN_FLIGHT_DEFAULT + 1)))
    while it.resumable:
        requests += it.resume()
    assert len(requests) == IN_FLIGHT_DEFAULT == 1024
    assert it.saturated
    for ticket, _ in requests[:511]:
        it.answer(ticket, SOLD_OUT)
    assert not it.resumable
    it.answer(requests[511][0], SOLD_OUT)
    assert it.resumable, "half of them are answered"
    assert [request.user_id for _, request in it.resume()] == ["1024"]
    assert not it.saturated


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (encode_frame(1, b""), Failed("invalid json")),
        (encode_frame(0x77, b""), Failed("unknown message type")),
        (encode_frame(6, b""), b""),
    ],
)
def test_one_segment_of_the_smallest_frames_is_answered_turn_by_turn(frame: bytes, answer: object) -> None:
    it = connection()
    count = 10 * TURN_COUNT_MAX + 1
    assert it.receive(frame * count + frame[:3]) == []
    received = answers(it.data_to_send())
    assert received == [answer] * TURN_COUNT_MAX
    for turn in range(2, 12):
        assert (it.saturated, it.resumable, it.incomplete) == (True, True, False)
        assert it.receive(frame[:0]) == [], "bytes that still come are not their turn"
        assert it.data_to_send() == b""
        assert it.resume() == []
        received += answers(it.data_to_send())
        assert len(received) == min(turn * TURN_COUNT_MAX, count)
    assert received == [answer] * count
    assert (it.saturated, it.resumable, it.incomplete) == (False, False, True)


def test_requests_whose_turn_has_not_come_need_no_answers_to_go_on() -> None:
    it = connection(2 * TURN_COUNT_MAX)
    taken = it.receive(b"".join(buy(number) for number in range(3 * TURN_COUNT_MAX)))
    assert len(taken) == TURN_COUNT_MAX
    taken += it.resume()
    assert [request.user_id for _, request in taken] == [str(number) for number in range(2 * TURN_COUNT_MAX)]
    assert it.saturated
    assert not it.resumable, "now they wait for the answers to half of those"
    for ticket, _ in taken[:TURN_COUNT_MAX]:
        it.answer(ticket, SOLD_OUT)
    assert len(it.resume()) == TURN_COUNT_MAX
    assert not it.saturated


def test_large_pings_are_answered_turn_by_turn() -> None:
    it = connection()
    ping = encode_frame(6, b"x" * (TURN_SIZE_MAX - 1))
    it.receive(ping * 4)
    assert it.data_to_send() == ping
    for _ in range(3):
        assert it.resumable
        it.resume()
        assert it.data_to_send() == ping
    assert not it.saturated


def test_resume_without_need_does_nothing() -> None:
    it = connection()
    assert not it.saturated
    assert it.resume() == []
    it.receive(buy(0))
    assert it.resume() == []


def test_incomplete_and_received_count_follow_the_stream() -> None:
    it = connection()
    frame = buy(0)
    assert (it.incomplete, it.received_count) == (False, 0)
    for position in range(len(frame) - 1):
        assert it.receive(frame[position : position + 1]) == []
        assert (it.incomplete, it.received_count) == (True, 0)
    assert len(it.receive(frame[-1:])) == 1
    assert (it.incomplete, it.received_count) == (False, 1)


def test_stream_gives_the_same_requests_cut_at_every_offset() -> None:
    stream = buy(0) + encode_frame(6, b"x") + encode_frame(9, b"") + buy(1) + b"\x01\x00\x01\x00\x01" + buy(2)
    whole = connection()
    expected = whole.receive(stream)
    for ticket, _ in expected:
        whole.answer(ticket, SOLD_OUT)
    sent = whole.data_to_send()
    for cut in range(len(stream) + 1):
        it = connection()
        requests = it.receive(stream[:cut])
        requests += it.receive(stream[cut:])
        assert requests == expected
        for ticket, _ in requests:
            it.answer(ticket, SOLD_OUT)
        assert it.data_to_send() == sent
        assert it.closing


messages = st.lists(st.sampled_from(["buy", "status", "ping", "unknown", "broken", "missing"]), max_size=40)


def frame_and_answer(kind: str, number: int) -> tuple[bytes, object]:
    match kind:
        case "buy":
            return buy(number), Success(number)
        case "status":
            return encode_request(GetStatus(str(number))), ProductStatus(number, 0)
        case "ping":
            return encode_frame(6, str(number).encode()), str(number).encode()
        case "unknown":
            return encode_frame(0x20 + number, b"{}"), Failed("unknown message type")
        case "broken":
            return encode_frame(1, b"{"), Failed("invalid json")
        case _:
            return encode_frame(5, b"{}"), Failed("missing product_id or user_id")


def decide(request: ClientRequest) -> Success | ProductStatus:
    if isinstance(request, Purchase):
        return Success(int(request.user_id))
    assert isinstance(request, GetStatus)
    return ProductStatus(int(request.product_id), 0)


@given(messages, st.integers(1, 8), st.booleans(), st.binary(max_size=150))
def test_whatever_the_pace_no_answer_is_lost_doubled_or_out_of_turn(
    kinds: list[str], in_flight_count_max: int, oversized: bool, moves: bytes
) -> None:
    pairs = [frame_and_answer(kind, number) for number, kind in enumerate(kinds)]
    stream = b"".join(frame for frame, _ in pairs)
    expected = [answer for _, answer in pairs]
    if oversized:
        stream += b"\x01\xff\xff\xff\xff"
        expected.append(Failed("payload too large"))
    it = connection(in_flight_count_max)
    open_requests: list[tuple[int, ClientRequest]] = []
    sent = b""
    position = pushed = 0
    tape = iter(moves)
    while position < len(stream) or open_requests or it.saturated:
        move = next(tape, 0)
        if move % 8 == 7:
            sent += it.data_to_send()
        elif move % 8 == 5:
            it.push(encode_feed_event(event(pushed)))
            pushed += 1
        elif it.saturated and (move % 8 == 6 or not open_requests):
            open_requests += it.resume()
        elif position < len(stream) and (move % 2 or not open_requests):
            # also while saturated: what was on its way when reading stopped comes all the same
            open_requests += it.receive(stream[position : position + 1 + move])
            position += 1 + move
        elif open_requests:
            ticket, request = open_requests.pop(move % len(open_requests))
            it.answer(ticket, decide(request))
        assert len(open_requests) <= in_flight_count_max
        assert it.unanswered_count <= in_flight_count_max + oversized
    sent += it.data_to_send()
    received = answers(sent)
    assert [answer for answer in received if not isinstance(answer, FeedEvent)] == expected
    assert [answer for answer in received if isinstance(answer, FeedEvent)] == [event(n) for n in range(pushed)]
    assert it.unanswered_count == 0
    assert it.received_count == len(expected)
    assert it.closing == oversized


def test_large_pings_behind_a_purchase_are_bounded_by_size() -> None:
    it = ServerConnection(payload_size_max=65_536, in_flight_count_max=1024)
    [(ticket, _)] = it.receive(encode_request(Purchase("p", "u")))
    ping = encode_frame(0x06, b"x" * 65_536)
    for _ in range(20):
        assert it.receive(ping) == []
        while it.resumable:
            assert it.resume() == []
    assert it.saturated
    assert it.unanswered_count == 1 + EARLY_SIZE_MAX // 65_536
    it.answer(ticket, SOLD_OUT)
    answers = it.data_to_send()
    while it.resumable:
        assert it.resume() == []
        answers += it.data_to_send()
    assert answers.count(ping) == 20
    assert it.unanswered_count == 0


# Subscriptions


def test_subscribe_is_handed_out_and_answered_in_its_turn() -> None:
    it = connection()
    [(first, _), (second, request)] = it.receive(buy(0) + encode_request(Subscribe("p", 7)))
    assert request == Subscribe("p", 7)
    subscribed = Subscribed(product_id="p", version=9, epoch="0f3c9a21")
    it.answer(second, subscribed)
    assert not it.has_answered(second), "the answer before it is missing: nothing may be pushed yet"
    assert it.data_to_send() == b""
    it.answer(first, SOLD_OUT)
    assert it.has_answered(second)
    assert answers(it.data_to_send()) == [SOLD_OUT, subscribed]


def test_what_is_pushed_goes_out_at_once_and_moves_no_answer() -> None:
    it = connection()
    [(first, _), (second, _)] = it.receive(buy(0) + buy(1))
    it.push(encode_feed_event(event(1)))
    assert answers(it.data_to_send()) == [event(1)]
    it.answer(second, Success(1))
    it.push(encode_feed_event(event(2)) + encode_feed_event(event(3)))
    assert answers(it.data_to_send()) == [event(2), event(3)]
    it.answer(first, Success(0))
    it.push(encode_feed_event(event(4)))
    assert answers(it.data_to_send()) == [Success(0), Success(1), event(4)]
    assert it.unanswered_count == 0
