"""Keys that somebody else has written: never a SUCCESS that is not true, and never half of a batch.

Either the batch is told to be Defective and every key is as it was, or what was written does not concern it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from flashsale.domain.answers import HOLD_NOT_FOUND, NOT_FOUND, SOLD_OUT, Failed, Success, Swept
from flashsale.domain.batches import Batch, Defective, NotExecuted
from flashsale.domain.bounds import STOCK_MAX, SWEEP_COUNT_MAX
from flashsale.domain.ids import token_of
from flashsale.domain.requests import (
    Cancel,
    Confirm,
    Extend,
    GetStatus,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Sweep,
)
from flashsale.domain.sale import PLAIN, Terms
from flashsale.store import keys

KEPT_S = 86_400 + PLAIN.hold_total_s


class Busy(NamedTuple):
    """A product that has used every key, and requests that need each of them."""

    twins: Any
    store: Any
    tokens: list[str]
    mixed: list[Request]

    def tell(self, *requests: Request, sequence: int = 1_000, fenced: bool = False) -> Any:
        return self.twins.tell_script(Batch("p", requests, sequence, fenced=fenced))

    def key(self, part: str) -> str:
        return keys.key("p", part)


@pytest.fixture
def busy(twins: Any, bare_store: Any) -> Busy:
    twins.create("p", 40, Terms(limit=20, numbered=True))
    held: list[Any] = twins.decide("p", *[Reserve("p", "a", request_id=f"h{i}") for i in range(6)])
    sold: list[Any] = twins.decide("p", Purchase("p", "b"), Purchase("p", "b", request_id="s"))
    twins.decide("p", Cancel(held[0].code), Refund(sold[0].order_id))
    twins.wait(KEPT_S)
    twins.decide("p", Sweep("p"))
    held = twins.decide("p", *[Reserve("p", "a", request_id=f"g{i}", hold_seconds=1 + i) for i in range(6)])
    twins.wait(1)
    mixed = [
        Purchase("p", "a", request_id="new"),
        Reserve("p", "b", request_id="newer"),
        Purchase("p", "b", request_id="s"),
        Confirm(held[2].code),
        Cancel(held[3].code),
        Extend(held[4].code, 100),
        Refund(sold[1].order_id),
        Restock("p", 1),
        GetStatus("p"),
    ]
    return Busy(twins, bare_store, [token_of(hold.code) for hold in held], mixed)


def is_refused(busy: Busy, *requests: Request) -> None:
    """See the batch told to be Defective, and every key as it was, the first time and again."""
    before = busy.twins.dump("p")
    for fenced in (False, True):
        outcome = busy.tell(*requests, fenced=fenced)
        assert isinstance(outcome, Defective), outcome
        assert busy.twins.dump("p") == before


def test_what_is_refused_below_is_decided_when_nobody_has_tampered(busy: Busy) -> None:
    outcome = busy.tell(*busy.mixed)
    assert not any(isinstance(answer, Failed) for answer in outcome)


# A key of another type

PLANTS: dict[str, tuple[Any, ...]] = {
    "string": ("SET", "garbage"),
    "list": ("RPUSH", "garbage"),
    "hash": ("HSET", "garbage", "garbage"),
    "set": ("SADD", "garbage"),
}
TYPES = {
    "stock": "string", "buyers": "list", "sessions": "hash", "sale": "hash", "orders": "stream", "users": "hash",
    "deadlines": "zset", "items": "string", "requests": "hash", "requests_before": "hash", "refunds": "hash",
}  # fmt: skip


OTHER_TYPES = [(part, kind) for part in TYPES for kind in PLANTS if kind != TYPES[part]]
SHORT_WAY_PARTS = ("stock", "buyers", "sessions", "sale", "orders")


@pytest.mark.parametrize(("part", "kind"), OTHER_TYPES)
def test_key_of_another_type(busy: Busy, part: str, kind: str) -> None:
    command, *values = PLANTS[kind]
    busy.store.ask(("DEL", busy.key(part)), (command, busy.key(part), *values))
    is_refused(busy, *busy.mixed)
    busy.twins.wait(-1)
    is_refused(busy, *busy.mixed)  # when nothing is due


@pytest.mark.parametrize(("part", "kind"), [case for case in OTHER_TYPES if case[0] in SHORT_WAY_PARTS])
@pytest.mark.parametrize("begun", [True, False])
def test_key_of_another_type_on_the_short_way(twins: Any, bare_store: Any, part: str, kind: str, begun: bool) -> None:
    if begun:
        twins.create("p", 5)
        twins.decide("p", Purchase("p", "a"))
    else:
        twins.set_stock("p", 5)
    command, *values = PLANTS[kind]
    bare_store.ask(("DEL", keys.key("p", part)), (command, keys.key("p", part), *values))
    is_refused(Busy(twins, bare_store, [], []), Purchase("p", "a"), Purchase("p", "b"))


def test_shared_keys_of_another_type_concern_nobody(twins: Any, bare_store: Any) -> None:
    bare_store.ask(("SET", "products", 1), ("SET", "products_due", 1))
    bare_store.do("SET", "product:p:stock", 5)
    outcome = twins.tell_script(Batch("p", [Purchase("p", "a"), Reserve("p", "a")], 1))
    assert [answer.remaining_stock for answer in outcome] == [4, 3]


# A value that nobody can read

GARBAGE: dict[str, tuple[Any, ...]] = {
    **{
        f"{field} {value or 'empty'}": ("HSET", "sale", field, value)
        for field in (
            "version", "sold", "held", "due", "limit", "opens_at", "closes_at", "items", "hold_s", "hold_total_s",
            "cursor", "restocked", "since", "since_before", "refunded",
        )
        for value in ("", "abc", "1x")
    },
    **{
        f"{field} {value}": ("HSET", "sale", field, value)
        for field in ("sold", "held")
        for value in ("-1", "nan", "inf", STOCK_MAX)
    },
    "no epoch": ("HDEL", "sale", "epoch"),
    "no version": ("HDEL", "sale", "version"),
    "no sold": ("HDEL", "sale", "sold"),
    "no counters": ("DEL", "sale"),
    "version set back": ("HSET", "sale", "version", 1),
    "version set back to nothing": ("HSET", "sale", "version", 0),
    "version 1.5": ("HSET", "sale", "version", "1.5"),
    "version too large": ("HSET", "sale", "version", "1e14"),
    "version infinite": ("HSET", "sale", "version", "inf"),
    "version not a number": ("HSET", "sale", "version", "nan"),
    "a message of the store's own id": ("XADD", "orders", "*", "foo", "bar"),
    "a message ahead": ("XADD", "orders", "99999-0", "at", "1", "changes", "[]"),
    "no stock": ("DEL", "stock"),
    "stock abc": ("SET", "stock", "abc"),
    "stock 1.5": ("SET", "stock", "1.5"),
    "stock empty": ("SET", "stock", ""),
    "stock with a space": ("SET", "stock", " 5"),
    "stock 1e3": ("SET", "stock", "1e3"),
    "stock 0x10": ("SET", "stock", "0x10"),
    "stock with a leading zero": ("SET", "stock", "007"),
    "stock too large": ("SET", "stock", STOCK_MAX + 1),
    "stock beyond 64 bits": ("SET", "stock", "9" * 30),
    "a session": ("HSET", "sessions", "one", "abc"),
    "a session without its reply": ("HSET", "sessions", "one", "1000 5"),
    "a session with garbage": ("HSET", "sessions", "one", "1000 5", "one:reply", b"\xc1"),
    "a session with another reply": ("HSET", "sessions", "one", "1000 5", "one:reply", b"\x91\x07"),
    "a session with no reply": ("HSET", "sessions", "one", "1000 5", "one:reply", b"\x07"),
    "a hold of garbage": ("HSET", "requests", "DUE", b"\xc1"),
    "a hold of a number": ("HSET", "requests", "DUE", b"\x07"),
    "a hold of something else": ("HSET", "requests", "DUE", b"\x91\x07"),
    "a hold of too little": ("HSET", "requests", "DUE", b"\x91\x10"),
    "another hold of garbage": ("HSET", "requests", "CONFIRMED", b"\xc1"),
    "another hold of a number": ("HSET", "requests", "CONFIRMED", b"\x07"),
    "another hold of something else": ("HSET", "requests", "CONFIRMED", b"\x91\x07"),
    "another hold of too little": ("HSET", "requests", "CONFIRMED", b"\x91\x10"),
    "a record of garbage": ("HSET", "requests", "=new", b"\xc1"),
    "a record of a number": ("HSET", "requests", "=new", b"\x07"),
    "an older record of garbage": ("HSET", "requests_before", "=s", b"\xc1"),
    "a refund too many": ("HSET", "refunds", "7", "8"),
    "a refund too few": ("HSET", "sale", "refunded", 2),
    "units of a user": ("HSET", "users", "a", "abc"),
}  # fmt: skip


@pytest.mark.parametrize("what", GARBAGE)
def test_value_that_nobody_can_read(busy: Busy, what: str) -> None:
    command, part, *values = GARBAGE[what]
    places = {"DUE": busy.tokens[0], "CONFIRMED": busy.tokens[2]}
    busy.store.do(command, busy.key(part), *(places.get(value, value) for value in values))
    is_refused(busy, *busy.mixed)


SHORT_WAY = [
    what
    for what, (_, part, *values) in GARBAGE.items()
    if part in ("stock", "orders", "sessions")
    or (
        part == "sale"
        and not {
            "items",
            "hold_s",
            "hold_total_s",
            "cursor",
            "restocked",
            "since",
            "since_before",
            "refunded",
        }
        & {*values}
    )
]


@pytest.mark.parametrize("what", SHORT_WAY)
def test_value_that_nobody_can_read_on_the_short_way(twins: Any, bare_store: Any, what: str) -> None:
    twins.create("p", 5)
    twins.decide("p", *[Purchase("p", "a")] * 3)
    command, part, *values = GARBAGE[what]
    bare_store.do(command, keys.key("p", part), *values)
    is_refused(Busy(twins, bare_store, [], []), Purchase("p", "a"), Purchase("p", "b"))


def test_stock_and_buyers_set_by_hand_that_are_too_many_together(twins: Any, bare_store: Any) -> None:
    bare_store.ask(("SET", "product:p:stock", STOCK_MAX), ("RPUSH", "product:p:buyers", "a"))
    is_refused(Busy(twins, bare_store, [], []), Purchase("p", "a"))
    bare_store.do("SET", "product:p:stock", STOCK_MAX - 1)
    assert twins.tell_script(Batch("p", [Purchase("p", "a")], 1))[0].remaining_stock == STOCK_MAX - 2


def test_foreign_message_in_front_of_an_order(busy: Busy) -> None:
    """A refund that looks for its order does not take another's words for it."""
    [(name, _)] = busy.store.do("XREVRANGE", busy.key("orders"), "+", "-", "COUNT", 1)
    first = int(name.partition(b"-")[0])
    busy.store.do("XADD", busy.key("orders"), f"{first}-1", "foo", "[[]]")
    version, epoch = busy.twins.version("p")
    refund = Refund(f"{busy.twins.now_ms:011x}-{version:010x}-{epoch}-p")
    is_refused(busy, refund)


# Keys that are gone


def test_negative_stock_set_by_hand_is_sold_out(twins: Any, bare_store: Any) -> None:
    bare_store.do("SET", "product:p:stock", -3)
    status = twins.tell_script(Batch("p", [GetStatus("p"), Purchase("p", "a"), Purchase("p", "a", 2)], 1))
    assert (status[0].remaining_stock, status[1], status[2]) == (0, SOLD_OUT, SOLD_OUT)
    assert twins.tell_script(Batch("p", [Purchase("p", "a")], 2)) == [SOLD_OUT]
    assert bare_store.do("GET", "product:p:stock") == b"-3"


def test_stock_gone_before_the_ledger_began_is_no_product(twins: Any, bare_store: Any) -> None:
    bare_store.do("LPUSH", "product:p:buyers", "a")
    assert twins.tell_script(Batch("p", [Purchase("p", "a")], 1)) == [NOT_FOUND]


@pytest.mark.parametrize("part", ["stock", "sale", "users", "deadlines", "items", "requests", "requests_before"])
def test_key_that_is_gone_is_not_an_empty_one(busy: Busy, part: str) -> None:
    busy.store.do("DEL", busy.key(part))
    is_refused(busy, *busy.mixed)
    is_refused(busy, Purchase("p", "z"))


def test_refunds_that_are_gone_are_not_made_again(busy: Busy) -> None:
    busy.store.do("DEL", busy.key("refunds"))
    is_refused(busy, *busy.mixed)
    assert isinstance(busy.tell(Purchase("p", "b"))[0], Success)


@pytest.mark.parametrize("part", ["buyers", "sessions", "orders"])
def test_key_that_may_be_gone(busy: Busy, part: str) -> None:
    """What is no longer kept, or was trimmed, is gone for good reasons."""
    busy.store.do("DEL", busy.key(part))
    assert isinstance(busy.tell(*busy.mixed)[0], Success)


def test_a_hold_that_is_gone_is_not_found_and_its_deadline_is_cleared(busy: Busy) -> None:
    """Its units stay held: nobody can say any more whose they are."""
    busy.store.do("HDEL", busy.key("requests"), busy.tokens[2])
    code = f"{busy.tokens[2]}.p"
    assert busy.tell(Confirm(code), Cancel(code), Extend(code, 1), sequence=1_001) == [Failed(HOLD_NOT_FOUND)] * 3
    busy.twins.wait(1_000)
    assert busy.tell(Sweep("p"), sequence=1_002) == [Swept(more=False)]
    assert busy.store.do("EXISTS", busy.key("deadlines")) == 0
    assert busy.tell(GetStatus("p"), sequence=1_003) == Defective("one of its keys is gone")


def test_any_number_of_deadlines_without_holds_is_cleared(busy: Busy) -> None:
    for start in range(0, 20_000, 1_000):
        scores = [value for i in range(start, start + 1_000) for value in (1, f"token{i:017}")]
        busy.store.do("ZADD", busy.key("deadlines"), *scores)
    busy.store.do("HSET", busy.key("sale"), "due", 1)
    rounds = 1
    while busy.tell(Sweep("p"), sequence=1_000 + rounds)[0].more:
        rounds += 1
        assert rounds < 500
    assert rounds == 20_000 // SWEEP_COUNT_MAX + 1
    assert busy.store.do("ZCARD", busy.key("deadlines")) == 5  # one of the six was due


def test_many_deadlines_without_holds_do_not_hinder_a_purchase(twins: Any, bare_store: Any) -> None:
    twins.create("p", 1)
    twins.decide("p", Reserve("p", "a"))
    for start in range(0, 20_000, 1_000):
        bare_store.do("ZADD", "product:p:deadlines", *[v for i in range(1_000) for v in (1, f"{start + i}")])
    twins.wait(900)
    told = [twins.tell_script(Batch("p", [Purchase("p", "b")], 1_000 + i))[0] for i in range(5)]
    assert told[:4] == [SOLD_OUT] * 4  # the hold is behind them: 256 and then 4,096 in a batch
    assert isinstance(told[4], Success)


# A store that takes nothing more


@pytest.mark.parametrize(
    "requests",
    [
        [Purchase("p", "a")],
        [Purchase("p", "a", 2)],
        [Reserve("p", "a", request_id="r")],
        [Restock("p", 1)],
        [Sweep("p")],
    ],
    ids=repr,
)
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("fenced", [False, True])
def test_out_of_memory(twins: Any, bare_store: Any, requests: list[Request], by_hand: bool, fenced: bool) -> None:
    if by_hand:
        twins.set_stock("p", 5)
    else:
        twins.create("p", 5)
        twins.decide("p", Reserve("p", "a"))
        twins.wait(900)
    before = twins.dump("p")
    bare_store.do("CONFIG", "SET", "maxmemory", 1)
    try:
        outcome = twins.tell_script(Batch("p", requests, 1_000, fenced=fenced))
    finally:
        bare_store.do("CONFIG", "SET", "maxmemory", 0)
    if by_hand and isinstance(requests[0], Sweep) and not fenced:
        assert outcome == [Swept(more=False)]
    else:
        assert isinstance(outcome, NotExecuted), outcome
    assert twins.dump("p") == before
    assert isinstance(twins.tell_script(Batch("p", requests, 1_000)), list)


def test_refused_keys_are_started_anew_by_the_operator(busy: Busy, forced_init: Callable[[], None]) -> None:
    for part in TYPES:
        if part != "sessions":  # a batch on its way must find them
            busy.store.ask(("DEL", busy.key(part)), ("RPUSH", busy.key(part), "garbage"))
    is_refused(busy, Purchase("p", "a"))
    forced_init()
    assert isinstance(busy.tell(Purchase("p", "a"))[0], Success)


@pytest.mark.parametrize("version", ["abc", "", "nan", "inf", "-5", "1.5", "9" * 15])
def test_version_that_nobody_can_read_is_started_anew(
    busy: Busy, forced_init: Callable[[], None], version: str
) -> None:
    busy.store.do("HSET", busy.key("sale"), "version", version)
    forced_init()
    assert isinstance(busy.tell(Purchase("p", "a"))[0], Success)


@pytest.fixture
def forced_init(busy: Busy) -> Callable[[], None]:
    """Open the sale anew, whatever its keys hold."""

    def init() -> None:
        busy.twins.init("p", 9, Terms())

    return init
