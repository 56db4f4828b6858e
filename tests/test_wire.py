"""Frames and bodies, each case read both ways and cut in every place."""

import json
import re
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.domain.answers import (
    BUSY,
    HOLD_NOT_FOUND,
    NOT_EXECUTED,
    NOT_FOUND,
    PRODUCT_NOT_FOUND,
    SOLD_OUT,
    UNKNOWN,
    Answer,
    Busy,
    Cancelled,
    Closed,
    Expired,
    Failed,
    Held,
    ItemTaken,
    LimitExceeded,
    Mismatch,
    NotOpen,
    Paused,
    ProductStatus,
    SoldOut,
    Subscribed,
    Success,
)
from flashsale.domain.checks import MISSING_CODE, MISSING_FIELD
from flashsale.domain.events import ChangeEvent, FeedEvent, Mark, PurchaseEvent, SoldOutEvent
from flashsale.domain.ids import make_code
from flashsale.domain.requests import Cancel, Confirm, Extend, GetStatus, Purchase, Reserve, Subscribe
from flashsale.domain.sale import Kind
from flashsale.wire import (
    HEADER_SIZE,
    INVALID_JSON,
    PAYLOAD_SIZE_DEFAULT,
    PAYLOAD_SIZE_MAX,
    PAYLOAD_TOO_LARGE,
    UNKNOWN_MESSAGE_TYPE,
    ClientRequest,
    FrameReader,
    MessageType,
    decode_answer,
    decode_event,
    decode_feed_event,
    decode_request,
    encode_answer,
    encode_feed_event,
    encode_frame,
    encode_request,
)

FIRST_REQUEST = bytes.fromhex("010000002e") + b'{"product_id":"iphone15","user_id":"user_0_0"}'
FIRST_ANSWER = bytes.fromhex("0100000029") + b'{"status":"SUCCESS","remaining_stock":99}'


def frame_of(message_type: int, body: str) -> bytes:
    """Return a frame, put together without the package."""
    return bytes([message_type]) + len(body.encode()).to_bytes(4, "big") + body.encode()


FRAMES = [
    ("the first purchase", (1, FIRST_REQUEST[5:]), FIRST_REQUEST),
    ("the first answer", (1, FIRST_ANSWER[5:]), FIRST_ANSWER),
    ("no payload", (6, b""), bytes.fromhex("0600000000")),
    ("one byte", (6, b"\x00"), bytes.fromhex("0600000001 00")),
    ("the highest type", (255, b"ab"), bytes.fromhex("ff00000002 6162")),
    ("the lowest type", (0, b'{"status":"BUSY"}'), bytes.fromhex("0000000011") + b'{"status":"BUSY"}'),
    ("a header as payload", (6, bytes.fromhex("010000002e")), bytes.fromhex("0600000005 010000002e")),
    ("a length of two bytes", (5, b"x" * 258), bytes.fromhex("0500000102") + b"x" * 258),
]
frames_table = pytest.mark.parametrize(("frame", "data"), [row[1:] for row in FRAMES], ids=[row[0] for row in FRAMES])

STREAM = b"".join(data for _, _, data in FRAMES)
STREAM_FRAMES = [frame for _, frame, _ in FRAMES]


def kept_size(reader: FrameReader) -> int:
    """Return how many bytes the reader holds back, whatever it calls them."""
    held = (getattr(reader, name) for name in FrameReader.__slots__)
    return sum(len(value) for value in held if isinstance(value, bytes | bytearray | memoryview))


def feed_all(data: bytes, cuts: list[int], payload_size_max: int = PAYLOAD_SIZE_DEFAULT) -> tuple[list, int | None]:
    reader = FrameReader(payload_size_max)
    frames = []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        frames += reader.feed(data[start:stop])
    return frames, reader.oversized


# Frames


@frames_table
def test_frame_is_encoded_as_in_the_table(frame: tuple[int, bytes], data: bytes) -> None:
    assert encode_frame(*frame) == data


@frames_table
def test_frame_is_read_whole(frame: tuple[int, bytes], data: bytes) -> None:
    reader = FrameReader()
    assert reader.feed(data) == [frame]
    assert reader.oversized is None
    assert not reader.incomplete


@frames_table
def test_frame_is_read_byte_by_byte(frame: tuple[int, bytes], data: bytes) -> None:
    reader = FrameReader()
    for position in range(len(data) - 1):
        assert reader.feed(data[position : position + 1]) == []
        assert reader.incomplete
    assert reader.feed(data[-1:]) == [frame]
    assert not reader.incomplete


@frames_table
def test_frame_is_read_cut_at_every_offset_and_with_trailing_bytes(frame: tuple[int, bytes], data: bytes) -> None:
    for trailing in (b"", b"\x06", b"\x06\x00\x00\x00\x01", data):
        whole = [frame, frame] if trailing == data else [frame]
        for cut in range(len(data) + 1):
            reader = FrameReader()
            assert reader.feed(data[:cut]) + reader.feed(data[cut:] + trailing) == whole
            assert reader.incomplete == (trailing not in (b"", data))
            assert reader.oversized is None


def test_stream_of_frames_is_read_however_it_is_cut_once() -> None:
    for cut in range(len(STREAM) + 1):
        assert feed_all(STREAM, [cut]) == (STREAM_FRAMES, None)


def test_stream_of_frames_is_read_byte_by_byte() -> None:
    assert feed_all(STREAM, list(range(1, len(STREAM)))) == (STREAM_FRAMES, None)


def test_empty_segment_changes_nothing() -> None:
    reader = FrameReader()
    assert reader.feed(b"") == []
    assert not reader.incomplete
    assert reader.feed(FIRST_REQUEST[:7]) == []
    assert reader.feed(b"") == []
    assert reader.feed(FIRST_REQUEST[7:]) == [(1, FIRST_REQUEST[5:])]


def test_payload_of_a_frame_is_its_own_bytes() -> None:
    segment = bytearray(FIRST_REQUEST)
    [(_, payload)] = FrameReader().feed(bytes(segment))
    segment[:] = bytes(len(segment))
    assert type(payload) is bytes
    assert payload == FIRST_REQUEST[5:]


# The payload limit


@pytest.mark.parametrize("limit", [64, PAYLOAD_SIZE_DEFAULT, PAYLOAD_SIZE_MAX])
def test_payload_of_exactly_the_limit_is_taken_and_one_more_is_not(limit: int) -> None:
    reader = FrameReader(limit)
    assert reader.feed(encode_frame(6, b"x" * limit)) == [(6, b"x" * limit)]
    assert reader.oversized is None
    assert reader.feed(b"\x06" + (limit + 1).to_bytes(4, "big")) == []
    assert reader.oversized == 6


def test_oversized_frame_comes_after_the_good_ones_before_it() -> None:
    huge = b"\x09\xff\xff\xff\xff"
    data = STREAM + huge + STREAM
    for cut in range(len(data) + 1):
        assert feed_all(data, [cut]) == (STREAM_FRAMES, 9)


def test_reader_takes_nothing_after_an_oversized_frame() -> None:
    reader = FrameReader()
    reader.feed(b"\x01\xff\xff\xff\xff")
    assert reader.feed(STREAM) == []
    assert reader.oversized == 1
    assert not reader.incomplete
    assert kept_size(reader) == 0


@pytest.mark.parametrize("header", [b"\x01\xff\xff\xff\xff", b"\x01\x00\x0f\xff\xff"], ids=["too large", "allowed"])
def test_nothing_is_allocated_for_an_announced_length(header: bytes) -> None:
    reader = FrameReader(PAYLOAD_SIZE_MAX)
    tracemalloc.start()
    try:
        for position in range(len(header)):
            reader.feed(header[position : position + 1])
        reader.feed(b"{")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024


def test_large_frame_in_small_segments_is_not_copied_for_each() -> None:
    payload = bytes(PAYLOAD_SIZE_MAX)
    data = encode_frame(6, payload)
    reader = FrameReader(PAYLOAD_SIZE_MAX)
    frames = []
    for start in range(0, len(data), 64):  # 16,384 segments: minutes if each copied what is kept
        frames += reader.feed(data[start : start + 64])
    assert frames == [(6, payload)]


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(encode_frame, st.integers(0, 255), st.binary(max_size=40)),
            st.just(b"\x00\x00\x00"),
        ),
        max_size=8,
    ).map(b"".join),
    st.data(),
)
def test_any_bytes_in_any_chunks_give_the_same_frames_and_the_same_error(stream: bytes, data: st.DataObject) -> None:
    expected = feed_all(stream, [], 32)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = FrameReader(32)
    frames = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += reader.feed(stream[start:stop])
        consumed = sum(HEADER_SIZE + len(payload) for _, payload in frames)
        assert kept_size(reader) <= stop - consumed  # never more than was fed and not given out
        assert kept_size(reader) < HEADER_SIZE + 32
        assert reader.incomplete == (kept_size(reader) > 0)
    assert (frames, reader.oversized) == expected
    if reader.oversized is None:  # nothing invented, nothing lost
        assert b"".join(encode_frame(*frame) for frame in frames) == stream[: len(stream) - kept_size(reader)]


def test_no_more_frames_are_given_out_than_is_said_and_the_rest_comes_next() -> None:
    for count in range(1, len(STREAM_FRAMES) + 2):
        for cut in range(len(STREAM) + 1):
            reader = FrameReader()
            turns = [reader.feed(STREAM[:cut], count_max=count), reader.feed(STREAM[cut:], count_max=count)]
            while reader.holds_back:
                assert not reader.incomplete
                turns.append(reader.feed(count_max=count))
            assert all(len(frames) <= count for frames in turns)
            assert [frame for frames in turns for frame in frames] == STREAM_FRAMES
            assert kept_size(reader) == 0


def test_no_frame_is_given_out_behind_so_many_bytes() -> None:
    reader = FrameReader()
    size = 3 * len(FIRST_REQUEST)
    assert len(reader.feed(FIRST_REQUEST * 7, size_max=size)) == 3
    assert reader.holds_back
    assert len(reader.feed(size_max=size + 1)) == 4
    assert not reader.holds_back


def test_nothing_is_held_back_when_only_a_part_of_a_frame_is_left() -> None:
    for rest in (b"", FIRST_REQUEST[:3], FIRST_REQUEST[:-1]):
        reader = FrameReader()
        assert len(reader.feed(FIRST_REQUEST + rest, count_max=1)) == 1
        assert (reader.holds_back, reader.incomplete) == (False, bool(rest))


def test_oversized_frame_is_seen_after_what_is_held_back() -> None:
    reader = FrameReader()
    assert len(reader.feed(FIRST_REQUEST * 2 + b"\x09\xff\xff\xff\xff", count_max=1)) == 1
    assert reader.oversized is None
    assert len(reader.feed(count_max=1)) == 1
    assert (reader.oversized, reader.holds_back, kept_size(reader)) == (9, False, 0)


# Requests

CODE = "A" * 22 + ".p"
REQUESTS = [
    ("a purchase", Purchase("iphone15", "user_0_0"), FIRST_REQUEST),
    (
        "a purchase beyond ASCII",
        Purchase("книга", "Zoë 😀"),
        encode_frame(1, '{"product_id":"книга","user_id":"Zoë 😀"}'.encode()),
    ),
    (
        "a purchase that needs escapes",
        Purchase('a"b\\c', "\n"),
        encode_frame(1, rb'{"product_id":"a\"b\\c","user_id":"\n"}'),
    ),
    (
        "a purchase of everything",
        Purchase("p", "u", 2, "r", 7),
        frame_of(1, '{"product_id":"p","user_id":"u","quantity":2,"request_id":"r","item_id":7}'),
    ),
    ("a hold", Reserve("p", "u"), frame_of(2, '{"product_id":"p","user_id":"u"}')),
    (
        "a hold of everything",
        Reserve("p", "u", 1_000_000, "é" * 64, 10_000_000, 2_592_000),
        frame_of(
            2,
            '{"product_id":"p","user_id":"u","quantity":1000000,"request_id":"'
            + "é" * 64
            + '","item_id":10000000,"hold_seconds":2592000}',
        ),
    ),
    ("a confirmation", Confirm(CODE), frame_of(3, f'{{"code":"{CODE}"}}')),
    ("a confirmation that has an id", Confirm(CODE, "r"), frame_of(3, f'{{"code":"{CODE}","request_id":"r"}}')),
    ("a cancellation", Cancel(CODE), frame_of(4, f'{{"code":"{CODE}"}}')),
    ("an extension", Extend(CODE, 60), frame_of(7, f'{{"code":"{CODE}","hold_seconds":60}}')),
    ("a status", GetStatus("iphone15"), bytes.fromhex("0500000019") + b'{"product_id":"iphone15"}'),
    ("a subscription to all", Subscribe(), frame_of(0x10, "{}")),
    ("a subscription", Subscribe("p"), frame_of(0x10, '{"product_id":"p"}')),
    (
        "a subscription from where it was left",
        Subscribe("p", 0, "0f3c9a21"),
        frame_of(0x10, '{"product_id":"p","after_version":0,"epoch":"0f3c9a21"}'),
    ),
]
requests_table = pytest.mark.parametrize(
    ("request_", "data"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)


@requests_table
def test_request_is_encoded_as_in_the_table(request_: ClientRequest, data: bytes) -> None:
    assert encode_request(request_) == data


@requests_table
def test_request_is_decoded_as_in_the_table(request_: ClientRequest, data: bytes) -> None:
    [frame] = FrameReader().feed(data)
    assert decode_request(frame) == request_


def nested(depth: int) -> bytes:
    return b'{"product_id":"p","user_id":"u","x":' + b"[" * depth + b"]" * depth + b"}"


BAD_NUMBERS = [b"0", b"-1", b"1.5", b"2.0", b'"1"', b"true", b"1e300", b"9" * 100, b"[]"]
BODIES = [
    # what is read although it is not what the client library writes
    (1, b'{"user_id":"u","product_id":"p"}', Purchase("p", "u")),
    (1, b' {\t"product_id" :\r\n"p", "user_id":"u" }\n', Purchase("p", "u")),
    (1, b'{"product_id":"p","user_id":"u","quantity":2,"x":[{"y":null}]}', Purchase("p", "u", 2)),
    (1, b'{"product_id":"p","user_id":"u","quantity":1,"request_id":null,"item_id":null}', Purchase("p", "u")),
    (7, b'{"code":"AAAAAAAAAAAAAAAAAAAAAA.p"}', Extend(CODE)),
    (7, b'{"code":"AAAAAAAAAAAAAAAAAAAAAA.p.q","hold_seconds":5}', Extend(CODE + ".q", 5)),
    (0x10, b'{"product_id":""}', Subscribe("")),
    (0x10, b'{"product_id":null,"after_version":null}', Subscribe()),
    (1, rb'{"product_id":"\u0070","user_id":"\ud83d\ude00"}', Purchase("p", "😀")),
    (1, b'{"product_id":"a","product_id":"p","user_id":"u"}', Purchase("p", "u")),
    (1, rb'{"product_id":"p","user_id":"\u0041"}', Purchase("p", "A")),
    (1, rb'{"product_id":"p","user_id":"a\u0000"}', "invalid user_id"),
    (2, rb'{"product_id":"p","user_id":"u","request_id":"\u0000"}', "invalid request_id"),
    (1, nested(100), Purchase("p", "u")),
    (5, b'{"product_id":"p","user_id":7}', GetStatus("p")),
    # absent or empty
    (1, b"{}", MISSING_FIELD),
    (1, b'{"product_id":"p"}', MISSING_FIELD),
    (1, b'{"user_id":"u"}', MISSING_FIELD),
    (1, b'{"product_id":"","user_id":"u"}', MISSING_FIELD),
    (1, b'{"product_id":"p","user_id":""}', MISSING_FIELD),
    (1, b'{"Product_ID":"p","user_id":"u"}', MISSING_FIELD),
    (5, b"{}", MISSING_FIELD),
    (5, b'{"product_id":""}', MISSING_FIELD),
    (5, b'{"user_id":"u"}', MISSING_FIELD),
    (2, b'{"product_id":"p"}', MISSING_FIELD),
    (2, b'{"product_id":"","user_id":"u"}', MISSING_FIELD),
    (3, b"{}", MISSING_CODE),
    (4, b'{"code":""}', MISSING_CODE),
    (7, b'{"hold_seconds":5}', MISSING_CODE),
    # codes that no hold can have
    (3, b'{"code":"AAAAAAAAAAAAAAAAAAAAA.p"}', HOLD_NOT_FOUND),
    (4, b'{"code":"AAAAAAAAAAAAAAAAAAAAAAA.p"}', HOLD_NOT_FOUND),
    (7, b'{"code":"AAAAAAAAAAAAAAAAAAAAAA."}', HOLD_NOT_FOUND),
    (3, b'{"code":"AAAAAAAAAAAAAAAAAAAAAA","request_id":"r"}', HOLD_NOT_FOUND),
    (3, b'{"code":".p"}', HOLD_NOT_FOUND),
    # numbers and ids that nobody may say
    *((1, b'{"product_id":"p","user_id":"u","quantity":%s}' % value, "invalid quantity") for value in BAD_NUMBERS),
    *((2, b'{"product_id":"p","user_id":"u","item_id":%s}' % value, "invalid item_id") for value in BAD_NUMBERS),
    *(
        (2, b'{"product_id":"p","user_id":"u","hold_seconds":%s}' % value, "invalid hold_seconds")
        for value in BAD_NUMBERS
    ),
    *((7, b'{"code":"x","hold_seconds":%s}' % value, "invalid hold_seconds") for value in BAD_NUMBERS),
    (1, b'{"product_id":"p","user_id":"u","quantity":1000001}', "invalid quantity"),
    (1, b'{"product_id":"p","user_id":"u","quantity":null}', "invalid quantity"),
    (2, b'{"product_id":"p","user_id":"u","item_id":10000001}', "invalid item_id"),
    (7, b'{"code":"x","hold_seconds":2592001}', "invalid hold_seconds"),
    (1, b'{"product_id":"p","user_id":"u","request_id":""}', "invalid request_id"),
    (1, b'{"product_id":"p","user_id":"u","request_id":7}', "invalid request_id"),
    (2, b'{"product_id":"p","user_id":"u","request_id":"%s"}' % (b"x" * 129), "invalid request_id"),
    (2, b'{"product_id":"p","user_id":"u","request_id":"' + "é".encode() * 65 + b'"}', "invalid request_id"),
    (3, b'{"code":"x","request_id":"' + "é".encode() * 65 + b'"}', "invalid request_id"),
    (3, b'{"code":"x","request_id":""}', "invalid request_id"),
    *((1, b'{"product_id":"p","user_id":%s}' % value, "invalid user_id") for value in (b"7", b"null", b"true", b"[]")),
    *((kind, b'{"product_id":"p","user_id":"%s"}' % (b"x" * 257), "invalid user_id") for kind in (1, 2)),
    (1, b'{"product_id":"p","user_id":"%s"}' % ("é" * 129).encode(), "invalid user_id"),
    (1, b'{"product_id":"p","user_id":"%s"}' % ("é" * 128).encode(), Purchase("p", "é" * 128)),
    # ids that no product can have
    *((kind, b'{"product_id":"%s","user_id":"u"}' % (b"x" * 257), PRODUCT_NOT_FOUND) for kind in (1, 2, 5, 0x10)),
    *(
        (kind, b'{"product_id":"%s","user_id":"u"}' % ("é" * 129).encode(), PRODUCT_NOT_FOUND)
        for kind in (1, 2, 5, 0x10)
    ),
    (1, b'{"product_id":"%s","user_id":"u"}' % ("é" * 128).encode(), Purchase("é" * 128, "u")),
    (1, b'{"product_id":"%s","user_id":"u"}' % (rb"\u00e9" * 128), Purchase("é" * 128, "u")),
    (5, b'{"product_id":"%s"}' % (b"x" * 256), GetStatus("x" * 256)),
    (0x10, b'{"product_id":"%s","after_version":0}' % (b"x" * 256), Subscribe("x" * 256, 0)),
    *((kind, b'{"code":"%s.%s"}' % (b"A" * 22, b"x" * 257), HOLD_NOT_FOUND) for kind in (3, 4, 7)),
    (3, b'{"code":"%s.%s"}' % (b"A" * 22, ("é" * 129).encode()), HOLD_NOT_FOUND),
    (4, b'{"code":"%s.%s"}' % (b"A" * 22, ("é" * 128).encode()), Cancel("A" * 22 + "." + "é" * 128)),
    (0x10, b'{"after_version":5}', "invalid after_version"),
    (0x10, b'{"product_id":"p","after_version":-1}', "invalid after_version"),
    (0x10, b'{"product_id":"p","after_version":100000000000000}', "invalid after_version"),
    (0x10, b'{"product_id":"p","epoch":"%s"}' % (b"x" * 65), "invalid epoch"),
    # not JSON
    (1, b"", INVALID_JSON),
    (2, b"", INVALID_JSON),
    (3, b'{"code":7}', INVALID_JSON),
    (0x10, b'{"product_id":7}', INVALID_JSON),
    (1, b" ", INVALID_JSON),
    (1, b"iphone15", INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u"', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u"}}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u"}\x00', INVALID_JSON),
    (1, b"{'product_id':'p','user_id':'u'}", INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u",}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u","x":NaN}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"\n"}', INVALID_JSON),
    (1, b'\xef\xbb\xbf{"product_id":"p","user_id":"u"}', INVALID_JSON),
    (1, '{"product_id":"p","user_id":"u"}'.encode("utf-16-le"), INVALID_JSON),
    (5, b"", INVALID_JSON),
    # JSON of another shape
    (1, b"null", INVALID_JSON),
    (1, b"[]", INVALID_JSON),
    (1, b'["p","u"]', INVALID_JSON),
    (1, b'"p"', INVALID_JSON),
    (1, b"1", INVALID_JSON),
    (1, b'{"product_id":null,"user_id":"u"}', INVALID_JSON),
    (1, b'{"product_id":1,"user_id":"u"}', INVALID_JSON),
    (1, b'{"product_id":["p"],"user_id":"u"}', INVALID_JSON),
    (5, b'{"product_id":{}}', INVALID_JSON),
    # not UTF-8, also where nobody looks
    (1, b'{"product_id":"\xff","user_id":"u"}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"\xc3"}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"\xed\xa0\x80"}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"\xc0\xaf"}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u","x":"\xff"}', INVALID_JSON),
    (1, b'{"product_id":"p","user_id":"u","\xff":1}', INVALID_JSON),
    # half of a surrogate pair is no character
    (1, rb'{"product_id":"\ud800","user_id":"u"}', INVALID_JSON),
    (1, rb'{"product_id":"p","user_id":"\udc00\ud800"}', INVALID_JSON),
    # deep nesting
    (1, nested(30_000), INVALID_JSON),
    (1, b'{"a":' * 10_000, INVALID_JSON),
    # types nobody can ask with
    (0, b'{"product_id":"p","user_id":"u"}', UNKNOWN_MESSAGE_TYPE),
    (6, b"", UNKNOWN_MESSAGE_TYPE),
    (8, b"", UNKNOWN_MESSAGE_TYPE),
    (0x11, b"\xff", UNKNOWN_MESSAGE_TYPE),
    (255, b"", UNKNOWN_MESSAGE_TYPE),
]


@pytest.mark.parametrize(
    ("message_type", "payload", "expected"), BODIES, ids=[f"{kind}-{body[:40]!r}" for kind, body, _ in BODIES]
)
def test_body_is_read_or_refused(message_type: int, payload: bytes, expected: object) -> None:
    assert decode_request((message_type, payload)) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
fields = [
    "product_id",
    "user_id",
    "quantity",
    "request_id",
    "item_id",
    "hold_seconds",
    "code",
    "after_version",
    "epoch",
]
bodies = st.dictionaries(st.sampled_from(fields), values).map(lambda body: json.dumps(body).encode())


@given(st.integers(0, 255) | st.sampled_from(MessageType), st.binary(max_size=200) | bodies)
def test_any_body_gives_a_request_or_an_error_text(message_type: int, payload: bytes) -> None:
    result = decode_request((message_type, payload))
    if isinstance(result, str):
        known = {UNKNOWN_MESSAGE_TYPE, INVALID_JSON, MISSING_FIELD, MISSING_CODE, HOLD_NOT_FOUND}
        assert result in known or re.fullmatch("invalid (" + "|".join(fields[1:]) + ")", result)
    else:
        [frame] = FrameReader().feed(encode_request(result))
        assert decode_request(frame) == result


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256).filter(
    lambda it: len(it.encode()) <= 256
)
request_ids = st.none() | text.filter(lambda value: len(value.encode()) <= 128)


@given(text, text, request_ids, st.integers(1, 1_000_000), st.none() | st.integers(1, 2_592_000))
def test_any_request_survives_the_wire(
    product_id: str, user_id: str, request_id: str | None, quantity: int, seconds: int | None
) -> None:
    code = make_code("A" * 22, product_id)
    for request in (
        Purchase(product_id, user_id, quantity, request_id, quantity),
        Reserve(product_id, user_id, quantity, request_id, None, seconds),
        Confirm(code, request_id),
        Cancel(code),
        Extend(code, quantity),
        GetStatus(product_id),
        Subscribe(product_id, quantity),
    ):
        [frame] = FrameReader().feed(encode_request(request))
        assert decode_request(frame) == request
        assert request.product_id == product_id


# Answers

ANSWERS = [
    (1, Success(99), FIRST_ANSWER),
    (1, Success(0), bytes.fromhex("0100000028") + b'{"status":"SUCCESS","remaining_stock":0}'),
    (1, SOLD_OUT, bytes.fromhex("0100000015") + b'{"status":"SOLD_OUT"}'),
    (
        1,
        Success(3, "199c82cc000-0000000007-0f3c9a21-p", 7, 5, duplicate=True),
        frame_of(
            1,
            '{"status":"SUCCESS","remaining_stock":3,"order_id":"199c82cc000-0000000007-0f3c9a21-p","version":7,'
            '"item_id":5,"duplicate":true}',
        ),
    ),
    (1, SoldOut(2), frame_of(1, '{"status":"SOLD_OUT","remaining_stock":2}')),
    (
        2,
        Held(CODE, 99, 3, 7),
        frame_of(2, f'{{"status":"HELD","code":"{CODE}","expires_at":99,"remaining_stock":3,"version":7}}'),
    ),
    (4, Cancelled(3, 7), frame_of(4, '{"status":"CANCELLED","remaining_stock":3,"version":7}')),
    (3, Expired(), frame_of(3, '{"status":"EXPIRED"}')),
    (1, LimitExceeded(), frame_of(1, '{"status":"LIMIT_EXCEEDED"}')),
    (1, NotOpen(99), frame_of(1, '{"status":"NOT_OPEN","opens_at":99}')),
    (1, Closed(), frame_of(1, '{"status":"CLOSED"}')),
    (1, Paused(), frame_of(1, '{"status":"PAUSED"}')),
    (1, ItemTaken(), frame_of(1, '{"status":"ITEM_TAKEN"}')),
    (1, Mismatch(), frame_of(1, '{"status":"MISMATCH","error":"request_id belongs to another request"}')),
    (
        5,
        ProductStatus(42, 58),
        frame_of(5, '{"status":"OK","remaining_stock":42,"sold":58,"held":0,"state":"open","version":0}'),
    ),
    (
        0x10,
        Subscribed(product_id="p", version=7, epoch="0f3c9a21"),
        frame_of(0x10, '{"status":"SUBSCRIBED","product_id":"p","version":7,"epoch":"0f3c9a21"}'),
    ),
    (0x10, Subscribed(version=0), frame_of(0x10, '{"status":"SUBSCRIBED","version":0}')),
    (1, BUSY, bytes.fromhex("0100000011") + b'{"status":"BUSY"}'),
    (0, BUSY, bytes.fromhex("0000000011") + b'{"status":"BUSY"}'),
    (1, Busy(480), frame_of(1, '{"status":"BUSY","retry_after_ms":480}')),
    (1, UNKNOWN, bytes.fromhex("010000002e") + b'{"status":"UNKNOWN","error":"outcome unknown"}'),
    (1, NOT_EXECUTED, frame_of(1, '{"status":"UNAVAILABLE","error":"unavailable"}')),
    (3, Failed(HOLD_NOT_FOUND), frame_of(3, '{"status":"ERROR","error":"hold not found"}')),
    (1, NOT_FOUND, bytes.fromhex("010000002e") + b'{"status":"ERROR","error":"product not found"}'),
    (1, Failed(INVALID_JSON), bytes.fromhex("0100000029") + b'{"status":"ERROR","error":"invalid json"}'),
    (
        1,
        Failed(MISSING_FIELD),
        bytes.fromhex("010000003a") + b'{"status":"ERROR","error":"missing product_id or user_id"}',
    ),
    (
        255,
        Failed(UNKNOWN_MESSAGE_TYPE),
        bytes.fromhex("ff00000031") + b'{"status":"ERROR","error":"unknown message type"}',
    ),
    (1, Failed(PAYLOAD_TOO_LARGE), bytes.fromhex("010000002e") + b'{"status":"ERROR","error":"payload too large"}'),
]
answers_table = pytest.mark.parametrize(("message_type", "answer", "data"), ANSWERS)


@answers_table
def test_answer_is_encoded_as_in_the_table(message_type: int, answer: Answer, data: bytes) -> None:
    assert encode_answer(message_type, answer) == data


@answers_table
def test_answer_is_decoded_as_in_the_table(message_type: int, answer: Answer, data: bytes) -> None:
    [(answered_type, payload)] = FrameReader().feed(data)
    assert answered_type == message_type
    assert decode_answer(payload) == answer


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"null",
        b'{"status":"success","remaining_stock":1}',
        b'{"status":"SUCCESS"}',
        b'{"status":"SUCCESS","remaining_stock":"1"}',
        b'{"status":"NEVER_HEARD_OF"}',
        b'{"status":"ERROR"}',
        b'\xff{"status":"BUSY"}',
    ],
)
def test_payload_that_is_no_answer_raises(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_answer(payload)


def test_answer_with_fields_of_a_later_version_is_read() -> None:
    assert decode_answer(b'{"status":"SUCCESS","remaining_stock":1,"price":5}') == Success(1)


# Events

EVENTS = [
    (
        PurchaseEvent("p", "u", 41, 1_760_000_000, 2, 7),
        b'{"event":"purchase","product_id":"p","buyer":"u","remaining":41,"timestamp":1760000000,"quantity":2,"version":7}',
    ),
    (
        SoldOutEvent("iphone15", 1_760_000_000),
        b'{"event":"sold_out","product_id":"iphone15","timestamp":1760000000}',
    ),
]


@pytest.mark.parametrize(("event", "payload"), EVENTS)
def test_event_is_read_and_written_as_in_the_table(event: PurchaseEvent | SoldOutEvent, payload: bytes) -> None:
    assert decode_event(payload) == event
    assert msgspec.json.encode(event) == payload


def test_event_of_the_first_version_is_read() -> None:
    payload = b'{"event":"purchase","product_id":"p","buyer":"u","remaining":41,"timestamp":1760000000}'
    assert decode_event(payload) == PurchaseEvent("p", "u", 41, 1_760_000_000)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.SOLD, Kind.CONFIRMED)])
def test_event_of_any_change_is_read(kind: Kind) -> None:
    payload = {"event": kind, "product_id": "p", "remaining": 5, "timestamp": 9, "quantity": 2, "version": 7}
    event = decode_event(msgspec.json.encode(payload | {"buyer": "u"}))
    assert isinstance(event, ChangeEvent)
    assert (event.event, event.product_id, event.remaining, event.version) == (kind, "p", 5, 7)
    assert decode_event(msgspec.json.encode(payload)).product_id == "p"  # a change that is nobody's


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b'{"event":"party"}', b'{"event":"held"}', b'{"event":"sold_out"}']
)
def test_payload_that_is_no_event_raises(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(payload)


FEED_EVENTS = [
    FeedEvent(event=Kind.SOLD, product_id="p", version=7, timestamp=1_760_000_000, remaining=3, buyer="u", quantity=1),
    FeedEvent(event=Mark.RESET, product_id="p", epoch="0f3c9a21"),
    FeedEvent(event="of a later version", product_id="p"),
]


@pytest.mark.parametrize("event", FEED_EVENTS)
def test_event_of_a_subscription_is_read_and_written(event: FeedEvent) -> None:
    [(message_type, payload)] = FrameReader().feed(encode_feed_event(event))
    assert message_type == MessageType.EVENT
    assert decode_feed_event(payload) == event
    assert json.loads(payload)["event"] == event.event


def test_payload_that_is_no_event_of_a_subscription_raises() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_feed_event(b'{"event":"sold"}')


# Types


def test_message_types_leave_the_letters_of_http_methods_alone() -> None:
    assert max(MessageType) < 0x20
    assert len(set(MessageType)) == len(MessageType.__members__)


def test_frame_of_the_largest_payload_fits_its_length_field() -> None:
    assert PAYLOAD_SIZE_DEFAULT <= PAYLOAD_SIZE_MAX < 2**32
    assert sys.getsizeof(encode_frame(6, bytes(PAYLOAD_SIZE_MAX))) >= PAYLOAD_SIZE_MAX + HEADER_SIZE
