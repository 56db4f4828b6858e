"""Each rule of a sale by itself, told by MemoryEngine and by the script: whatever is decided here is decided by both,
and their products are compared whole after every batch (conftest.py).
"""

import time
from collections.abc import Callable
from typing import Any

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
from flashsale.domain.batches import Ambiguous, Batch
from flashsale.domain.bounds import ITEMS_MAX, LAZY_COUNT_MAX, QUANTITY_MAX, STOCK_MAX, SWEEP_COUNT_MAX
from flashsale.domain.ids import TOKEN_LENGTH, OrderRef, make_code, make_order_id, token_of
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
from flashsale.domain.sale import PLAIN, Kind, Terms

DAY_S = 86_400
KEPT_S = DAY_S + PLAIN.hold_total_s


class Sale:
    """One product in both engines, and the words to try it with."""

    def __init__(self, twins: Any) -> None:
        self.twins = twins

    def open(self, stock: int, **terms: Any) -> "Sale":
        self.twins.create("p", stock, Terms(**terms))
        return self

    def decide(self, *requests: Request, session: str = "one") -> list[Answer]:
        answers: list[Answer] = self.twins.decide("p", *requests, session=session)
        return answers

    def ask(self, request: Request, session: str = "one") -> Any:
        [answer] = self.decide(request, session=session)
        return answer

    def buy(self, user: str = "a", quantity: int = 1, session: str = "one", **details: Any) -> Any:
        return self.ask(Purchase("p", user, quantity, **details), session)

    def reserve(self, user: str = "a", quantity: int = 1, session: str = "one", **details: Any) -> Any:
        return self.ask(Reserve("p", user, quantity, **details), session)

    def status(self) -> ProductStatus:
        status: ProductStatus = self.ask(GetStatus("p"))
        return status

    def success(self, version: int, remaining: int, item_id: int | None = None) -> Success:
        """The answer to a sale at this moment."""
        order = OrderRef("p", self.twins.version("p")[1], version, self.twins.now_ms)
        return Success(remaining, make_order_id(order), version, item_id)

    @property
    def left(self) -> tuple[int, int, int]:
        status = self.status()
        return status.remaining_stock, status.sold, status.held

    @property
    def kinds(self) -> list[str]:
        return [change.kind.value for change in self.twins.ledger("p")]

    def changes_nothing(self, *requests: Request) -> list[Answer]:
        """Decide them, and see every key as it was."""
        before = self.twins.dump("p")
        answers = self.decide(*requests)
        assert self.twins.dump("p") == before
        return answers


@pytest.fixture
def sale(twins: Any) -> Sale:
    return Sale(twins)


def again(answer: Any) -> Any:
    """The answer as it is given to a repeated request."""
    fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
    return type(answer)(**fields | {"duplicate": True})


# Units


def test_more_than_what_is_left_is_refused_and_less_still_sells(sale: Sale) -> None:
    sale.open(5)
    answers = sale.decide(
        Purchase("p", "a", 3), Purchase("p", "b", 3), Purchase("p", "c", 2), Purchase("p", "d", 2), Reserve("p", "e")
    )
    assert [type(answer) for answer in answers] == [Success, SoldOut, Success, SoldOut, SoldOut]
    assert answers[1] == SoldOut(2)
    assert answers[3] == SOLD_OUT
    assert sale.left == (0, 5, 0)


def test_the_last_unit_sells_and_is_held(sale: Sale) -> None:
    sale.open(2)
    assert sale.reserve("a").remaining_stock == 1
    assert sale.buy("b").remaining_stock == 0
    assert sale.buy("c") == SOLD_OUT
    assert sale.reserve("c") == SOLD_OUT
    assert sale.left == (0, 1, 1)


def test_the_most_units_of_one_request(sale: Sale) -> None:
    sale.open(STOCK_MAX)
    assert sale.buy("a", QUANTITY_MAX).remaining_stock == STOCK_MAX - QUANTITY_MAX
    assert sale.reserve("a", QUANTITY_MAX).remaining_stock == STOCK_MAX - 2 * QUANTITY_MAX


def test_units_of_each_kind_are_told_by_the_ledger(sale: Sale) -> None:
    sale.open(9)
    held = sale.reserve("b", 2, request_id="r")
    sale.decide(Purchase("p", "a", 3), Extend(held.code, 900), Confirm(held.code), Restock("p", 4), Pause("p"))
    bought = sale.twins.ledger("p")[-3]
    assert bought.kind == Kind.CONFIRMED
    assert (bought.user_id, bought.quantity, bought.request_id, bought.ref) == ("b", 2, "r", 2)
    assert sale.kinds == ["opened", "held", "sold", "confirmed", "restocked", "paused"]


def test_stock_set_by_hand_begins_a_ledger_with_its_first_change(sale: Sale) -> None:
    sale.twins.set_stock("p", 3, ("x", "y"))
    assert sale.status() == ProductStatus(3, 2, version=0)
    assert sale.changes_nothing(Resume("p"), Purchase("p", "a", 4)) == [Changed(3, 0, duplicate=True), SoldOut(3)]
    assert sale.buy("a", 2).version == 2
    opened, sold = sale.twins.ledger("p")
    assert (opened.kind, opened.version, opened.remaining, opened.quantity, opened.ref) == ("opened", 1, 3, 5, 2)
    assert (sold.version, sold.remaining) == (2, 1)
    assert sale.buy("b").version == 3


@pytest.mark.parametrize("first", [Reserve("p", "a"), Restock("p", 1), Pause("p"), Close("p")], ids=repr)
def test_stock_set_by_hand_begins_with_any_change(sale: Sale, first: Request) -> None:
    sale.twins.set_stock("p", 3, ("x",))
    sale.decide(first, GetStatus("p"), Purchase("p", "b"))
    assert sale.kinds[0] == "opened"
    sale.decide(GetStatus("p"), Purchase("p", "b"))


def test_versions_go_on_when_a_product_is_opened_again(sale: Sale) -> None:
    sale.open(3)
    version = sale.buy().version
    sale.open(3)
    assert sale.status() == ProductStatus(3, 0, version=version + 1)
    assert sale.buy().version == version + 2


def test_product_that_is_not_there(sale: Sale) -> None:
    code = make_code("A" * 22, "p")
    requests = [Purchase("p", "a", 2), Reserve("p", "a"), GetStatus("p"), Sweep("p"), Restock("p", 1), Close("p")]
    assert sale.changes_nothing(*requests) == [NOT_FOUND] * 6
    assert sale.changes_nothing(Confirm(code), Cancel(code), Extend(code, 1)) == [Failed(HOLD_NOT_FOUND)] * 3


# Refusals


def test_no_refusal_touches_a_key(sale: Sale) -> None:
    sale.open(4, numbered=True, limit=2, closes_at=sale.twins.now_s + 10)
    held = sale.reserve("a", item_id=2, request_id="r")
    sold = sale.buy("b")
    over = sale.reserve("c")
    sale.decide(Cancel(over.code))
    sale.buy("a")
    refused = sale.changes_nothing(
        Purchase("p", "a"),
        Reserve("p", "a"),
        Purchase("p", "c", item_id=2),
        Purchase("p", "c", item_id=5),
        Purchase("p", "c", 2),
        Purchase("p", "a", request_id="r"),
        Confirm(make_code("A" * 22, "p")),
        Refund(sold.order_id.replace("-0000beef-", "-0000dead-")),
        Refund("no order"),
        Restock("p", ITEMS_MAX),
        Resume("p"),
        Sweep("p"),
        GetStatus("p"),
    )
    assert refused == [
        LimitExceeded(),
        LimitExceeded(),
        ItemTaken(),
        Failed(ITEM_NOT_FOUND),
        Failed(ONE_ITEM_AT_A_TIME),
        Mismatch(),
        Failed(HOLD_NOT_FOUND),
        Failed(ORDER_NOT_FOUND),
        Failed(ORDER_NOT_FOUND),
        Failed(STOCK_TOO_LARGE),
        Changed(1, 6, duplicate=True),
        Swept(more=False),
        ProductStatus(1, 2, 1, "open", 6),
    ]
    sale.decide(Pause("p"))
    assert sale.changes_nothing(Purchase("p", "c", 2)) == [Paused()]
    assert sale.changes_nothing(Purchase("p", "c")) == [Paused()]
    sale.twins.wait(10)
    assert sale.changes_nothing(Purchase("p", "c"), Reserve("p", "c")) == [Closed(), Closed()]
    assert sale.changes_nothing(Purchase("p", "c")) == [Closed()]
    assert sale.ask(Confirm(held.code)).item_id == 2  # what is held may be confirmed


def test_sold_out_touches_no_key(sale: Sale) -> None:
    sale.open(2)
    assert sale.changes_nothing(Purchase("p", "a", 3, request_id="r")) == [SoldOut(2)]
    sale.buy("a", 2)
    assert sale.changes_nothing(*[Purchase("p", "a")] * 3) == [SOLD_OUT] * 3
    assert sale.changes_nothing(Purchase("p", "a", 2), Reserve("p", "b", request_id="r")) == [SOLD_OUT] * 2


# The window and the state


@pytest.mark.parametrize("quantity", [1, 2])
def test_a_sale_opens_and_closes_at_the_exact_moment(sale: Sale, quantity: int) -> None:
    opens_at = sale.twins.now_s + 5
    closes_at = opens_at + 5
    sale.open(9, opens_at=opens_at, closes_at=closes_at)
    told = []
    for moment_ms in (opens_at * 1000 - 1, opens_at * 1000, closes_at * 1000 - 1, closes_at * 1000):
        sale.twins.set_now(moment_ms)
        told.append((type(sale.buy("a", quantity)), sale.status().state))
    assert told == [(NotOpen, "not_open"), (Success, "open"), (Success, "open"), (Closed, "closed")]
    assert sale.buy() == Closed()
    sale.decide(Pause("p"))
    assert sale.status().state == "closed"


def test_before_it_opens_it_says_when(sale: Sale) -> None:
    opens_at = sale.twins.now_s + 5
    sale.open(0, opens_at=opens_at)
    assert sale.decide(*[Purchase("p", "a")] * 2) == [NotOpen(opens_at)] * 2
    assert sale.buy("a", 2) == NotOpen(opens_at)
    sale.decide(Pause("p"))
    assert sale.buy() == Paused()


def test_states_follow_the_operator(sale: Sale) -> None:
    sale.open(5)
    held = sale.reserve()
    assert sale.decide(Pause("p"), Pause("p"), Purchase("p", "a"), Resume("p"), Purchase("p", "a")) == [
        Changed(4, 3),
        Changed(4, 3, duplicate=True),
        Paused(),
        Changed(4, 4),
        sale.success(5, 3),
    ]
    assert sale.decide(Close("p"), Close("p"), Pause("p"), Resume("p"), Reserve("p", "a"), Confirm(held.code)) == [
        Changed(3, 6),
        Changed(3, 6, duplicate=True),
        Failed(SALE_IS_CLOSED),
        Failed(SALE_IS_CLOSED),
        Closed(),
        sale.success(7, 3),
    ]
    assert sale.status().state == "closed"


# Holds


def test_a_hold_ends_once_and_tells_how(sale: Sale) -> None:
    sale.open(9)
    kept, given_up, forgotten = (sale.reserve("a", 2) for _ in range(3))
    confirmed = sale.ask(Confirm(kept.code))
    cancelled = sale.ask(Cancel(given_up.code))
    sale.twins.wait(900)
    assert [sale.ask(Confirm(hold.code)) for hold in (kept, given_up, forgotten)] == [
        again(confirmed),
        again(cancelled),
        Expired(),
    ]
    assert [sale.ask(Cancel(hold.code)) for hold in (kept, given_up, forgotten)] == [
        Failed(ALREADY_CONFIRMED),
        again(cancelled),
        Expired(),
    ]
    assert [sale.ask(Extend(hold.code, 5)) for hold in (kept, given_up, forgotten)] == [
        Failed(ALREADY_CONFIRMED),
        again(cancelled),
        Expired(),
    ]
    assert sale.left == (7, 2, 0)
    assert sale.kinds[4:] == ["confirmed", "cancelled", "expired"]


@pytest.mark.parametrize("last", [Confirm, Cancel, lambda code: Extend(code, 100)])
def test_a_hold_is_good_until_its_last_moment_and_not_at_it(sale: Sale, last: Callable[[str], Request]) -> None:
    sale.open(2)
    early, late = sale.reserve("a", hold_seconds=10), sale.reserve("b", hold_seconds=10)
    sale.twins.set_now(early.expires_at * 1000 - 1)
    assert isinstance(sale.ask(last(early.code)), Success | Cancelled | Held)
    sale.twins.set_now(late.expires_at * 1000)
    assert sale.ask(last(late.code)) == Expired()
    assert sale.kinds[-1] == "expired"


def test_a_hold_is_used_in_the_batch_that_made_it(sale: Sale) -> None:
    sale.open(3, numbered=True, limit=1)
    code = make_code(sale.twins.next_token(), "p")
    answers = sale.decide(Reserve("p", "a"), Extend(code, 5), Cancel(code), Purchase("p", "a"), Confirm(code))
    assert [type(answer) for answer in answers] == [Held, Held, Cancelled, Success, Cancelled]
    assert answers[3].item_id == 1


def test_time_of_a_hold_is_bounded_by_the_terms(sale: Sale) -> None:
    sale.open(5, hold_s=60, hold_total_s=100)
    now_s = sale.twins.now_s
    assert sale.reserve().expires_at == now_s + 60
    assert sale.reserve(hold_seconds=61).expires_at == now_s + 60
    held = sale.reserve(hold_seconds=59)
    assert held.expires_at == now_s + 59
    version = sale.status().version
    assert sale.ask(Extend(held.code, 10)).expires_at == now_s + 59  # never an earlier end
    assert sale.status().version == version
    assert sale.ask(Extend(held.code, 99)).expires_at == now_s + 99
    assert sale.ask(Extend(held.code, 2_000_000)).expires_at == now_s + 100
    sale.twins.wait(99)
    assert sale.ask(Extend(held.code, 2_000_000)).expires_at == now_s + 100
    sale.twins.wait(1)
    assert sale.ask(Confirm(held.code)) == Expired()
    assert sale.kinds[4:] == ["extended", "extended", "expired", "expired", "expired"]


@pytest.mark.parametrize("part_s", [0.001, 0.5, 0.999])
def test_a_hold_within_a_second_lasts_no_shorter_than_was_asked_for(sale: Sale, part_s: float) -> None:
    sale.open(2, hold_s=60, hold_total_s=100)
    now_s = sale.twins.now_s
    sale.twins.wait(part_s)
    held = sale.reserve(hold_seconds=10)
    assert held.expires_at == now_s + 1 + 10
    assert sale.ask(Extend(held.code, 20)).expires_at == now_s + 1 + 20
    assert sale.ask(Extend(held.code, 2_000)).expires_at == now_s + 1 + 100


def test_time_of_a_hold_in_all_is_never_less_than_of_one(sale: Sale) -> None:
    sale.open(1, hold_s=60, hold_total_s=0)
    held = sale.reserve()
    sale.twins.wait(59)
    assert sale.ask(Extend(held.code, 60)).expires_at == held.expires_at


def test_an_extension_without_a_time_is_one_of_the_hold_time(sale: Sale) -> None:
    sale.open(1, hold_s=60)
    held = sale.reserve(hold_seconds=10)
    sale.twins.wait(5)
    assert sale.ask(Extend(held.code)).expires_at == held.expires_at - 10 + 5 + 60


def test_an_extended_hold_outlives_its_first_deadline(sale: Sale) -> None:
    sale.open(1, hold_s=60)
    held = sale.reserve()
    sale.ask(Extend(held.code, 120))
    sale.twins.wait(60)
    assert sale.buy() == SOLD_OUT
    assert sale.ask(Sweep("p")) == Swept(more=False)
    sale.twins.wait(60)
    assert isinstance(sale.buy(), Success)


def test_units_of_an_expired_hold_are_back_for_whoever_asks_first(sale: Sale) -> None:
    sale.open(2)
    sale.reserve("a", 2)
    assert sale.buy("b") == SOLD_OUT
    sale.twins.wait(900)
    assert sale.decide(*[Purchase("p", "b")] * 3) == [*(sale.success(4 + i, 1 - i) for i in (0, 1)), SOLD_OUT]
    assert sale.kinds == ["opened", "held", "expired", "sold", "sold"]


def test_a_confirmed_hold_leaves_its_request_id_to_its_order(sale: Sale) -> None:
    sale.open(3)
    first, second = sale.reserve(request_id="one"), sale.reserve(request_id="two")
    sale.decide(Confirm(first.code), Confirm(second.code, "three"))
    assert [change.request_id for change in sale.twins.ledger("p")[-2:]] == ["one", "three"]


# Many holds


def fill(sale: Sale, count: int, **terms: Any) -> list[Held]:
    """Open a sale of so many units and hold them all, each until a second of its own."""
    sale.open(count, hold_s=86_400, **terms)
    answers: list[Any] = []
    for start in range(0, count, 1_000):
        numbers = range(start, min(start + 1_000, count))
        answers += sale.decide(*(Reserve("p", f"u{i % 50}", hold_seconds=1 + i // 7) for i in numbers))
    return answers


def test_a_batch_sweeps_so_many_and_says_whether_there_are_more(sale: Sale) -> None:
    fill(sale, 2 * SWEEP_COUNT_MAX + 6)
    sale.twins.wait(1_000)
    assert [sale.ask(Sweep("p")) for _ in range(4)] == [Swept(True), Swept(True), Swept(False), Swept(False)]
    assert sale.left == (2 * SWEEP_COUNT_MAX + 6, 0, 0)


def test_a_full_sweep_says_more_although_there_may_be_none(sale: Sale) -> None:
    fill(sale, SWEEP_COUNT_MAX)
    sale.twins.wait(1_000)
    assert [sale.ask(Sweep("p")) for _ in range(2)] == [Swept(True), Swept(False)]


@pytest.mark.parametrize("terms", [{}, {"limit": 200}, {"numbered": True, "limit": 200}], ids=repr)
def test_five_thousand_holds_due(sale: Sale, terms: dict[str, Any]) -> None:
    holds = fill(sale, 5_000, **terms)
    sale.twins.wait(5_000)
    requests = [Confirm(holds[-1].code), Purchase("p", "z"), Cancel(holds[0].code), GetStatus("p")]
    answers = sale.decide(*requests)
    assert [type(answer) for answer in answers] == [Expired, Success, Expired, ProductStatus]
    assert answers[3].held == 5_000 - SWEEP_COUNT_MAX - 1
    while sale.ask(Sweep("p")).more:
        pass
    assert sale.left == (4_999, 1, 0)


def test_a_purchase_takes_back_what_it_needs_beyond_the_sweep(sale: Sale) -> None:
    fill(sale, 5_000)
    sale.twins.wait(5_000)
    returned = SWEEP_COUNT_MAX + LAZY_COUNT_MAX
    answers = sale.decide(Purchase("p", "a", 1_000), Purchase("p", "b", returned - 1_000), Purchase("p", "c", 1))
    assert [type(answer) for answer in answers] == [Success, Success, SoldOut]
    assert sale.left == (SWEEP_COUNT_MAX, returned, 5_000 - returned - SWEEP_COUNT_MAX)


def test_a_purchase_takes_back_no_more_than_it_needs(sale: Sale) -> None:
    fill(sale, 600)
    sale.twins.wait(1_000)
    answers = sale.decide(Purchase("p", "a", 512), Purchase("p", "b", 2), Purchase("p", "c", 600), GetStatus("p"))
    assert [type(answer) for answer in answers] == [Success, Success, SoldOut, ProductStatus]
    assert (answers[3].remaining_stock, answers[3].sold, answers[3].held) == (0, 514, 86)
    assert sale.left == (86, 514, 0)


@pytest.mark.parametrize("count", [15, 16, 70_000])
def test_batch_of_many_that_are_not_a_crowd(sale: Sale, count: int) -> None:
    sale.open(9)
    answers = sale.decide(Purchase("p", "a", 2), *[GetStatus("p")] * (count - 1))
    assert answers[1:] == [ProductStatus(7, 2, version=2)] * (count - 1)


# Limits


def test_limit_counts_what_is_bought_and_what_is_held(sale: Sale) -> None:
    sale.open(99, limit=5)
    sale.buy("a", 2)
    held = sale.reserve("a", 2)
    assert sale.buy("a", 2) == LimitExceeded()
    assert sale.reserve("a", 2) == LimitExceeded()
    assert isinstance(sale.buy("a", 1), Success)
    assert sale.buy("b", 6) == LimitExceeded()
    assert isinstance(sale.buy("b", 5), Success)
    sale.ask(Confirm(held.code))
    assert sale.buy("a") == LimitExceeded()


def test_limit_holds_within_a_batch(sale: Sale) -> None:
    sale.open(99, limit=2)
    answers = sale.decide(*[Purchase("p", user) for user in "abaabba"])
    assert [type(answer) for answer in answers] == [Success] * 3 + [LimitExceeded, Success] + [LimitExceeded] * 2


@pytest.mark.parametrize("way", ["cancel", "expiry", "refund of a sale", "refund of a hold"])
def test_limit_gives_back(sale: Sale, way: str) -> None:
    sale.open(99, limit=3)
    held = sale.reserve("a", 3) if way != "refund of a sale" else sale.buy("a", 3)
    assert sale.buy("a") == LimitExceeded()
    match way:
        case "cancel":
            sale.ask(Cancel(held.code))
        case "expiry":
            sale.twins.wait(900)
        case "refund of a sale":
            sale.ask(Refund(held.order_id))
        case _:
            sale.ask(Refund(sale.ask(Confirm(held.code)).order_id))
    assert sale.buy("a", 4) == LimitExceeded()
    assert isinstance(sale.buy("a", 3), Success)
    assert sale.buy("a") == LimitExceeded()


def test_sold_out_is_said_before_the_limit(sale: Sale) -> None:
    sale.open(2, limit=1)
    assert sale.buy("a", 3) == SoldOut(2)
    assert sale.buy("a", 2) == LimitExceeded()


# Numbered items


def test_items_by_name_and_any(sale: Sale) -> None:
    sale.open(4, numbered=True)
    answers = sale.decide(
        Purchase("p", "a", item_id=2),
        Purchase("p", "a"),
        Reserve("p", "b"),
        Reserve("p", "b", item_id=3),
        Reserve("p", "b", item_id=4),
        Purchase("p", "c"),
    )
    assert [getattr(answer, "item_id", answer) for answer in answers] == [2, 1, 3, ItemTaken(), 4, SOLD_OUT]
    assert sale.buy("a", item_id=1) == SOLD_OUT


def test_items_that_come_back_are_had_again(sale: Sale) -> None:
    sale.open(5, numbered=True)
    sold, cancelled, expired = sale.buy("a"), sale.reserve("a"), sale.reserve("a", hold_seconds=5)
    assert [sale.buy("b").item_id, sale.buy("b").item_id] == [4, 5]
    sale.decide(Refund(sold.order_id), Cancel(cancelled.code))
    sale.twins.wait(5)
    assert sale.buy("c", item_id=expired.item_id).item_id == 3
    assert [sale.buy("c").item_id, sale.buy("c").item_id] == [1, 2]
    assert sale.buy("c") == SOLD_OUT


def test_items_are_added(sale: Sale) -> None:
    sale.open(1, numbered=True)
    sale.buy("a")
    assert sale.decide(Purchase("p", "a", item_id=2), Restock("p", 2), Purchase("p", "a", item_id=3)) == [
        Failed(ITEM_NOT_FOUND),
        Changed(2, 3),
        sale.success(4, 1, item_id=3),
    ]
    assert sale.buy("b").item_id == 2


def test_items_of_a_product_without_any(sale: Sale) -> None:
    sale.open(3)
    assert sale.changes_nothing(Purchase("p", "a", item_id=1)) == [Failed(ITEM_NOT_FOUND)]


def test_a_batch_that_sells_its_way_through_many_items(sale: Sale) -> None:
    sale.open(5_000, numbered=True)
    sale.decide(*[Purchase("p", "a")] * 8)
    answers: list[Any] = sale.decide(*[Purchase("p", "a")] * 3_000)
    assert [answer.item_id for answer in answers] == list(range(9, 3_009))


def test_an_item_freed_behind_full_ones_is_found_in_its_batch(sale: Sale) -> None:
    sale.open(5_000, numbered=True)
    answers: list[Any] = []
    for start in range(0, 5_000, 1_000):  # by name: none of them moves the search on
        answers += sale.decide(*(Purchase("p", "a", item_id=start + i) for i in range(1, 1_001)))
    freed = [answers[number - 1].order_id for number in (3_000, 4_500, 2_049, 1)]
    told: list[Any] = sale.decide(*map(Refund, freed), *[Purchase("p", "b")] * 5)
    assert [getattr(answer, "item_id", answer) for answer in told[4:]] == [1, 2_049, 3_000, 4_500, SOLD_OUT]


def test_a_million_items(sale: Sale, bare_store: Any) -> None:
    """Of which only the last is free: found at once, and each costs a bit."""
    sale.open(1_000_000, numbered=True)
    product = sale.twins.sessions["one"]._products["p"]
    bare_store.ask(
        ("SETRANGE", "product:p:items", 124_999, b"\xfe"),
        ("SETRANGE", "product:p:items", 0, b"\xff" * 124_999),
        ("SET", "product:p:stock", 1),
        ("HSET", "product:p:sale", "sold", 999_999),
    )
    product.taken.update(range(1, 1_000_000))
    product.stock, product.sold = 1, 999_999
    began = time.perf_counter()
    outcome = sale.twins.tell_script(Batch("p", [Reserve("p", "a"), Purchase("p", "b")], 1))
    duration_s = time.perf_counter() - began
    assert outcome[0].item_id == 1_000_000
    assert outcome[1] == SOLD_OUT
    assert duration_s < 0.1  # 0.2 ms, on a quiet machine
    names = bare_store.do("KEYS", "product:p:*")
    sizes = bare_store.ask(*(("MEMORY", "USAGE", name, "SAMPLES", 0) for name in names))
    assert sum(sizes) < 150_000  # in bytes


# Request ids


def test_a_request_id_gets_its_first_answer_again(sale: Sale) -> None:
    sale.open(9)
    bought, held = sale.buy("a", 2, request_id="1"), sale.reserve("a", 2, request_id="2", hold_seconds=5)
    confirmed = sale.ask(Confirm(held.code, "3"))
    for session in ("one", "two"):
        assert sale.buy("a", 2, session, request_id="1") == again(bought)
        assert sale.reserve("a", 2, session, request_id="2", hold_seconds=5) == again(held)
        assert sale.ask(Confirm(held.code, "3"), session) == again(confirmed)
        assert sale.ask(Confirm(held.code, "4"), session) == again(confirmed)
        assert sale.ask(Confirm(held.code), session) == again(confirmed)
    assert sale.left == (5, 4, 0)


@pytest.mark.parametrize("terms", [{}, {"limit": 2}, {"numbered": True}], ids=repr)
def test_a_request_id_within_one_batch(sale: Sale, terms: dict[str, Any]) -> None:
    sale.open(2, **terms)
    request = Purchase("p", "a", request_id="r")
    first, second, third, fourth = sale.decide(request, Purchase("p", "a"), request, Purchase("p", "a", 2, "r"))
    assert [type(first), type(second)] == [Success, Success]
    assert third == again(first)
    assert fourth == Mismatch()
    assert sale.changes_nothing(request) == [again(first)]


def test_a_repeated_request_is_answered_whatever_became_of_the_sale(sale: Sale) -> None:
    sale.open(1, limit=1, closes_at=sale.twins.now_s + 10)
    bought = sale.buy("a", request_id="r")
    sale.decide(Refund(bought.order_id), Pause("p"))
    assert sale.buy("a", request_id="r") == again(bought)
    sale.twins.wait(10)
    assert sale.changes_nothing(Purchase("p", "a", request_id="r")) == [again(bought)]


PURCHASE = Purchase("p", "a", 1, "r", 1)
RESERVE = Reserve("p", "a", 1, "r", 1, 5)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (PURCHASE, Purchase("p", "b", 1, "r", 1)),
        (PURCHASE, Purchase("p", "a", 2, "r", 1)),
        (PURCHASE, Purchase("p", "a", 1, "r", 2)),
        (PURCHASE, Purchase("p", "a", 1, "r")),
        (Purchase("p", "a", 1, "r"), PURCHASE),
        (PURCHASE, Reserve("p", "a", 1, "r", 1)),
        (PURCHASE, Confirm("A" * 22 + ".p", "r")),
        (RESERVE, Purchase("p", "a", 1, "r", 1)),
        (RESERVE, Reserve("p", "a", 1, "r", 1, 6)),
        (RESERVE, Reserve("p", "a", 1, "r", 1)),
        (Reserve("p", "a", 1, "r", 1), RESERVE),
    ],
    ids=repr,
)
def test_a_request_id_with_other_content_is_a_mismatch(sale: Sale, first: Request, other: Request) -> None:
    sale.open(5, numbered=True)
    told = sale.ask(first)
    assert isinstance(told, Success | Held)
    assert sale.changes_nothing(other, other) == [Mismatch(), Mismatch()]
    assert sale.changes_nothing(first) == [again(told)]


def test_a_confirmation_id_belongs_to_its_hold(sale: Sale) -> None:
    sale.open(5)
    one, two = sale.reserve(), sale.reserve()
    sale.ask(Confirm(one.code, "r"))
    assert sale.changes_nothing(Confirm(two.code, "r"), Purchase("p", "a", request_id="r")) == [Mismatch()] * 2


def test_a_code_that_reads_like_a_purchase_is_none(sale: Sale) -> None:
    sale.open(5)
    sale.buy("user_1", request_id="reqst_1")
    code = '"user_1",1,0,"reqst_1".p'
    assert len(token_of(code)) == TOKEN_LENGTH
    assert sale.changes_nothing(Confirm(code, "reqst_1")) == [Mismatch()]


def test_an_answer_that_changed_nothing_is_not_kept(sale: Sale) -> None:
    opens_at = sale.twins.now_s + 5
    sale.open(3, limit=2, opens_at=opens_at)
    request = Purchase("p", "a", 2, "r")
    assert sale.changes_nothing(request) == [NotOpen(opens_at)]
    sale.twins.wait(5)
    sale.decide(Pause("p"))
    assert sale.changes_nothing(request) == [Paused()]
    sale.decide(Resume("p"))
    first = sale.buy("a")
    assert sale.changes_nothing(request) == [LimitExceeded()]
    second = sale.buy("b", 2)
    assert sale.changes_nothing(request) == [SOLD_OUT]
    sale.decide(Refund(first.order_id), Refund(second.order_id))
    assert isinstance(sale.ask(request), Success)


@pytest.mark.parametrize("age_s", [0, DAY_S // 2, KEPT_S - 1])
def test_a_request_id_is_kept_for_a_day_and_a_hold_at_least(sale: Sale, age_s: int) -> None:
    """Whatever the age of the generation into which it was written."""
    sale.open(20)
    sale.buy("z", request_id="z")
    sale.twins.wait(age_s)
    bought, held = sale.buy(request_id="r"), sale.reserve("b")
    sale.ask(Cancel(held.code))
    sale.twins.wait(KEPT_S - 1)
    assert sale.buy(request_id="r") == again(bought)
    assert isinstance(sale.ask(Cancel(held.code)), Cancelled)
    sale.buy("y", request_id="y")  # begins another generation
    assert sale.buy(request_id="r") == again(bought)
    for user in ("x", "w"):
        sale.twins.wait(KEPT_S)
        sale.buy(user, request_id=user)
    later = sale.buy(request_id="r")
    assert not later.duplicate
    assert sale.ask(Cancel(held.code)) == Failed(HOLD_NOT_FOUND)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("age_s", [0, DAY_S, 30 * DAY_S])
def test_an_expired_hold_says_so_for_a_day_however_long_it_lasted(sale: Sale, age_s: int, extended: bool) -> None:
    sale.open(20, hold_s=30 * DAY_S, hold_total_s=30 * DAY_S)
    sale.buy("z", request_id="z")
    sale.twins.wait(age_s)
    held = sale.reserve("b", hold_seconds=DAY_S if extended else 30 * DAY_S)
    if extended:
        sale.ask(Extend(held.code, 30 * DAY_S))
    sale.twins.wait(DAY_S - 1)
    sale.buy("y", request_id="y")
    sale.twins.wait(29 * DAY_S)
    sale.buy("x", request_id="x")
    assert sale.ask(GetStatus("p")).held == 1
    sale.twins.wait(1)
    assert sale.ask(GetStatus("p")).held == 0
    for _ in range(2):
        assert sale.ask(Confirm(held.code)) == Expired()
        sale.twins.wait(DAY_S - 1)
        sale.buy("v", request_id="v")


def test_what_a_batch_finds_is_not_forgotten_by_what_it_keeps(sale: Sale) -> None:
    sale.open(20)
    held = sale.reserve("b")
    for user in ("x", "y"):
        sale.twins.wait(KEPT_S)
        answers = sale.decide(Purchase("p", user, request_id=user), Confirm(held.code))
        assert answers[1] == Expired()
    assert sale.ask(Confirm(held.code)) == Failed(HOLD_NOT_FOUND)


def test_a_request_id_is_remembered_for_as_long_as_nothing_happens(sale: Sale) -> None:
    sale.open(20)
    bought = sale.buy(request_id="r")
    sale.twins.wait(99 * DAY_S)
    assert sale.buy(request_id="r") == again(bought)


def test_holds_come_back_however_long_nobody_was_there(sale: Sale) -> None:
    """Also those in records that would be forgotten by now, and more of them than a batch returns."""
    sale.open(2_000, hold_s=10)
    sale.buy("a", request_id="first")
    sale.twins.wait(KEPT_S - 5)
    codes = [held.code for held in sale.decide(*[Reserve("p", "b")] * 1_200)]
    sale.twins.wait(5)
    codes += [held.code for held in sale.decide(*[Reserve("p", "c")] * 700)]
    sale.twins.wait(99 * DAY_S)
    for number in range(1_900 // SWEEP_COUNT_MAX + 1):
        sale.buy("d", request_id=f"{number}")
    assert sale.status().held == 0
    assert sale.decide(*map(Confirm, codes)) == [Failed(HOLD_NOT_FOUND)] * 1_200 + [Expired()] * 700


# Refunds and restocks


def test_a_refund_is_made_once(sale: Sale) -> None:
    sale.open(9, limit=9)
    first, second = sale.buy("a", 2), sale.buy("a", 3)
    assert sale.decide(Refund(first.order_id), Refund(first.order_id)) == [
        Changed(6, 4),
        Changed(6, 4, duplicate=True),
    ]
    assert sale.changes_nothing(Refund(first.order_id)) == [Changed(6, 4, duplicate=True)]
    assert sale.ask(Refund(second.order_id)) == Changed(9, 5)
    assert sale.kinds[3:] == ["refunded", "refunded"]


def test_a_refund_of_any_order_in_a_message(sale: Sale) -> None:
    """Of a crowd, of a mixed batch, of the same batch, of a sale that began by hand."""
    sale.twins.set_stock("p", 20, ("x",))
    crowd = sale.decide(*(Purchase("p", f"u{i}") for i in range(5)))
    mixed: list[Any] = sale.decide(Reserve("p", "a"), Purchase("p", "b", 2), Purchase("p", "c"), Restock("p", 1))
    confirmed = sale.ask(Confirm(mixed[0].code))
    orders = [answer.order_id for answer in (crowd[0], crowd[4], crowd[2], mixed[2], mixed[1], confirmed)]
    for order_id in orders:
        assert isinstance(sale.ask(Refund(order_id)), Changed)
    assert sale.left == (19, 3, 0)
    own = sale.success(sale.status().version + 1, 18).order_id
    assert sale.decide(Purchase("p", "d"), Refund(own))[1] == Changed(19, sale.status().version)


def test_what_is_no_order_is_not_refunded(sale: Sale) -> None:
    sale.twins.set_stock("p", 20)
    assert sale.changes_nothing(Refund("x"), Refund(sale.success(1, 1).order_id)) == [Failed(ORDER_NOT_FOUND)] * 2
    sale.open(9)
    held = sale.reserve()
    sold = sale.buy()
    ids = [sale.success(version, 0).order_id for version in (0, 1, held.version, 4, 5, 99, STOCK_MAX)]
    wrong_time = sold.order_id.replace(sold.order_id[:11], f"{sale.twins.now_ms + 1:011x}")
    assert sale.changes_nothing(*map(Refund, [*ids, wrong_time])) == [Failed(ORDER_NOT_FOUND)] * 8
    sale.open(9)
    assert sale.changes_nothing(Refund(sold.order_id)) == [Failed(ORDER_NOT_FOUND)]


def test_a_refund_takes_the_newest_entry_of_the_buyer(sale: Sale) -> None:
    sale.open(9)
    orders = [sale.buy(user) for user in "abab"]
    sale.decide(Purchase("p", "a"), Refund(orders[0].order_id), Purchase("p", "b"), Refund(orders[1].order_id))
    assert sale.twins.sessions["one"].buyers("p") == ["a", "b", "a", "b"]


def test_stock_grows_up_to_its_bound(sale: Sale) -> None:
    sale.open(STOCK_MAX - 5)
    sale.buy("a", 2)
    sale.reserve("b", 3)
    assert sale.ask(Restock("p", 6)) == Failed(STOCK_TOO_LARGE)
    assert sale.ask(Restock("p", 5)) == Changed(STOCK_MAX - 5, 4)
    assert sale.ask(Restock("p", 1)) == Failed(STOCK_TOO_LARGE)
    assert sale.left == (STOCK_MAX - 5, 2, 3)


def test_numbered_stock_grows_up_to_its_bound(sale: Sale) -> None:
    sale.open(ITEMS_MAX - 1, numbered=True)
    assert sale.ask(Restock("p", 2)) == Failed(STOCK_TOO_LARGE)
    assert sale.decide(Restock("p", 1), Purchase("p", "a", item_id=ITEMS_MAX))[1].item_id == ITEMS_MAX


# Sessions and sequences


def test_a_batch_sent_again_is_told_the_same_and_does_nothing(sale: Sale) -> None:
    sale.open(9, limit=9)
    sale.twins.sequence = 1
    batch = Batch("p", [Purchase("p", "a", 2, "r"), Reserve("p", "a"), GetStatus("p"), Restock("p", 1)], 1)
    told = sale.twins.send(batch)
    assert sale.twins.send(batch) == told
    assert sale.twins.send(Batch("p", batch.requests, 1, fenced=True)) == told
    version = sale.twins.version("p")
    assert isinstance(sale.twins.send(Batch("p", batch.requests, 0)), Ambiguous)
    assert sale.twins.version("p") == version
    sale.twins.send(batch, "two")  # another server's: its own sequences
    assert sale.left == (7, 2, 2)


def test_a_fence_stops_what_comes_late(sale: Sale) -> None:
    fenced = Batch("p", [Sweep("p")], 7, fenced=True)
    assert sale.twins.send(fenced) == [NOT_FOUND]
    sale.open(9)
    assert sale.twins.send(fenced) == [NOT_FOUND]
    assert isinstance(sale.twins.send(Batch("p", [Purchase("p", "a", 2)], 6)), Ambiguous)


# Names and numbers at their bounds


@pytest.mark.parametrize(
    "name",
    ["Zoë 😀", "quo\"te\\'", "\x00\n\x7f", "x" * 60_000, "{}", "[]", "%s", "1", "nil", "a/b"],
    ids=lambda name: name[:9],
)
def test_any_name_is_kept_as_it_is(sale: Sale, name: str) -> None:
    sale.open(20, limit=10)
    request_id = name[:32]
    sale.decide(Purchase("p", name), Purchase("p", name))
    bought = sale.buy(name, 2, request_id=request_id)
    assert sale.buy(name, 2, request_id=request_id) == again(bought)
    held = [sale.reserve(name) for _ in range(3)]
    sale.decide(Confirm(held[0].code), Cancel(held[1].code))
    sale.twins.wait(900)
    sale.decide(*map(Refund, (bought.order_id, sale.buy(name).order_id)))


@pytest.mark.parametrize("name", ["Zoë 😀", 'quo"te\\', "a:b", "{a}{b}", "*", "a-b.c", "1"])
def test_any_product_id(twins: Any, name: str) -> None:
    twins.create(name, 5)
    [held, sold] = twins.decide(name, Reserve(name, "a"), Purchase(name, "a"))
    assert [type(answer) for answer in twins.decide(name, Confirm(held.code), Refund(sold.order_id))] == [
        Success,
        Changed,
    ]


def test_the_last_versions_and_units_are_written_exactly(sale: Sale, bare_store: Any) -> None:
    sale.open(STOCK_MAX)
    last = STOCK_MAX - 4
    bare_store.do("XADD", "product:p:orders", f"{last}-0", "at", 5, "changes", "[]")
    bare_store.do("HSET", "product:p:sale", "version", last)
    batch = Batch("p", [Purchase("p", "a", 2), Reserve("p", "b")], 1)
    sold, held = sale.twins.tell_script(batch)
    assert (sold.remaining_stock, sold.version) == (STOCK_MAX - 2, last + 1)
    assert (held.remaining_stock, held.version) == (STOCK_MAX - 3, last + 2)
    [plain] = sale.twins.tell_script(Batch("p", [Purchase("p", "c")], 2))
    assert (plain.remaining_stock, plain.version) == (STOCK_MAX - 4, last + 3)
    assert bare_store.do("GET", "product:p:stock") == b"%d" % (STOCK_MAX - 4)
    assert bare_store.do("HGET", "product:p:sale", "version") == b"%d" % (last + 3)
    assert bare_store.do("XREVRANGE", "product:p:orders", "+", "-", "COUNT", 1)[0][0] == b"%d-0" % (last + 3)
