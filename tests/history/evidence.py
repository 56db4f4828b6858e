"""What follows from a history without judging it: which versions a call can have seen, and which change it made."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate

from msgspec import structs

from flashsale.domain.answers import Answer, Cancelled, Changed, Held, Success
from flashsale.domain.ids import OrderRef, make_order_id, parse_order_id
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
)
from flashsale.domain.sale import Change, Kind
from tests.history.fold import Fold, begins_at
from tests.history.record import Call, History

CLOCK_SLACK_MS = 10.0
"""The two clocks of a record agree so far."""

MAKES = {
    Purchase: Kind.SOLD,
    Reserve: Kind.HELD,
    Confirm: Kind.CONFIRMED,
    Cancel: Kind.CANCELLED,
    Extend: Kind.EXTENDED,
    Restock: Kind.RESTOCKED,
    Refund: Kind.REFUNDED,
    Pause: Kind.PAUSED,
    Resume: Kind.RESUMED,
    Close: Kind.CLOSED,
}


def version_of(call: Call) -> int:
    """Return the version that the answer names; 0 for none."""
    return getattr(call.answer, "version", 0)


def is_duplicate(answer: Answer | None) -> bool:
    """Whether it is the answer to an earlier request, given again."""
    return getattr(answer, "duplicate", False)


class Evidence:
    """A history, prepared for the checks."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.sale = history.sale
        self.terms = history.sale.terms
        self.calls = history.calls
        self.epoch = history.keys.counters.get("epoch", "")
        self.fold = Fold(history.sale, history.ledger)
        self.claims: dict[int, list[Call]] = defaultdict(list)  # by version: whose own change it is, as they were told
        self.by_request_id: dict[str, list[Call]] = defaultdict(list)
        self.hold_of: dict[str, int] = {}  # code -> the version of the hold
        for call in history.calls:
            if self.claims_a_change(call):
                self.claims[version_of(call)].append(call)
            request_id = getattr(call.request, "request_id", None)
            if request_id is not None:
                self.by_request_id[request_id].append(call)
            if isinstance(call.request, Reserve) and isinstance(call.answer, Held):
                self.hold_of.setdefault(call.answer.code, call.answer.version)
        self.effects: dict[str, list[Change]] = defaultdict(list)  # by request id
        for change in self.fold.changes:
            if change.request_id and not self._inherits_its_request_id(change):
                self.effects[change.request_id].append(change)
        self._index_versions()

    def _inherits_its_request_id(self, change: Change) -> bool:
        hold = self.fold.holds.get(change.ref)
        return change.kind == Kind.CONFIRMED and hold is not None and hold.held.request_id == change.request_id

    # Which change is whose

    def claims_a_change(self, call: Call) -> bool:
        """Whether the answer says that this call changed something.

        An extension does not say it: asked for no more than the hold has, it changes nothing.
        """
        match call.answer:
            case Success(duplicate=False) | Cancelled(duplicate=False) | Changed(duplicate=False):
                return True
            case Held(duplicate=False):
                return isinstance(call.request, Reserve)
        return False

    def fits(self, request: Request, change: Change) -> bool:  # noqa: C901 - one table
        """Whether this request, decided for the first time, makes such a change."""
        if MAKES.get(type(request)) != change.kind:
            return False
        match request:
            case Purchase(_, user_id, quantity, request_id, item_id) | Reserve(
                _, user_id, quantity, request_id, item_id
            ):
                wanted = (user_id, quantity, request_id or "", item_id or change.item_id)
                if wanted != (change.user_id, change.quantity, change.request_id, change.item_id):
                    return False
                if isinstance(request, Purchase):
                    return True
                hold_s = self.terms.hold_s
                return change.expires_at == begins_at(change.at_ms) + min(request.hold_seconds or hold_s, hold_s)
            case Confirm(code, request_id):
                hold = self.fold.holds.get(change.ref)
                if hold is None or self.hold_of.get(code) != change.ref:
                    return False
                return change.request_id == (request_id or hold.held.request_id)
            case Cancel(code):
                return self.hold_of.get(code) == change.ref
            case Extend(code, hold_seconds):
                return self.hold_of.get(code) == change.ref and change.expires_at == self.deadline(
                    change.ref, begins_at(change.at_ms), hold_seconds or self.terms.hold_s
                )
            case Restock(_, quantity):
                return quantity == change.quantity
            case Refund(order_id):
                order = parse_order_id(order_id)
                return order is not None and order.version == change.ref
        return True

    def deadline(self, hold_version: int, from_s: int, hold_seconds: int) -> int:
        """Return until when a hold lasts that is extended now by so much."""
        hold = self.fold.holds.get(hold_version)
        if hold is None:
            return 0
        latest = begins_at(hold.held.at_ms) + max(self.terms.hold_total_s, self.terms.hold_s)
        return min(from_s + hold_seconds, latest)

    def answer_to(self, change: Change, told: Answer) -> Answer:
        """Return what whoever made this change must be told; of a hold, the code is taken from what he was told."""
        match change.kind:
            case Kind.SOLD | Kind.CONFIRMED:
                order_id = make_order_id(OrderRef(self.sale.product_id, self.epoch, change.version, change.at_ms))
                return Success(change.remaining, order_id, change.version, change.item_id or None)
            case Kind.HELD:
                code = told.code if isinstance(told, Held) else ""
                return Held(code, change.expires_at, change.remaining, change.version, change.item_id or None)
            case Kind.CANCELLED:
                return Cancelled(change.remaining, change.version)
        return Changed(change.remaining, change.version)

    def is_told(self, change: Change, answer: Answer) -> bool:
        """Whether the answer is the one to this change, be it the first time or again."""
        first = structs.replace(answer, duplicate=False) if is_duplicate(answer) else answer
        return first == self.answer_to(change, answer)

    # Which versions a call can have seen

    def _index_versions(self) -> None:
        ends = sorted((call.end, version_of(call)) for call in self.calls if call.end is not None and version_of(call))
        self._ends = [end for end, _ in ends]
        self._known = list(accumulate((version for _, version in ends), max))
        begins = sorted((call.begin, self.latest_before(call)) for call in self.calls if self.tells_the_present(call))
        self._begins = [begin for begin, _ in begins]
        self._latest = list(accumulate((version for _, version in reversed(begins)), min))[::-1]

    def tells_the_present(self, call: Call) -> bool:
        """Whether the answer's version is from between the call's begin and its end."""
        return version_of(call) > 0 and (isinstance(call.answer, Changed) or not is_duplicate(call.answer))

    def latest_before(self, call: Call) -> int:
        """Return the last version that there can have been before this call began."""
        return version_of(call) - self.claims_a_change(call)

    def known_before(self, begin: int) -> int:
        """Return the highest version that anyone had been told by then."""
        index = bisect_left(self._ends, begin)
        return self._known[index - 1] if index else 0

    def floor(self, call: Call) -> int:
        """Return the lowest version in which the call can have been decided."""
        elapsed = self.fold.version_at_ms(self.history.store_ms(call.begin) - CLOCK_SLACK_MS)
        return max(self.known_before(call.begin), elapsed)

    def ceiling(self, call: Call) -> int:
        """Return the highest version in which the call can have been decided."""
        if call.end is None:
            return self.fold.last_version
        index = bisect_right(self._begins, call.end)
        latest = self._latest[index] if index < len(self._latest) else self.fold.last_version
        return min(latest, self.fold.version_at_ms(self.history.store_ms(call.end) + CLOCK_SLACK_MS))

    def moments(self, call: Call, version: int) -> tuple[float, float]:
        """Return between which times of the store the call can have been decided in that version."""
        assert call.end is not None
        earliest = max(self.fold.time_ms(version), self.history.store_ms(call.begin) - CLOCK_SLACK_MS)
        latest = min(self.fold.end_ms(version), self.history.store_ms(call.end) + CLOCK_SLACK_MS)
        return earliest, latest
