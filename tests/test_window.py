"""Changes in memory: slices from every version, what is trimmed, what is missing, and the fields of an event."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from flashsale.domain.events import FeedEvent
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Change, Kind
from flashsale.window import Window
from flashsale.wire import FrameReader, MessageType, decode_feed_event


def sold(version: int, user_id: str = "u") -> Change:
    return Change(kind=Kind.SOLD, version=version, at_ms=5_000 + version, remaining=0, user_id=user_id, quantity=1)


def events(frames: bytes) -> list[FeedEvent]:
    reader = FrameReader()
    found = reader.feed(frames)
    assert not reader.incomplete
    assert {kind for kind, _ in found} <= {MessageType.EVENT}
    return [decode_feed_event(payload) for _, payload in found]


def everything(window: Window, version: int, size_max: int = 1 << 20) -> list[FeedEvent]:
    """Return what is behind a version, slice by slice."""
    found = []
    while version < window.version:
        frames, reached = window.after(version, size_max)
        assert reached > version
        found += events(frames)
        assert found[-1].version == reached
        version = reached
    return found


def test_an_event_tells_what_the_change_was_and_no_request_id() -> None:
    window = Window("p", "0f3c9a21", 0)
    window.extend(
        [
            Change(kind=Kind.OPENED, version=1, at_ms=1_999, remaining=9, quantity=9, ref=3),
            Change(kind=Kind.SOLD, version=2, at_ms=2_000, remaining=7, user_id="a", quantity=2, request_id="secret"),
            Change(
                kind=Kind.HELD, version=3, at_ms=2_001, remaining=6, user_id="b", quantity=1, item_id=4, expires_at=9
            ),
            Change(kind=Kind.CONFIRMED, version=4, at_ms=2_002, remaining=6, user_id="b", quantity=1, item_id=4, ref=3),
            Change(kind=Kind.REFUNDED, version=5, at_ms=2_003, remaining=8, user_id="a", quantity=2, ref=2),
            Change(kind=Kind.REFUNDED, version=6, at_ms=2_004, remaining=9, user_id="b", quantity=1, ref=4),
            Change(kind=Kind.PAUSED, version=7, at_ms=2_005, remaining=0),
        ],
        {2: 2_000},
    )
    frames, reached = window.after(0, 1 << 20)
    assert reached == 7
    assert b"secret" not in frames
    first = make_order_id(OrderRef("p", "0f3c9a21", 2, 2_000))
    second = make_order_id(OrderRef("p", "0f3c9a21", 4, 2_002))
    payloads = [msgspec.json.decode(payload) for _, payload in FrameReader().feed(frames)]
    sale = {"product_id": "p", "timestamp": 2}
    assert payloads == [
        {"event": "opened", **sale, "timestamp": 1, "version": 1, "remaining": 9, "quantity": 9, "epoch": "0f3c9a21"},
        {"event": "sold", **sale, "version": 2, "remaining": 7, "buyer": "a", "quantity": 2, "order_id": first},
        {"event": "held", **sale, "version": 3, "remaining": 6, "buyer": "b", "quantity": 1, "item_id": 4},
        {
            "event": "confirmed", **sale, "version": 4, "remaining": 6, "buyer": "b", "quantity": 1, "item_id": 4,
            "order_id": second,
        },
        {"event": "refunded", **sale, "version": 5, "remaining": 8, "buyer": "a", "quantity": 2, "order_id": first},
        {"event": "refunded", **sale, "version": 6, "remaining": 9, "buyer": "b", "quantity": 1},
        {"event": "paused", **sale, "version": 7, "remaining": 0},
    ]  # fmt: skip


def test_versions_that_are_missing_are_told_as_a_gap_but_not_before_the_beginning() -> None:
    window = Window("p", "e", 0)
    window.extend([Change(kind=Kind.OPENED, version=5, at_ms=0, remaining=1), sold(6)], {})
    assert [event.event for event in everything(window, 0)] == ["opened", "sold"]
    assert window.opened == 5
    window.extend([sold(6), sold(9)], {})
    window.skip_to(12)
    assert everything(window, 6) == [
        FeedEvent(event="gap", product_id="p", version=8, after_version=6),
        *everything(window, 8),
    ]
    assert [event.version for event in everything(window, 7)] == [8, 9, 12]
    window.trim(1, 1 << 20)
    assert (window.base, window.opened) == (9, 5), "who knows an earlier sale is told so, however long ago it was"
    assert Window("p", "e", 5).opened == 0
    assert everything(window, 9) == [FeedEvent(event="gap", product_id="p", version=12, after_version=9)]


def test_a_slice_is_no_larger_than_asked_for_unless_one_frame_is() -> None:
    window = Window("p", "e", 0)
    window.extend([sold(1), sold(2, "x" * 1_000), sold(3), sold(4)], {})
    sizes = [len(window.after(version, 10)[0]) for version in range(4)]
    assert sizes[1] > 1_000
    assert window.after(0, sizes[0]) == window.after(0, sizes[0] + 1)
    assert window.after(2, sizes[2] + sizes[3])[1] == 4
    assert window.after(2, sizes[2] + sizes[3] - 1)[1] == 3


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20), st.integers(100, 3_000)), min_size=1, max_size=12),
    st.integers(1, 400),
)
def test_whatever_is_added_and_trimmed_each_version_behind_the_base_is_told_once(
    steps: list[tuple[int, int, int]], size_max: int
) -> None:
    window = Window("p", "e", 0)
    version = 0
    for count, count_max, kept_size in steps:
        window.extend([sold(version + number, "u" * number) for number in range(1, count + 1)], {})
        version += count
        window.trim(count_max, kept_size)
        assert window.version == version
        assert window.count <= count_max
        assert window.size <= kept_size
        for begin in {window.base, (window.base + version) // 2, version}:
            assert [event.version for event in everything(window, begin, size_max)] == list(
                range(begin + 1, version + 1)
            )
