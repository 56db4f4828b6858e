"""The checks of a history: each yields a sentence for each thing that cannot have happened in an honest sale.

`check(history)` runs them all. What they hold the run to is what README.md and protocol.md promise of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from msgspec import structs

from flashsale.domain.answers import (
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    ONE_ITEM_AT_A_TIME,
    ORDER_NOT_FOUND,
    SALE_IS_CLOSED,
    Answer,
    Busy,
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
    Unavailable,
)
from flashsale.domain.ids import parse_order_id, token_of
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
)
from flashsale.domain.sale import Change, Kind
from tests.history.evidence import CLOCK_SLACK_MS, MAKES, Evidence, is_duplicate, version_of
from tests.history.fold import begins_at, show
from tests.history.record import Call, History

HOLD = 16  # what the record of a hold begins with
SENTENCES_MAX = 5  # of each check: one cause breaks much

Check = Callable[[Evidence], Iterator[str]]


def check(history: History) -> dict[str, list[str]]:
    """Return what is wrong with a history, by the names of the checks; empty when nothing is."""
    evidence = Evidence(history)
    found = {name: list(islice(function(evidence), SENTENCES_MAX)) for name, function in CHECKS.items()}
    return {name: sentences for name, sentences in found.items() if sentences}


# The ledger by itself


def ledger_has_no_gap(evidence: Evidence) -> Iterator[str]:
    """I9: versions grow by one, in the order of the stream."""
    ledger = evidence.history.ledger
    for before, after in pairwise(ledger):
        if after.version != before.version + 1:
            yield f"{show(after)} follows {show(before)}"
    if ledger and ledger[0].kind != Kind.OPENED:
        yield f"it begins with {show(ledger[0])}"


def time_goes_forward(evidence: Evidence) -> Iterator[str]:
    """One store has one clock."""
    for before, after in pairwise(evidence.fold.changes):
        if after.at_ms < before.at_ms:
            yield f"{show(after)} is earlier than {show(before)}"


def changes_keep_the_rules(evidence: Evidence) -> Iterator[str]:
    """I1, I2, I6, I7: units are conserved, limits and windows kept, no item has two owners, each hold ends once."""
    for broken in evidence.fold.broken:
        yield f"{broken.rule}: {broken.what}"


def holds_return_in_time(evidence: Evidence) -> Iterator[str]:
    """I14: within a second of the deadline, and a slack."""
    latest = evidence.history.lateness_max_ms
    for hold in evidence.fold.holds.values():
        deadline_ms = hold.deadline.last * 1_000
        if hold.ended is None and evidence.history.keys.at_ms > deadline_ms + latest:
            yield f"{show(hold.held)} was due at {deadline_ms} and has not come back"
        elif hold.ended is not None and hold.ended.kind == Kind.EXPIRED and hold.ended.at_ms > deadline_ms + latest:
            yield f"{show(hold.ended)} came back {hold.ended.at_ms - deadline_ms} ms after its deadline"


def keys_are_what_the_ledger_says(evidence: Evidence) -> Iterator[str]:
    """The state at the end, row by row."""
    fold, found, terms, sale = evidence.fold, evidence.history.keys, evidence.terms, evidence.sale
    states = fold.states
    sold_before = fold.changes[0].ref if fold.changes else 0
    counters: dict[str, object] = {
        "initial": sale.stock + sold_before,
        "restocked": fold.restocked,
        "sold": states.sold.last,
        "held": states.held.last,
        "version": fold.last_version,
        "state": states.switch.last,
    }
    if terms.numbered:
        counters["items"] = states.items_count.last
    for name, value in counters.items() if fold.changes else ():
        default = "open" if name == "state" else "0"
        yield from _differ(name, str(value), found.counters.get(name, default))
    yield from _differ("stock", states.remaining.last, found.stock)
    yield from _differ("buyers", fold.buyers, found.buyers[sold_before:])
    units = {user: track.last for user, track in states.units.items() if track.last} if terms.limit else {}
    yield from _differ("users", units, found.users)
    # a hold that was neither confirmed nor cancelled is recorded; it stands while it has a deadline
    recorded = {token: row for token, row in found.kept.items() if row[0] == HOLD}
    holds = [
        [
            *(HOLD, hold.held.user_id, hold.held.quantity, hold.held.item_id, hold.held.request_id, hold.version),
            begins_at(hold.held.at_ms),
        ]
        for hold in fold.holds.values()
        if hold.ended is None or hold.ended.kind == Kind.EXPIRED
    ]
    yield from _differ("holds", holds, sorted(recorded.values(), key=lambda row: row[5]))
    live = {hold.version: hold.deadline.last for hold in fold.holds.values() if hold.ended is None}
    deadlines = {recorded[token][5] if token in recorded else token: at for token, at in found.deadlines.items()}
    yield from _differ("deadlines", live, deadlines)
    taken = sorted(item for item, track in states.taken.items() if track.last)
    yield from _differ("items", taken, found.taken)
    if terms.numbered:
        cursor = int(found.counters["cursor"])
        if taken[: cursor - 1] != list(range(1, cursor)):
            yield f"the cursor says that no item below {cursor} is free"
    yield from _differ("refunds", fold.refunds, found.refunds)
    yield from _kept_answers_differ(evidence)


def _kept_answers_differ(evidence: Evidence) -> Iterator[str]:
    """What is kept of request ids, of ended holds, and under the codes that were told: which change each names."""
    fold, kept = evidence.fold, evidence.history.keys.kept
    names = {1: 2, 2: 4, 3: 2}  # where a row of SUCCESS, HELD, CANCELLED has its version

    def named(row: list[int]) -> int:
        return row[names[row[0]]] if row and row[0] in names else 0

    requests = {name[1:]: named(row) for name, row in kept.items() if name.startswith("=")}
    yield from _differ("requests", {name: changes[0].version for name, changes in evidence.effects.items()}, requests)
    ended = [hold.ended for hold in fold.holds.values() if hold.ended is not None]
    wanted = Counter(change.version for change in ended if change.kind != Kind.EXPIRED)
    found = Counter(named(row) for name, row in kept.items() if name[0] != "=" and row[0] != HOLD)
    yield from _differ("ended holds", wanted, found)
    for code, version in evidence.hold_of.items():
        hold, row = fold.holds.get(version), kept.get(token_of(code), [])
        if hold is None:
            continue
        if hold.ended is None or hold.ended.kind == Kind.EXPIRED:
            if row[:1] != [HOLD] or row[5] != version:
                yield f"the code {code} does not lead to {show(hold.held)}"
        elif named(row) != hold.ended.version:
            yield f"the code {code} does not lead to {show(hold.ended)}"


def _differ(name: str, wanted: object, found: object) -> Iterator[str]:
    if wanted == found:
        return
    match wanted, found:
        case dict(), dict():
            rows = [
                f"{key!r} is {found.get(key)!r}, not {wanted.get(key)!r}"
                for key in wanted.keys() | found.keys()
                if wanted.get(key) != found.get(key)
            ]
        case list(), list():
            pairs = enumerate(zip(wanted, found, strict=False))
            rows = [f"row {index} is {right!r}, not {left!r}" for index, (left, right) in pairs if left != right]
            rows = rows or [f"{len(found)} rows, not {len(wanted)}"]
        case _:
            rows = [f"{found!r}, not {wanted!r}"]
    yield f"{name}: {'; '.join(rows[:3])}{f'; and {len(rows) - 3} more' if len(rows) > 3 else ''}"


# Answers that name a change


def acknowledged_is_in_the_ledger(evidence: Evidence) -> Iterator[str]:
    """I3: whoever was told that something changed finds exactly that in the ledger."""
    for version, calls in evidence.claims.items():
        change = evidence.fold.by_version.get(version)
        for call in calls:
            if change is None:
                yield f"no change {version}: {tell(call)}"
            elif not evidence.fits(call.request, change) or not evidence.is_told(change, call.answer):
                yield f"{show(change)} is another than {tell(call)}"


def any_item_is_the_lowest_free(evidence: Evidence) -> Iterator[str]:
    """Whoever asks for no item in particular gets the lowest number that is free."""
    for version, calls in evidence.claims.items():
        lowest = evidence.fold.lowest_free.get(version)
        for call in calls:
            asked_for_any = isinstance(call.request, Purchase | Reserve) and call.request.item_id is None
            if lowest and asked_for_any and getattr(call.answer, "item_id", None) != lowest:
                yield f"{lowest} was free: {tell(call)}"


def no_change_is_claimed_twice(evidence: Evidence) -> Iterator[str]:
    """A change is one call's; whoever repeats it is told that he did."""
    for calls in evidence.claims.values():
        if len(calls) > 1:
            yield f"one change for {tell(calls[0])} and for {tell(calls[1])}"


def duplicates_are_the_first_answer(evidence: Evidence) -> Iterator[str]:
    """I4, I5: who repeats a request gets the answer to the change that the first one made."""
    codes: dict[int, str] = {}
    for call in evidence.calls:
        answer = call.answer
        if isinstance(answer, Held):
            known = codes.setdefault(evidence.hold_of.get(answer.code, 0), answer.code)
            if known != answer.code:
                yield f"the hold has the code {known} too: {tell(call)}"
            if isinstance(call.request, Extend) and answer.code != call.request.code:
                yield f"the code of another hold: {tell(call)}"
        if not is_duplicate(answer) or isinstance(answer, Changed):
            continue
        change = evidence.fold.by_version.get(version_of(call))
        if change is None or not evidence.is_told(change, answer):
            yield f"no change was answered so: {tell(call)}"
        elif not _repeats(evidence, call.request, change):
            yield f"{show(change)} was not made by such a request: {tell(call)}"
        elif change.version > evidence.ceiling(call):
            yield f"{show(change)} was made after {tell(call)}"


def _repeats(evidence: Evidence, request: Request, change: Change) -> bool:
    """Whether this request may be told of this change again."""
    match request:
        case Purchase() | Reserve():
            makers = [call.request for call in evidence.claims.get(change.version, [])]
            return request.request_id is not None and evidence.fits(request, change) and makers in ([], [request])
        case Confirm(code, request_id):
            by_hold = evidence.hold_of.get(code) == change.ref and change.kind in {Kind.CONFIRMED, Kind.CANCELLED}
            taken = evidence.effects.get(request_id or "", [change])[0]
            return by_hold and taken.version == change.version
        case Cancel(code) | Extend(code):
            return evidence.hold_of.get(code) == change.ref and change.kind == Kind.CANCELLED
    return False


def request_ids_have_one_effect(evidence: Evidence) -> Iterator[str]:
    """I5: however often and with whatever content an id is used, it changes something once."""
    for request_id, changes in evidence.effects.items():
        if len(changes) > 1:
            yield f"{request_id!r} made {show(changes[0])} and {show(changes[1])}"


def mismatches_are_justified(evidence: Evidence) -> Iterator[str]:
    """I5: MISMATCH is for an id that made a change with other content, and for nothing else."""
    for call in evidence.calls:
        if not isinstance(call.answer, Mismatch):
            continue
        request_id = getattr(call.request, "request_id", None) or ""
        changes = evidence.effects.get(request_id)
        if not changes:
            yield f"this id made no change: {tell(call)}"
        elif changes[0].version > evidence.ceiling(call):
            yield f"{show(changes[0])} was made after {tell(call)}"
        else:
            makers = evidence.claims.get(changes[0].version) or evidence.by_request_id[request_id]
            asked = [maker.request for maker in makers if evidence.fits(maker.request, changes[0])]
            if all(_content(one) == _content(call.request) for one in asked):
                yield f"{show(changes[0])} was made with the same content: {tell(call)}"


def _content(request: Request) -> Request:
    return structs.replace(request, request_id=None) if isinstance(request, Confirm) else request


def extensions_are_given(evidence: Evidence) -> Iterator[str]:
    """A hold lasts as long as was asked for, as far as the terms allow, and as its holder was told."""
    for call in evidence.calls:
        if not isinstance(call.request, Extend) or not isinstance(call.answer, Held):
            continue
        version, hold_version = call.answer.version, evidence.hold_of.get(call.request.code, 0)
        hold = evidence.fold.holds.get(hold_version)
        if hold is None or (hold.ended is not None and hold.ended.version <= version):
            yield f"there was no such hold: {tell(call)}"
            continue
        deadline = hold.deadline.at(version)
        from_s = begins_at(int(evidence.fold.time_ms(version)))
        told = (call.answer.expires_at, call.answer.remaining_stock, call.answer.item_id or 0)
        if told != (deadline, evidence.fold.states.remaining.at(version), hold.held.item_id):
            yield f"it lasts until {deadline}: {tell(call)}"
        elif deadline < evidence.deadline(hold_version, from_s, call.request.hold_seconds or evidence.terms.hold_s):
            yield f"it was not extended: {tell(call)}"


# The order of things


def answers_come_in_real_time_order(evidence: Evidence) -> Iterator[str]:
    """I8: what was answered before a call began was decided before it."""
    for call in evidence.calls:
        if evidence.tells_the_present(call) and evidence.known_before(call.begin) > evidence.latest_before(call):
            yield f"version {evidence.known_before(call.begin)} was known before {tell(call)}"


def a_connection_is_answered_in_order(evidence: Evidence) -> Iterator[str]:
    """Requests of a connection for one product are decided as they were sent."""
    last: dict[str, int] = defaultdict(int)
    for call in evidence.calls:
        if evidence.tells_the_present(call):
            if last[call.client] > evidence.latest_before(call):
                yield f"version {last[call.client]} was answered to a request sent before {tell(call)}"
            last[call.client] = version_of(call)


def changes_happen_within_their_calls(evidence: Evidence) -> Iterator[str]:
    """By the store's clock, a change is made between the begin and the end of the call that made it."""
    for version, calls in evidence.claims.items():
        change = evidence.fold.by_version.get(version)
        for call in calls:
            if change is None or call.end is None:
                continue
            begin_ms, end_ms = evidence.history.store_ms(call.begin), evidence.history.store_ms(call.end)
            if not begin_ms - CLOCK_SLACK_MS <= change.at_ms <= end_ms + CLOCK_SLACK_MS:
                yield f"{show(change)} was not made between {begin_ms:.0f} and {end_ms:.0f}: {tell(call)}"


def every_change_was_asked_for(evidence: Evidence) -> Iterator[str]:
    """I4: each change is one call's, of those that were told so, or of those that never learnt; each of those has one.

    Expired holds need no call.
    """
    extended = {
        (version_of(call), evidence.hold_of.get(call.request.code, 0))
        for call in evidence.calls
        if isinstance(call.request, Extend) and isinstance(call.answer, Held)
    }
    unknown: dict[tuple[Kind, str, int], list[Call]] = defaultdict(list)
    for call in evidence.calls:
        kind = MAKES.get(type(call.request))
        if call.answer is None and kind is not None:
            unknown[kind, *_whose(evidence, call.request)].append(call)
    for change in evidence.fold.changes:
        if change.kind in {Kind.OPENED, Kind.EXPIRED} or change.version in evidence.claims:
            continue
        if change.kind == Kind.EXTENDED and (change.version, change.ref) in extended:
            continue
        candidates = unknown[change.kind, change.user_id if not change.ref else "", change.ref]
        fitting = [
            call
            for call in candidates
            if evidence.fits(call.request, change)
            and evidence.history.store_ms(call.begin) - CLOCK_SLACK_MS <= change.at_ms
        ]
        if not fitting:
            yield f"nobody asked for {show(change)}"
            continue
        # whoever asked for just this item cannot have got another
        candidates.remove(max(fitting, key=lambda call: getattr(call.request, "item_id", None) is not None))


def _whose(evidence: Evidence, request: Request) -> tuple[str, int]:
    """Return the user and the hold or order that a change by this request names."""
    match request:
        case Confirm(code) | Cancel(code) | Extend(code):
            return "", evidence.hold_of.get(code, 0)
        case Refund(order_id):
            order = parse_order_id(order_id)
            return "", order.version if order else 0
    return request.user_id, 0


# Answers that name no change


def refusals_are_justified(evidence: Evidence) -> Iterator[str]:
    """I8: in one of the states that the call can have met, the rules refuse it in these very words."""
    for call in evidence.calls:
        if isinstance(call.request, Purchase | Reserve) and isinstance(call.answer, REFUSALS | Failed):
            low, high = evidence.floor(call), evidence.ceiling(call)
            effects = evidence.effects.get(call.request.request_id or "")
            if effects and effects[0].version <= low:
                yield f"its id had made {show(effects[0])} before: {tell(call)}"
                continue
            high = min(high, effects[0].version - 1) if effects else high
            if not any(_refused_at(evidence, call, version) for version in range(low, high + 1)):
                yield f"in no version from {low} to {high} is this the answer: {tell(call)}"


REFUSALS = SoldOut | LimitExceeded | ItemTaken | NotOpen | Closed | Paused


def _refused_at(evidence: Evidence, call: Call, version: int) -> bool:
    earliest, latest = evidence.moments(call, version)
    if any(evidence.fold.overdue_at(version, earliest)):
        return False  # a batch that is decided then returns these holds first
    seconds = {int(now_ms) // 1_000 for now_ms in (earliest, latest)}
    return any(_refusal(evidence, call.request, version, now_s) == call.answer for now_s in seconds)


def _refusal(evidence: Evidence, request: Purchase | Reserve, version: int, now_s: int) -> Answer | None:
    """Return why that state refuses the request; None when it does not."""
    fold, terms = evidence.fold, evidence.terms
    match fold.state_at(version, now_s):
        case "closed":
            return Closed()
        case "paused":
            return Paused()
        case "not_open":
            return NotOpen(terms.opens_at)
    if request.item_id is not None and request.item_id > fold.states.items_count.at(version):
        return Failed(ITEM_NOT_FOUND)
    if terms.numbered and request.quantity > 1:
        return Failed(ONE_ITEM_AT_A_TIME)
    remaining = fold.states.remaining.at(version)
    if remaining < request.quantity:
        return SoldOut(remaining)
    if terms.limit and fold.units_at(version, request.user_id) + request.quantity > terms.limit:
        return LimitExceeded()
    return ItemTaken() if request.item_id is not None and fold.is_taken(version, request.item_id) else None


def ended_holds_say_how_they_ended(evidence: Evidence) -> Iterator[str]:
    """I7: EXPIRED, `already confirmed` and `hold not found` are for holds that did, were, and never were."""
    for call in evidence.calls:
        if not isinstance(call.request, Confirm | Cancel | Extend) or not isinstance(call.answer, Expired | Failed):
            continue
        hold = evidence.fold.holds.get(evidence.hold_of.get(call.request.code, 0))
        ended = hold.ended if hold and hold.ended and hold.ended.version <= evidence.ceiling(call) else None
        match call.answer:
            case Expired():
                justified = ended is not None and ended.kind == Kind.EXPIRED
            case Failed(error) if error == ALREADY_CONFIRMED and not isinstance(call.request, Confirm):
                justified = ended is not None and ended.kind == Kind.CONFIRMED
            case Failed(error) if error == HOLD_NOT_FOUND:
                justified = hold is None
            case _:
                justified = False
        if not justified:
            yield f"the hold is {show(hold.held) if hold else 'none'}, ended: {ended and show(ended)}; {tell(call)}"


def statuses_are_states(evidence: Evidence) -> Iterator[str]:
    """STATUS, and what an operator is told again, are what the version that they name was."""
    states = evidence.fold.states
    for call in evidence.calls:
        match call.answer:
            case ProductStatus(remaining, sold, held, state, version) if version:
                earliest, latest = evidence.moments(call, version)
                standings = {evidence.fold.state_at(version, int(now_ms) // 1_000) for now_ms in (earliest, latest)}
                counted = (states.remaining.at(version), states.sold.at(version), states.held.at(version))
                if (remaining, sold, held) != counted or state not in standings:
                    yield f"it was {counted} and {standings}: {tell(call)}"
                elif any(evidence.fold.overdue_at(version, earliest)):
                    yield f"with holds that were due: {tell(call)}"
            case Changed(remaining, version, duplicate=True) if remaining != states.remaining.at(version):
                yield f"{states.remaining.at(version)} were left: {tell(call)}"


def answers_belong_to_their_requests(evidence: Evidence) -> Iterator[str]:
    """I12: no request gets what only another can be told, and none is told of an error that there was not."""
    for call in evidence.calls:
        allowed = MAY_BE_TOLD[type(call.request)]
        if call.answer is None or isinstance(call.answer, Busy | Unavailable):
            continue
        if not isinstance(call.answer, allowed):
            yield f"not an answer to this: {tell(call)}"
        elif isinstance(call.answer, Failed) and call.answer.error not in FAILURES:
            yield f"not an error of this sale: {tell(call)}"


FAILURES = {
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    ONE_ITEM_AT_A_TIME,
    ORDER_NOT_FOUND,
    SALE_IS_CLOSED,
}
MAY_BE_TOLD: dict[type[Request], tuple[type[Answer], ...]] = {
    Purchase: (Success, SoldOut, LimitExceeded, ItemTaken, NotOpen, Closed, Paused, Mismatch, Failed),
    Reserve: (Held, SoldOut, LimitExceeded, ItemTaken, NotOpen, Closed, Paused, Mismatch, Failed),
    Confirm: (Success, Cancelled, Expired, Mismatch, Failed),
    Cancel: (Cancelled, Expired, Failed),
    Extend: (Held, Cancelled, Expired, Failed),
    GetStatus: (ProductStatus,),
    Restock: (Changed,),
    Refund: (Changed, Failed),
    Pause: (Changed, Failed),
    Resume: (Changed, Failed),
    Close: (Changed, Failed),
}

CHECKS: dict[str, Check] = {
    function.__name__: function
    for function in (
        ledger_has_no_gap,
        time_goes_forward,
        changes_keep_the_rules,
        holds_return_in_time,
        keys_are_what_the_ledger_says,
        acknowledged_is_in_the_ledger,
        any_item_is_the_lowest_free,
        no_change_is_claimed_twice,
        duplicates_are_the_first_answer,
        request_ids_have_one_effect,
        mismatches_are_justified,
        extensions_are_given,
        answers_come_in_real_time_order,
        a_connection_is_answered_in_order,
        changes_happen_within_their_calls,
        every_change_was_asked_for,
        refusals_are_justified,
        ended_holds_say_how_they_ended,
        statuses_are_states,
        answers_belong_to_their_requests,
    )
}


def tell(call: Call) -> str:
    """Return a call as a sentence can hold it."""
    answer = "nothing" if call.answer is None else repr(call.answer)
    return f"{call.client}: {call.request!r} told {answer}"
