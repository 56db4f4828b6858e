"""What stands in the topic: as it is documented, and what is refused."""

import re
from pathlib import Path

import msgspec
import pytest

from flashsale.domain.bounds import STOCK_MAX, TIME_MAX
from flashsale.domain.ids import OrderRef, parse_order_id
from flashsale.domain.sale import Change, Kind, Portion
from flashsale.kafka import messages
from flashsale.kafka.messages import SIZE_MAX, decode, encode

AT_MS = 1_900_000_000_123
README = Path(__file__).parent.parent.parent / "README.md"

EVERYTHING = [
    Change(kind=Kind.OPENED, version=7, at_ms=AT_MS, remaining=9, quantity=9, ref=3),
    Change(kind=Kind.SOLD, version=8, at_ms=AT_MS, remaining=8, user_id='"ä\0', quantity=1, request_id="r", item_id=2),
    Change(kind=Kind.HELD, version=9, at_ms=AT_MS, remaining=7, user_id="h", quantity=1, expires_at=1_900_000_900),
    Change(kind=Kind.EXTENDED, version=10, at_ms=AT_MS, remaining=7, user_id="h", ref=9, expires_at=1_900_001_000),
    Change(kind=Kind.CONFIRMED, version=11, at_ms=AT_MS, remaining=7, user_id="h", quantity=1, ref=9),
    Change(kind=Kind.CANCELLED, version=12, at_ms=AT_MS, remaining=8, user_id="h", quantity=1, ref=9),
    Change(kind=Kind.EXPIRED, version=13, at_ms=AT_MS, remaining=STOCK_MAX, user_id="h", quantity=1, ref=9),
    Change(kind=Kind.REFUNDED, version=14, at_ms=AT_MS, remaining=9, user_id="h", quantity=1, ref=8),
    Change(kind=Kind.RESTOCKED, version=15, at_ms=AT_MS, remaining=10, quantity=STOCK_MAX),
    Change(kind=Kind.PAUSED, version=16, at_ms=AT_MS, remaining=10),
    Change(kind=Kind.RESUMED, version=17, at_ms=AT_MS, remaining=10),
    Change(kind=Kind.CLOSED, version=18, at_ms=AT_MS, remaining=10),
]


def test_every_kind_of_change_is_read_as_it_was_written():
    assert {change.kind for change in EVERYTHING} == set(Kind)
    [message] = encode("p", "0000000a", EVERYTHING)
    assert decode(message) == Portion("p", "0000000a", EVERYTHING)


def test_orders_are_told_with_their_ids_and_nothing_else_is():
    [message] = encode("p", "0000000a", EVERYTHING)
    ids = {change[0]: parse_order_id(change[8]) for change in msgspec.json.decode(message)["changes"]}
    assert ids.pop("sold") == OrderRef("p", "0000000a", 8, AT_MS)
    assert ids.pop("confirmed") == OrderRef("p", "0000000a", 11, AT_MS)
    assert set(ids.values()) == {None}


def test_a_message_holds_changes_of_one_moment_and_stays_small():
    user = "\0" * 256  # six bytes each, in JSON
    changes = [
        Change(kind=Kind.SOLD, version=version, at_ms=AT_MS + version // 1_000, remaining=0, user_id=user, quantity=1)
        for version in range(1, 1_500)
    ]
    cut = list(encode("p", "0000000a", changes))
    assert len(cut) > 3
    assert all(len(message) < SIZE_MAX + 1_000 for message in cut)
    told = [decode(message) for message in cut]
    assert all(len({change.at_ms for change in one.changes}) == 1 for one in told)
    assert [change for one in told for change in one.changes] == changes
    assert list(encode("p", "0000000a", [])) == []


@pytest.mark.parametrize("where", [messages.__doc__, README.read_text()])
def test_the_example_is_one(where):
    example = re.search(r'\{"product_id":"p","epoch".*?\]\]\}', where, re.DOTALL)[0]
    told = decode(re.sub(r"\n *", "", example).encode())
    assert [change.kind for change in told.changes] == ["sold", "paused"]
    assert [change.version for change in told.changes] == [8, 9]
    names = ["product_id", "epoch", "version", "at", "changes"]
    assert list(msgspec.json.decode(re.sub(r"\n *", "", example))) == names
    ids = [row[8] for row in msgspec.json.decode(example)["changes"]]
    assert ids == [msgspec.json.decode(next(encode(told.product_id, told.epoch, told.changes)))["changes"][0][8], ""]


GOOD = ["sold", 1, "u", 1, 0, "", 0, 0, ""]
FINE = {"product_id": "p", "epoch": "0000000a", "version": 1, "at": 1, "changes": [GOOD]}


def test_what_is_more_than_what_we_know_is_ignored():
    assert decode(msgspec.json.encode(FINE | {"more": 1, "changes": [[*GOOD, "more"]]})) == decode(
        msgspec.json.encode(FINE)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        *(
            msgspec.json.encode(FINE | wrong)
            for wrong in (
                {"product_id": ""},
                {"product_id": "x" * 257},
                {"epoch": "0000000ab"},
                {"epoch": None},
                {"version": 0},
                {"version": STOCK_MAX + 1},
                {"version": "1"},
                {"at": -1},
                {"at": TIME_MAX * 1000 + 1},
                {"changes": []},
                {"changes": [["stolen", *GOOD[1:]]]},
                {"changes": [GOOD[:8]]},
                {"changes": [[*GOOD[:3], -1, *GOOD[4:]]]},
                {"changes": [[*GOOD[:7], TIME_MAX + 1, ""]]},
            )
        ),
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises((ValueError, RecursionError)):
        decode(data)
