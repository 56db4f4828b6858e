"""What goes to the decision script and what comes back, byte by byte, and the messages of the ledger."""

from typing import Any, get_args

import msgspec
import pytest

from flashsale.domain.answers import (
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    NOT_FOUND,
    ONE_ITEM_AT_A_TIME,
    ORDER_NOT_FOUND,
    SALE_IS_CLOSED,
    SOLD_OUT,
    STOCK_TOO_LARGE,
    Answer,
    Cancelled,
    Changed,
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
    Success,
    Swept,
)
from flashsale.domain.batches import Ambiguous, Batch, Defective
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.ids import OrderRef, make_code, make_order_id
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    GetStatus,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
    Sweep,
)
from flashsale.domain.sale import Change, Kind
from flashsale.store.encoding import decode_message, decode_reply, encode_batch

TOKEN = "A" * 22
CODE = make_code(TOKEN, "p")
ORDER = OrderRef("p", "0123abcd", 7, 1_760_000_000_000)
ORDER_ID = make_order_id(ORDER)


def mint() -> str:
    return "M" * 22


# Requests

REQUESTS: list[tuple[Request, list[Any]]] = [
    (Purchase("p", "a", 2), [1, "a", 2, "", 0, '"a",2']),
    (Purchase("p", "Zoë 😀\x00", 1, "r", 3), [1, "Zoë 😀\x00", 1, "=r", 3, '"Zoë 😀\\u0000",1,3,"r"']),
    (Purchase("p", "a", 1, "r"), [1, "a", 1, "=r", 0, '"a",1,0,"r"']),
    (Purchase("p", "a", 1, None, 3), [1, "a", 1, "", 3, '"a",1,3,""']),
    (Reserve("p", "a"), [2, "a", 1, "", 0, '"a",1', 0, "M" * 22]),
    (Reserve("p", "a", 2, "r", 3, 60), [2, "a", 2, "=r", 3, '"a",2,3,"r"', 60, "M" * 22]),
    (Confirm(CODE), [3, TOKEN, ""]),
    (Confirm(CODE, "r"), [3, TOKEN, "=r"]),
    (Cancel(CODE), [4, TOKEN]),
    (Extend(CODE, 60), [5, TOKEN, 60]),
    (Extend(CODE), [5, TOKEN, 0]),
    (GetStatus("p"), [6]),
    (Sweep("p"), [7]),
    (Restock("p", 5), [8, 5]),
    (Restock("p", 2**70), [8, STOCK_MAX + 1]),
    (Refund(ORDER_ID), [9, 7, 1_760_000_000_000, "0123abcd"]),
    (Refund("none"), [9, 0, 0, ""]),
    (Refund(make_order_id(OrderRef("p", "0123abcd", 2**70, 1))), [9, 0, 0, ""]),
    (Pause("p"), [10]),
    (Resume("p"), [11]),
    (Close("p"), [12]),
]


@pytest.mark.parametrize(("request_", "encoded"), REQUESTS, ids=[repr(request)[:60] for request, _ in REQUESTS])
def test_request_is_encoded_as_in_the_table(request_: Request, encoded: list[Any]) -> None:
    count, users, requests = encode_batch(Batch("p", [request_], 1), mint)
    assert (count, users) == (1, b"")
    assert msgspec.msgpack.decode(requests) == [encoded]


def test_each_kind_of_request_is_in_the_table() -> None:
    assert {type(request) for request, _ in REQUESTS} == set(get_args(Request))


def test_crowd_is_encoded_as_its_users() -> None:
    crowd = [Purchase("p", "a"), Purchase("p", 'quo"te'), Purchase("p", "a")]
    assert encode_batch(Batch("p", crowd, 1), mint) == (3, b'["a","quo\\"te","a"]', b"")


@pytest.mark.parametrize(
    "other", [Purchase("p", "b", 2), Purchase("p", "b", 1, "r"), Purchase("p", "b", 1, None, 1), GetStatus("p")]
)
def test_crowd_with_another_request_is_encoded_one_by_one(other: Request) -> None:
    count, users, requests = encode_batch(Batch("p", [Purchase("p", "a"), other], 1), mint)
    assert (count, users) == (2, b"")
    assert msgspec.msgpack.decode(requests)[0] == [1, "a", 1, "", 0, '"a",1']


def test_each_reserve_gets_a_secret_of_its_own() -> None:
    secrets = iter("xyz")
    batch = Batch("p", [Reserve("p", "a"), GetStatus("p"), Reserve("p", "a")], 1)
    encoded = msgspec.msgpack.decode(encode_batch(batch, secrets.__next__)[2])
    assert [encoded[0][7], encoded[2][7]] == ["x", "y"]
    assert next(secrets) == "z"


# Replies

ROWS: list[tuple[list[Any], Answer]] = [
    ([1, 5, 7, 1_760_000_000_000, 0], Success(5, ORDER_ID, 7)),
    ([1, 5, 7, 1_760_000_000_000, 3], Success(5, ORDER_ID, 7, 3)),
    ([0, [1, 5, 7, 1_760_000_000_000, 3]], Success(5, ORDER_ID, 7, 3, duplicate=True)),
    ([2, TOKEN, 99, 5, 7, 0], Held(CODE, 99, 5, 7)),
    ([2, TOKEN, 99, 5, 7, 3], Held(CODE, 99, 5, 7, 3)),
    ([0, [2, TOKEN, 99, 5, 7, 3]], Held(CODE, 99, 5, 7, 3, duplicate=True)),
    ([3, 5, 7], Cancelled(5, 7)),
    ([0, [3, 5, 7]], Cancelled(5, 7, duplicate=True)),
    ([4], Expired()),
    ([5, 0], SOLD_OUT),
    ([5, 2], SoldOut(2)),
    ([6], LimitExceeded()),
    ([7, 99], NotOpen(99)),
    ([8], Closed()),
    ([9], Paused()),
    ([10], ItemTaken()),
    ([11], Mismatch()),
    ([12, 5, 3, 2, "paused", 7], ProductStatus(5, 3, 2, "paused", 7)),
    ([13, 5, 7, False], Changed(5, 7)),
    ([13, 5, 7, True], Changed(5, 7, duplicate=True)),
    ([14, True], Swept(more=True)),
    ([14, False], Swept(more=False)),
    ([15, 1], Failed(HOLD_NOT_FOUND)),
    ([15, 2], Failed(ITEM_NOT_FOUND)),
    ([15, 3], Failed(ORDER_NOT_FOUND)),
    ([15, 4], Failed(ALREADY_CONFIRMED)),
    ([15, 5], Failed(ONE_ITEM_AT_A_TIME)),
    ([15, 6], Failed(SALE_IS_CLOSED)),
    ([15, 7], Failed(STOCK_TOO_LARGE)),
]
ALL = [
    Purchase("p", "a", 2),
    Reserve("p", "a"),
    Confirm(CODE),
    Cancel(CODE),
    Extend(CODE, 1),
    GetStatus("p"),
    Close("p"),
]


def batch_of(count: int) -> Batch:
    return Batch("p", [Purchase("p", "a")] * count, 1)


@pytest.mark.parametrize(("row", "answer"), ROWS, ids=[repr(row) for row, _ in ROWS])
def test_row_is_decoded_as_in_the_table(row: list[Any], answer: Answer) -> None:
    reply = [1, 5, msgspec.msgpack.encode([row, row]), b"0123abcd"]
    assert decode_reply(batch_of(2), reply) == [answer, answer]


@pytest.mark.parametrize("row", [[], [99], [1], [4, 4], [0]], ids=repr)
def test_row_that_is_none_raises(row: list[Any]) -> None:
    with pytest.raises(ValueError, match="the script answered"):
        decode_reply(batch_of(1), [1, 5, msgspec.msgpack.encode([row]), b"0123abcd"])


def test_crowd_is_told_the_first_so_many() -> None:
    reply = [1, 0, 10, 2, 6, 1_760_000_000_000, b"0123abcd"]
    second = make_order_id(OrderRef("p", "0123abcd", 8, 1_760_000_000_000))
    assert decode_reply(batch_of(4), reply) == [Success(9, ORDER_ID, 7), Success(8, second, 8), SOLD_OUT, SOLD_OUT]
    assert decode_reply(batch_of(2), [1, 0, 0, 0, 0, 0, b""]) == [SOLD_OUT, SOLD_OUT]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ([1, 4, b"paused", 0], Paused()),
        ([1, 4, b"closed", 99], Closed()),
        ([1, 4, b"not_open", 99], NotOpen(99)),
    ],
)
def test_crowd_is_refused_with_one_answer(reply: list[Any], answer: Answer) -> None:
    assert decode_reply(batch_of(2), reply) == [answer, answer]


def test_requests_about_no_product_are_told_so() -> None:
    expected = [NOT_FOUND] * 2 + [Failed(HOLD_NOT_FOUND)] * 3 + [NOT_FOUND] * 2
    assert decode_reply(Batch("p", ALL, 1), [1, 1]) == expected


def test_batch_without_answers() -> None:
    assert decode_reply(batch_of(1), [1, 2]) == Ambiguous("overtaken by a later batch of its session", alone=True)
    assert decode_reply(batch_of(1), [1, 3, b"its stock is gone"]) == Defective("its stock is gone")


# The ledger


def test_message_of_a_crowd() -> None:
    fields = {b"at": b"1760000000000", b"sales": '[5,["a","Zoë 😀"]]'.encode()}
    assert list(decode_message(b"7-0", fields)) == [
        Change(kind=Kind.SOLD, version=7, at_ms=1_760_000_000_000, remaining=4, user_id="a", quantity=1),
        Change(kind=Kind.SOLD, version=8, at_ms=1_760_000_000_000, remaining=3, user_id="Zoë 😀", quantity=1),
    ]


def test_message_of_all_there_is() -> None:
    changes = b'[["opened",5,"",7,0,"",2],["held",4,"a",1,3,"r",0,99],["paused",4]]'
    fields = {b"at": b"5", b"changes": changes, b"sales": b'[4,["b"]]', b"of a later version": b"x"}
    assert list(decode_message(b"1-0", fields)) == [
        Change(kind=Kind.OPENED, version=1, at_ms=5, remaining=5, quantity=7, ref=2),
        Change(
            kind=Kind.HELD,
            version=2,
            at_ms=5,
            remaining=4,
            user_id="a",
            quantity=1,
            item_id=3,
            request_id="r",
            expires_at=99,
        ),
        Change(kind=Kind.PAUSED, version=3, at_ms=5, remaining=4),
        Change(kind=Kind.SOLD, version=4, at_ms=5, remaining=3, user_id="b", quantity=1),
    ]


@pytest.mark.parametrize("kind", Kind)
def test_message_of_each_kind_of_change(kind: Kind) -> None:
    [change] = decode_message(b"1-0", {b"at": b"5", b"changes": f'[["{kind}",1]]'.encode()})
    assert change == Change(kind=kind, version=1, at_ms=5, remaining=1)


@pytest.mark.parametrize(
    ("message_id", "fields"),
    [
        (b"1-0", {}),
        (b"1-0", {b"foo": b"bar"}),
        (b"x-0", {b"at": b"5"}),
        (b"1-0", {b"at": b"x"}),
        (b"1-0", {b"at": b"5", b"changes": b"x"}),
        (b"1-0", {b"at": b"5", b"changes": b'[["stolen",5]]'}),
        (b"1-0", {b"at": b"5", b"changes": b'[["sold"]]'}),
        (b"1-0", {b"at": b"5", b"changes": b'["sold"]'}),
        (b"1-0", {b"at": b"5", b"sales": b"[]"}),
        (b"1-0", {b"at": b"5", b"sales": b"[1,[2]]"}),
    ],
)
def test_message_of_somebody_else_raises(message_id: bytes, fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words
        list(decode_message(message_id, fields))
