"""MemoryEngine, which is the specification: the rules in plain Python, for reading and for testing.

The Redis engine (store/lua/) must give the same answers and write the same ledger for any sequence of batches;
tests/contract holds both to it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from msgspec import Struct, field, structs

from flashsale.domain.answers import (
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    ONE_ITEM_AT_A_TIME,
    ORDER_NOT_FOUND,
    SALE_IS_CLOSED,
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
from flashsale.domain.batches import Ambiguous, Batch, Outcome, not_found
from flashsale.domain.bounds import ITEMS_MAX, LAZY_COUNT_MAX, REQUESTS_KEPT_S, STOCK_MAX, SWEEP_COUNT_MAX
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
from flashsale.domain.sale import PLAIN, Change, Kind, Terms


class _Hold(Struct):
    """Units out of stock until `expires_at`, in Unix seconds."""

    token: str
    user_id: str
    quantity: int
    item_id: int
    request_id: str
    version: int
    created_at: int
    expires_at: int


class _Kept(Struct):
    """Answers that are given again. Two generations, so that old ones are forgotten all at once."""

    kept_s: int
    """For so long at least."""
    since: int = 0
    fresh: dict[str, tuple[object, Answer]] = field(default_factory=dict)  # of the present batch
    answers: dict[str, tuple[object, Answer]] = field(default_factory=dict)
    before: dict[str, tuple[object, Answer]] = field(default_factory=dict)

    def find(self, key: str) -> tuple[object, Answer] | None:
        """Return (content, answer), unless it is forgotten."""
        return self.fresh.get(key) or self.answers.get(key) or self.before.get(key)

    def end_batch(self, now_s: int, *, more_due: bool) -> None:
        """Forget what is old, unless a hold waits for its end that should have come long ago."""
        if self.fresh and now_s >= self.since + self.kept_s and not more_due:
            self.since, self.before, self.answers = now_s, self.answers, {}
        self.answers |= self.fresh
        self.fresh = {}


class _Product(Struct):
    """One sale. remaining + held + sold = initial + restocked, always."""

    product_id: str
    stock: int
    terms: Terms
    epoch: str
    kept: _Kept
    items_count: int = 0
    sold: int = 0
    held: int = 0
    state: Kind = Kind.OPENED
    buyers: list[str] = field(default_factory=list)
    users: dict[str, int] = field(default_factory=dict)  # units bought and held, while there is a limit
    taken: set[int] = field(default_factory=set)  # items sold and held
    holds: dict[str, _Hold] = field(default_factory=dict)  # those that stand, by token
    refunds: dict[int, int] = field(default_factory=dict)  # order's version -> refund's
    ledger: list[Change] = field(default_factory=list)

    @property
    def version(self) -> int:
        return self.ledger[-1].version if self.ledger else 0


class MemoryEngine:
    """The rules of a sale in memory.

    One instance stands for one session: sequences are compared with those it has seen itself. Its clock stands still
    until somebody sets `now_ms`.
    """

    def __init__(self, mint: Callable[[], str] | None = None) -> None:
        """Know no product.

        Args:
            mint: gives the secret of each hold; called once for each Reserve, whatever its answer.
        """
        numbers = count(1)
        self._mint = mint or (lambda: f"{next(numbers):022d}")
        self._products: dict[str, _Product] = {}
        self._last: dict[str, tuple[int, list[Answer]]] = {}  # by product: the last batch that is remembered
        self.now_ms = 0
        """The clock: Unix milliseconds."""

    def create(self, product_id: str, stock: int, terms: Terms = PLAIN, *, epoch: str = "00000000") -> None:
        """Open a sale of `stock` units; an earlier one of that id is forgotten, but for the number of its version."""
        earlier = self._products.get(product_id)
        product = self._add(product_id, stock, terms, epoch)
        version = earlier.version + 1 if earlier else 1
        product.ledger.append(
            Change(kind=Kind.OPENED, version=version, at_ms=self.now_ms, remaining=stock, quantity=stock, terms=terms)
        )

    def set_stock(self, product_id: str, stock: int, buyers: Sequence[str] = ()) -> None:
        """Set stock and buyers by hand: a plain sale, whose ledger begins with its first change."""
        product = self._add(product_id, stock, PLAIN, "00000000")
        product.sold, product.buyers = len(buyers), list(buyers)

    def _add(self, product_id: str, stock: int, terms: Terms, epoch: str) -> _Product:
        # for a day at least after the end of what they tell of, however long a hold lasts
        kept = _Kept(REQUESTS_KEPT_S + max(terms.hold_s, terms.hold_total_s))
        product = _Product(product_id, stock, terms, epoch, kept, items_count=stock if terms.numbered else 0)
        self._products[product_id] = product
        return product

    def delete(self, product_id: str) -> None:
        """Forget the product; does nothing when there is none."""
        self._products.pop(product_id, None)
        self._last.pop(product_id, None)

    def buyers(self, product_id: str) -> list[str]:
        """Return the buyers in order of purchase, one entry for each order that stands."""
        return list(self._products[product_id].buyers)

    def ledger(self, product_id: str) -> list[Change]:
        """Return every change of the product, in order."""
        return list(self._products[product_id].ledger)

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Decide each batch; see Engine."""
        return [self.decide(batch) for batch in batches]

    def decide(self, batch: Batch) -> Outcome:
        """Decide one batch.

        A batch whose sequence was seen last gets the same answers again. One that is older than the last was sent
        long ago and overtaken: it must not sell any more, and nobody waits for its answers.
        """
        tokens = iter([self._mint() for request in batch.requests if isinstance(request, Reserve)])
        last = self._last.get(batch.product_id)
        if last is not None and batch.sequence <= last[0]:
            return (
                last[1]
                if batch.sequence == last[0]
                else Ambiguous("overtaken by a later batch of its session", alone=True)
            )
        product = self._products.get(batch.product_id)
        if product is None:
            answers = [not_found(request) for request in batch.requests]
            changed = False
        else:
            version = product.version
            decision = _Decision(product, self.now_ms, tokens)
            answers = [decision.decide(request) for request in batch.requests]
            decision.end()
            changed = product.version > version
        if batch.fenced or changed:
            self._last[batch.product_id] = (batch.sequence, answers)
        return answers


class _Decision:
    """One batch being decided: the rules, in the order in which they are asked."""

    def __init__(self, product: _Product, now_ms: int, tokens: Iterator[str]) -> None:
        self._product = product
        self._stock_before = product.stock
        self._now_ms = now_ms
        self._now_s = now_ms // 1000
        self._from_s = -(-now_ms // 1000)  # holds count whole seconds from the next one: never less than asked for
        self._tokens = tokens
        self._lazy_count = LAZY_COUNT_MAX
        due = self._due()[:SWEEP_COUNT_MAX]  # every batch begins by returning expired holds to stock
        for hold in due:
            self._expire(hold)
        self._more_due = len(due) == SWEEP_COUNT_MAX

    def decide(self, request: Request) -> Answer:
        """Return the answer to one request, and do what it says."""
        match request:
            case Purchase() | Reserve():
                token = next(self._tokens) if isinstance(request, Reserve) else ""
                return self._once(request.request_id, request, lambda: self._take(request, token))
            case Confirm():
                return self._once(request.request_id, request.code, lambda: self._confirm(request))
            case Cancel():
                return self._cancel(request)
            case Extend():
                return self._extend(request)
            case GetStatus():
                product = self._product
                return ProductStatus(product.stock, product.sold, product.held, self._state(), product.version)
            case Sweep():
                return Swept(more=self._more_due)
            case Restock():
                return self._restock(request)
            case Refund():
                return self._refund(request)
            case _:
                return self._switch(request)

    def end(self) -> None:
        """End the batch."""
        self._product.kept.end_batch(self._now_s, more_due=self._more_due)

    # Idempotency

    def _once(self, request_id: str | None, content: object, decide: Callable[[], Answer]) -> Answer:
        """Decide a request, unless its id was seen: then it gets its first answer, or MISMATCH for other content.

        Only answers that changed something are remembered.
        """
        if request_id is None:
            return decide()
        seen = self._product.kept.find("=" + request_id)
        if seen is not None:
            return _again(seen[1]) if seen[0] == content else Mismatch()
        answer = decide()
        if isinstance(answer, Success | Held) and not answer.duplicate:
            self._product.kept.fresh["=" + request_id] = content, answer
        return answer

    # Purchase and reserve

    def _take(self, request: Purchase | Reserve, token: str) -> Answer:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        product, user_id, quantity = self._product, request.user_id, request.quantity
        item_id, request_id = 0, request.request_id or ""
        if product.terms.numbered:
            item_id = request.item_id or next(number for number in count(1) if number not in product.taken)
            product.taken.add(item_id)
        product.stock -= quantity
        if product.terms.limit:
            product.users[user_id] = product.users.get(user_id, 0) + quantity
        if isinstance(request, Purchase):
            return self._sell(Kind.SOLD, user_id, quantity, item_id, request_id)
        expires_at = self._from_s + min(request.hold_seconds or product.terms.hold_s, product.terms.hold_s)
        change = self._write(
            Kind.HELD,
            user_id=user_id,
            quantity=quantity,
            item_id=item_id,
            request_id=request_id,
            expires_at=expires_at,
        )
        product.held += quantity
        product.holds[token] = _Hold(
            token, user_id, quantity, item_id, request_id, change.version, self._from_s, expires_at
        )
        product.kept.fresh[token] = None, Expired()  # unless it ends in another way
        code = make_code(token, product.product_id)
        return Held(code, expires_at, product.stock, change.version, item_id=item_id or None)

    def _refusal(self, request: Purchase | Reserve) -> Answer | None:
        """Return why the units cannot be had; None when they can."""
        product, terms, quantity = self._product, self._product.terms, request.quantity
        state = self._state()
        if state != "open":
            refusals: dict[str, Answer] = {
                "closed": Closed(),
                "paused": Paused(),
                "not_open": NotOpen(terms.opens_at),
            }
            return refusals[state]
        if request.item_id is not None and request.item_id > product.items_count:
            return Failed(ITEM_NOT_FOUND)
        if terms.numbered and quantity > 1:
            return Failed(ONE_ITEM_AT_A_TIME)
        if product.stock < quantity <= product.stock + product.held:
            self._sweep_lazily(quantity)
        if product.stock < quantity:
            return SoldOut(product.stock)
        if terms.limit and product.users.get(request.user_id, 0) + quantity > terms.limit:
            return LimitExceeded()
        return ItemTaken() if request.item_id in product.taken else None

    def _sell(self, kind: Kind, user_id: str, quantity: int, item_id: int, request_id: str, ref: int = 0) -> Success:
        product = self._product
        change = self._write(kind, user_id=user_id, quantity=quantity, item_id=item_id, request_id=request_id, ref=ref)
        product.sold += quantity
        product.buyers.append(user_id)
        order_id = make_order_id(OrderRef(product.product_id, product.epoch, change.version, change.at_ms))
        return Success(product.stock, order_id, change.version, item_id=item_id or None)

    # Holds: each ends once, and tells from then on how it ended

    def _find(self, token: str) -> _Hold | Answer:
        """Return the hold, or the answer with which it ended."""
        hold = self._product.holds.get(token)
        if hold is not None and hold.expires_at <= self._now_s:
            self._expire(hold)
            hold = None
        if hold is not None:
            return hold
        ended = self._product.kept.find(token)
        return _again(ended[1]) if ended else Failed(HOLD_NOT_FOUND)

    def _confirm(self, request: Confirm) -> Answer:
        hold = self._find(token_of(request.code))
        if not isinstance(hold, _Hold):
            return hold
        self._product.held -= hold.quantity
        request_id = request.request_id or hold.request_id
        answer = self._sell(Kind.CONFIRMED, hold.user_id, hold.quantity, hold.item_id, request_id, hold.version)
        self._end(hold, answer)
        return answer

    def _cancel(self, request: Cancel) -> Answer:
        hold = self._find(token_of(request.code))
        if not isinstance(hold, _Hold):
            return Failed(ALREADY_CONFIRMED) if isinstance(hold, Success) else hold
        change = self._give_back(Kind.CANCELLED, hold)
        answer = Cancelled(self._product.stock, change.version)
        self._end(hold, answer)
        return answer

    def _extend(self, request: Extend) -> Answer:
        hold = self._find(token_of(request.code))
        if not isinstance(hold, _Hold):
            return Failed(ALREADY_CONFIRMED) if isinstance(hold, Success) else hold
        product = self._product
        latest = hold.created_at + max(product.terms.hold_total_s, product.terms.hold_s)
        expires_at = min(self._from_s + (request.hold_seconds or product.terms.hold_s), latest)
        if expires_at > hold.expires_at:
            hold.expires_at = expires_at
            self._write(
                Kind.EXTENDED,
                user_id=hold.user_id,
                quantity=hold.quantity,
                item_id=hold.item_id,
                ref=hold.version,
                expires_at=expires_at,
            )
        return Held(request.code, hold.expires_at, product.stock, product.version, item_id=hold.item_id or None)

    def _end(self, hold: _Hold, answer: Answer) -> None:
        del self._product.holds[hold.token]
        self._product.kept.fresh[hold.token] = None, answer

    def _give_back(self, kind: Kind, hold: _Hold) -> Change:
        product = self._product
        product.held -= hold.quantity
        self._return(hold.user_id, hold.quantity, hold.item_id)
        return self._write(kind, user_id=hold.user_id, quantity=hold.quantity, item_id=hold.item_id, ref=hold.version)

    def _return(self, user_id: str, quantity: int, item_id: int) -> None:
        """Put units back into stock, and off the user's count."""
        product = self._product
        product.stock += quantity
        product.taken.discard(item_id)
        if product.terms.limit:
            product.users[user_id] -= quantity
            if not product.users[user_id]:
                del product.users[user_id]

    # Expiry

    def _sweep_lazily(self, quantity: int) -> None:
        for hold in self._due():
            if self._product.stock >= quantity or not self._lazy_count:
                return
            self._lazy_count -= 1
            self._expire(hold)

    def _due(self) -> list[_Hold]:
        due = [hold for hold in self._product.holds.values() if hold.expires_at <= self._now_s]
        return sorted(due, key=lambda hold: (hold.expires_at, hold.token))

    def _expire(self, hold: _Hold) -> None:
        self._give_back(Kind.EXPIRED, hold)
        del self._product.holds[hold.token]

    # The operator

    def _state(self) -> str:
        product = self._product
        terms = product.terms
        if product.state == Kind.CLOSED or (terms.closes_at and self._now_s >= terms.closes_at):
            return "closed"
        if product.state == Kind.PAUSED:
            return "paused"
        return "not_open" if self._now_s < terms.opens_at else "open"

    def _restock(self, request: Restock) -> Answer:
        product = self._product
        total = product.stock + product.sold + product.held + request.quantity
        if total > (ITEMS_MAX if product.terms.numbered else STOCK_MAX):
            return Failed(STOCK_TOO_LARGE)
        product.stock += request.quantity
        if product.terms.numbered:
            product.items_count += request.quantity
        self._write(Kind.RESTOCKED, quantity=request.quantity)
        return Changed(product.stock, product.version)

    def _refund(self, request: Refund) -> Answer:
        product, order = self._product, parse_order_id(request.order_id)
        sale = next((change for change in product.ledger if order and change.version == order.version), None)
        if order is None or sale is None or sale.kind not in {Kind.SOLD, Kind.CONFIRMED}:
            return Failed(ORDER_NOT_FOUND)
        if (order.epoch, order.at_ms) != (product.epoch, sale.at_ms):
            return Failed(ORDER_NOT_FOUND)
        if sale.version in product.refunds:
            return Changed(product.stock, product.version, duplicate=True)
        product.sold -= sale.quantity
        self._return(sale.user_id, sale.quantity, sale.item_id)
        newest = len(product.buyers) - 1 - product.buyers[::-1].index(sale.user_id)
        del product.buyers[newest]
        self._write(Kind.REFUNDED, user_id=sale.user_id, quantity=sale.quantity, item_id=sale.item_id, ref=sale.version)
        product.refunds[sale.version] = product.version
        return Changed(product.stock, product.version)

    def _switch(self, request: Pause | Resume | Close) -> Answer:
        product = self._product
        state, kind = _SWITCHES[type(request)]
        if product.state == Kind.CLOSED and state != Kind.CLOSED:
            return Failed(SALE_IS_CLOSED)
        if product.state == state:
            return Changed(product.stock, product.version, duplicate=True)
        product.state = state
        self._write(kind)
        return Changed(product.stock, product.version)

    # The ledger

    def _write(self, kind: Kind, **details: Any) -> Change:
        product = self._product
        if not product.ledger:  # the stock was set by hand
            sold = product.sold
            self._append(Kind.OPENED, self._stock_before, quantity=self._stock_before + sold, ref=sold)
        return self._append(kind, product.stock, **details)

    def _append(self, kind: Kind, remaining: int, **details: Any) -> Change:
        product = self._product
        change = Change(kind=kind, version=product.version + 1, at_ms=self._now_ms, remaining=remaining, **details)
        product.ledger.append(change)
        return change


_SWITCHES = {
    Pause: (Kind.PAUSED, Kind.PAUSED),
    Resume: (Kind.OPENED, Kind.RESUMED),
    Close: (Kind.CLOSED, Kind.CLOSED),
}


def _again(answer: Answer) -> Answer:
    """Return an answer as it is given when the request is repeated."""
    if isinstance(answer, Success | Held | Cancelled):
        return structs.replace(answer, duplicate=True)
    return answer
