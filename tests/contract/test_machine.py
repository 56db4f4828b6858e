"""Any sequence of anything: Hypothesis looks for one that MemoryEngine and the script tell differently.

The bounds of a batch are small here, so that a few requests reach them.
2,000 sequences in a default run; `pytest --hypothesis-profile deep --timeout 0` for 100,000 others.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import structs

from flashsale import memory
from flashsale.domain.answers import Held, Success
from flashsale.domain.batches import Ambiguous, Batch
from flashsale.domain.ids import OrderRef, make_code, make_order_id, parse_order_id, token_of
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
from flashsale.domain.sale import Terms
from flashsale.store import scripts

SEQUENCE_COUNT = 20 * settings.default.max_examples  # a sequence here is cheap
ROUND_COUNT_MAX = 5_000  # in one run of Hypothesis, which remembers them all
STEP_COUNT = 20
DAY_S = 86_400

BOUNDS = {
    "local SWEEP_COUNT_MAX, LAZY_COUNT_MAX = 256, 4096": "local SWEEP_COUNT_MAX, LAZY_COUNT_MAX = 2, 3",
    "local CHUNK = 1000": "local CHUNK = 4",
}

products = st.sampled_from(["p", "p", "by-hand"])
users = st.sampled_from("abc")
quantities = st.sampled_from([1, 1, 1, 2, 3, 7])
request_ids = st.sampled_from([None, None, "x", "y"])
items = st.sampled_from([None, None, 1, 2, 5, 9])
seconds = st.sampled_from([1, 2, 5, DAY_S])
newest = st.integers(-2, 4)  # which of the newest; a negative one is only just to come

operations = st.one_of(
    st.tuples(st.just("purchase"), users),
    st.tuples(st.just("again"), newest),
    st.tuples(st.just("again"), newest, st.sampled_from(["user_id", "quantity", "item_id", "hold_seconds"])),
    st.tuples(st.just("purchase"), users, quantities, request_ids, items),
    st.tuples(st.just("reserve"), users, quantities, request_ids, items, st.one_of(st.none(), seconds)),
    st.tuples(st.just("reserve"), users),
    st.tuples(st.just("confirm"), newest, request_ids),
    st.tuples(st.just("cancel"), newest),
    st.tuples(st.just("extend"), newest, st.one_of(st.none(), seconds)),
    st.tuples(st.just("refund"), newest),
    st.tuples(st.just("restock"), st.sampled_from([1, 2, 7, 10**7, 10**14])),
    st.tuples(st.sampled_from(["status", "sweep", "pause", "resume", "resume", "resume", "status", "close"])),
)
terms = st.builds(
    Terms,
    limit=st.sampled_from([0, 0, 1, 3, 8]),
    opens_at=st.sampled_from([0, 0, 0, 0, 0, 0, 2]),
    closes_at=st.sampled_from([0, 0, 0, 0, 7, DAY_S]),
    hold_s=st.sampled_from([1, 3, 900]),
    hold_total_s=st.sampled_from([0, 4, 3600]),
    numbered=st.booleans(),
)
moments = ["deadline", "deadline", "before deadline", "opens", "before closing", "closes"]
waits = st.sampled_from([-3, 0.001, 0.999, 1, 2, 900, DAY_S - 1, DAY_S, DAY_S + 3_600, 2 * DAY_S, 3 * DAY_S, *moments])


class Sale(RuleBasedStateMachine):
    """Two products, two sessions, one clock."""

    def __init__(self, make_twins: Callable[[], Any]) -> None:
        super().__init__()
        self.twins = make_twins()
        self.terms = Terms()
        self.began_s = self.twins.now_s
        self.tokens: dict[str, list[str]] = {"p": [], "by-hand": []}
        self.orders: dict[str, list[str]] = {"p": [], "by-hand": []}
        self.named: dict[str, list[Request]] = {"p": [], "by-hand": []}  # requests with a request id
        self.sent: dict[tuple[str, str], list[Batch]] = {}

    @initialize(terms=terms, stock=st.integers(0, 12), stock_by_hand=st.integers(0, 8), buyers=st.integers(0, 2))
    def open(self, terms: Terms, stock: int, stock_by_hand: int, buyers: int) -> None:
        opens_at, closes_at = (moment and self.began_s + moment for moment in (terms.opens_at, terms.closes_at))
        self.terms = Terms(
            limit=terms.limit,
            opens_at=opens_at,
            closes_at=closes_at,
            hold_s=terms.hold_s,
            hold_total_s=terms.hold_total_s,
            numbered=terms.numbered,
        )
        self.twins.create("p", stock, self.terms)
        self.twins.set_stock("by-hand", stock_by_hand, ("earlier",) * buyers)

    @rule(
        plan=st.lists(operations, min_size=1, max_size=7),
        product=products,
        session=st.sampled_from(["one", "one", "two"]),
        fenced=st.booleans(),
    )
    def decide(self, plan: list[tuple[Any, ...]], product: str, session: str, fenced: bool) -> None:
        self.twins.sequence += 1
        batch = Batch(product, [self.request(product, *step) for step in plan], self.twins.sequence, fenced)
        self.sent.setdefault((product, session), []).append(batch)
        outcome = self.twins.send(batch, session)
        for answer in outcome:
            if isinstance(answer, Held):
                self.tokens[product].append(token_of(answer.code))
            elif isinstance(answer, Success):
                self.orders[product].append(answer.order_id)

    @rule(user=users, count=st.integers(1, 12))
    def crowd(self, user: str, count: int) -> None:
        self.twins.decide("p", *[Purchase("p", user)] * count)

    @rule(product=products, user=users, count=st.integers(2, 7), seconds=seconds)
    def hold_many(self, product: str, user: str, count: int, seconds: int) -> None:
        for answer in self.twins.decide(product, *[Reserve(product, user, hold_seconds=seconds)] * count):
            if isinstance(answer, Held):
                self.tokens[product].append(token_of(answer.code))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 9), age=st.integers(0, 2), fenced=st.booleans())
    def send_again(self, which: int, age: int, fenced: bool) -> None:
        """The last batch of a session, or one before it, which comes late."""
        place = sorted(self.sent)[which % len(self.sent)]
        batches = self.sent[place]
        old = batches[max(len(batches) - 1 - age, 0)]
        outcome = self.twins.send(Batch(old.product_id, old.requests, old.sequence, fenced), place[1])
        assert isinstance(outcome, list | Ambiguous)

    @rule(how=waits)
    def wait(self, how: float | str) -> None:
        holds = [
            hold.expires_at
            for product in ("p", "by-hand")
            for hold in self.twins.holds(product)
            if hold.expires_at > self.twins.now_s
        ]
        moments = {
            "deadline": min(holds, default=0) * 1000,
            "before deadline": min(holds, default=0) * 1000 - 1,
            "opens": self.terms.opens_at * 1000,
            "before closing": self.terms.closes_at * 1000 - 1,
            "closes": self.terms.closes_at * 1000,
        }
        if isinstance(how, str):
            self.twins.set_now(max(self.twins.now_ms, moments[how]))
        else:
            self.twins.wait(how)

    @rule(product=products, stock=st.integers(0, 6), numbered=st.booleans(), deleted=st.booleans())
    def open_anew(self, product: str, stock: int, numbered: bool, deleted: bool) -> None:
        if deleted:
            self.twins.delete(product)
            self.sent.pop((product, "one"), None)
            self.sent.pop((product, "two"), None)
        if stock == 6 and deleted:
            self.twins.set_stock(product, stock)
        elif stock:
            self.twins.create(product, stock, Terms(numbered=numbered, limit=stock % 3))

    def request(self, product: str, kind: str, *details: Any) -> Request:
        request = self.make_request(product, kind, *details)
        if getattr(request, "request_id", None):
            self.named[product].append(request)
        return request

    def make_request(self, product: str, kind: str, *details: Any) -> Request:
        match kind, *details:
            case "again", which, *field:
                return self.repeated(product, which, *field)
            case "purchase", *_:
                return Purchase(product, *details)
            case "reserve", *_:
                return Reserve(product, *details)
            case "confirm", which, request_id:
                return Confirm(self.code(product, which), request_id)
            case "cancel", which:
                return Cancel(self.code(product, which))
            case "extend", which, seconds:
                return Extend(self.code(product, which), seconds)
            case "refund", which:
                return Refund(self.order(product, which))
            case "restock", quantity:
                return Restock(product, quantity)
        kinds = {"status": GetStatus, "sweep": Sweep, "pause": Pause, "resume": Resume, "close": Close}
        return kinds[kind](product)

    def repeated(self, product: str, which: int, field: str = "") -> Request:
        """A request that was asked before, but for one field if one is named."""
        request = pick(self.named[product], which) or GetStatus(product)
        if isinstance(request, Purchase | Reserve) and field in request.__struct_fields__:
            return structs.replace(request, **{field: "b" if field == "user_id" else 2})
        return request

    def code(self, product: str, which: int) -> str:
        """One of the newest codes; a negative number is one that this batch may give out."""
        if which < 0:
            return make_code(self.twins.next_token(-1 - which), product)
        return make_code(pick(self.tokens[product], which) or "A" * 22, product)

    def order(self, product: str, which: int) -> str:
        if which < 0:
            version, epoch = self.twins.version(product)
            return make_order_id(OrderRef(product, epoch, version - which, self.twins.now_ms))
        order = parse_order_id(pick(self.orders[product], which) or "")
        if order is None:
            return f"00000000000-0000000000--{product}"
        return make_order_id(structs.replace(order, at_ms=order.at_ms + (which == 4)))


def pick(things: list[Any], which: int) -> Any:
    """One of the newest, if there is any."""
    return things[-1 - which % len(things)] if things else None


@pytest.mark.timeout(0)
@pytest.mark.parametrize("start", range(0, SEQUENCE_COUNT, ROUND_COUNT_MAX))
def test_no_sequence_of_operations_tells_the_engines_apart(
    make_twins: Callable[..., Any], start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SWEEP_COUNT_MAX", 2)
    monkeypatch.setattr(memory, "LAZY_COUNT_MAX", 3)
    source = scripts.DECIDE.source.decode()
    for bound, small in BOUNDS.items():
        assert source.count(bound) == 1
        source = source.replace(bound, small)
    script = scripts.make_script(source.encode())
    run_state_machine_as_test(
        lambda: Sale(lambda: make_twins(script)),
        settings=settings(
            max_examples=min(ROUND_COUNT_MAX, SEQUENCE_COUNT - start),
            stateful_step_count=STEP_COUNT,
            suppress_health_check=list(HealthCheck),
        ),
    )
