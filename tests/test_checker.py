"""The checker can fail: good histories that were tampered with, and histories of builds that are really bad.

A checker that cannot tell a bad build from a good one proves nothing of either.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from msgspec import Struct, structs
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from flashsale.batching import Batcher, Sink
from flashsale.domain.answers import (
    SOLD_OUT,
    Answer,
    Cancelled,
    Expired,
    Held,
    LimitExceeded,
    Mismatch,
    ProductStatus,
    SoldOut,
    Success,
)
from flashsale.domain.batches import Ambiguous, Batch, Outcome
from flashsale.domain.requests import Cancel, Confirm, Extend, Pause, Purchase, Request, Reserve, Restock, Resume
from flashsale.domain.sale import Change, Kind, Terms
from flashsale.server import TcpServer
from flashsale.sockets import bind
from flashsale.store import scripts
from flashsale.store.admin import Admin
from flashsale.store.engine import RedisEngine
from tests.history.checks import CHECKS, check
from tests.history.crowd import Crowd, Habits
from tests.history.fold import Fold
from tests.history.record import Call, History, Sale, compare_clocks, read_store

SCRIPT = scripts.DECIDE.source.decode()
LATENESS_MAX_MS = 3_000
HABITS = Habits(clients=16, users=40, seconds=3.0, calls_min=1_500, pause_max_s=0.1, cuts=0.03)


# Builds: a server in this process, with another decision script, or one that handles answers badly


class Build(Struct, frozen=True):
    """What is wrong with it, and the checks of which one must say so."""

    caught_by: set[str]
    replacements: dict[str, str] = {}
    twist: Callable[[list[Answer]], list[Answer]] = list
    """What the server makes of the answers of a batch."""
    replies_lost: float = 0.03
    """The share of round trips whose reply is lost after the store has decided: the batches are sent again."""
    sold_out_s: float = 0.0
    """For so long it says SOLD_OUT without asking once it was told so."""


class Engine(RedisEngine):
    """The engine of a build; the replies to some of its batches are lost on the way."""

    def __init__(self, url: str, build: Build, chance: random.Random) -> None:
        super().__init__(url)
        source = SCRIPT
        for good, bad in build.replacements.items():
            assert source.count(good) == 1, f"the script has changed: {good}"
            source = source.replace(good, bad)
        self._script = scripts.make_script(source.encode())
        self._build = build
        self._chance = chance

    async def _call(self, connection, batches, positions, replies, command, script) -> None:  # type: ignore[no-untyped-def]
        script = self._script.sha if command == "EVALSHA" else self._script.source
        await super()._call(connection, batches, positions, replies, command, script)

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        outcomes = await super().commit(batches, timeout_s=timeout_s)
        if self._chance.random() < self._build.replies_lost:
            return [Ambiguous("the reply was lost")] * len(batches)
        return [self._build.twist(outcome) if isinstance(outcome, list) else outcome for outcome in outcomes]


class Door:
    """What a server submits to; of a build that remembers SOLD_OUT, it is answered here for a while."""

    def __init__(self, batcher: Batcher, sold_out_s: float) -> None:
        self._batcher = batcher
        self._sold_out_s = sold_out_s
        self._sold_out_until = 0.0

    def submit(self, request: Request, sink: Sink, ticket: int) -> None:
        if not self._sold_out_s:
            self._batcher.submit(request, sink, ticket)
        elif isinstance(request, Purchase) and time.monotonic() < self._sold_out_until:
            sink.answer(ticket, SOLD_OUT)
        else:
            self._batcher.submit(request, _Listening(self, sink), ticket)

    def hear(self, answer: Answer) -> None:
        if answer == SOLD_OUT:
            self._sold_out_until = time.monotonic() + self._sold_out_s


class _Listening:
    def __init__(self, door: Door, sink: Sink) -> None:
        self._door, self._sink = door, sink
        self.flush = sink.flush

    def answer(self, ticket: int, answer: Answer) -> None:
        self._door.hear(answer)
        self._sink.answer(ticket, answer)


async def prepare(
    stack: AsyncExitStack, url: str, build: Build, seed: int
) -> Callable[[], Coroutine[Any, Any, list[History]]]:
    """Start two servers of a build; return what lets a small crowd loose on them and returns its histories."""
    chance = random.Random(seed)
    client = await stack.enter_async_context(Redis.from_url(url))
    admin = await stack.enter_async_context(Admin(url))
    clock_ms = await compare_clocks(client)
    ports = [await start(stack, Engine(url, build, chance), build) for _ in range(2)]
    token = secrets.token_hex(4)
    sales = [
        Sale(f"crowd-{token}", 60, Terms(limit=6, hold_s=2, hold_total_s=3)),
        Sale(f"seats-{token}", 40, Terms(limit=6, hold_s=2, hold_total_s=3, numbered=True)),
        Sale(f"plain-{token}", 300, by_hand=True),
    ]
    await client.set(f"product:{sales[2].product_id}:stock", sales[2].stock)
    for sale in sales[:2]:
        await admin.init(sale.product_id, sale.stock, sale.terms)
        await admin.status(sale.product_id)
    crowd = Crowd(ports, sales, lambda: time.monotonic() * 1e3 + clock_ms, seed=chance.getrandbits(32), habits=HABITS)

    async def run() -> list[History]:
        await asyncio.gather(crowd.run(), trouble(crowd, admin, client, sales))
        return [
            crowd.recorder.history(sale, *await read_store(client, sale.product_id), clock_ms, LATENESS_MAX_MS)
            for sale in sales
        ]

    return run


async def record(url: str, builds: Iterable[Build]) -> list[list[History]]:
    """Return the histories of the three sales of each build; they all run at once."""
    async with AsyncExitStack() as stack:
        runs = [await prepare(stack, url, build, seed) for seed, build in enumerate(builds)]
        return await asyncio.gather(*(run() for run in runs))


async def start(stack: AsyncExitStack, engine: RedisEngine, build: Build) -> int:
    """Start a server that ends with the stack; return its port."""
    await engine.open()
    stack.push_async_callback(engine.close)
    batcher = Batcher(engine)
    server = TcpServer(Door(batcher, build.sold_out_s).submit)
    listening = bind("127.0.0.1", 0)
    await server.start(listening)
    stack.push_async_callback(server.drain, batcher.drain(), timeout_s=5)
    return int(listening.getsockname()[1])


HIDE = """
if tonumber(redis.call('GET', KEYS[1]) or 0) == 0 then return 0 end
redis.call('RENAME', KEYS[1], KEYS[2])
return 1
"""
"""Hides a stock while there is some: a crowd is quick."""


async def trouble(crowd: Crowd, admin: Admin, client: Redis, sales: list[Sale]) -> None:
    """Bring units now and then; twice there are some for certain, and nobody can have them for a moment."""
    crowd_id, seats_id = sales[0].product_id, sales[1].product_id
    stock, hidden = f"product:{crowd_id}:stock", f"hidden:{crowd_id}"
    for turn in range(4):
        await crowd.hears(100)
        await crowd.operate(admin, Restock(seats_id, 5))
        if turn == 0:
            await crowd.operate(admin, Pause(crowd_id))
        await crowd.operate(admin, Restock(crowd_id, 20))
        if turn == 0:
            await crowd.hears(150)
            await crowd.operate(admin, Resume(crowd_id))
        elif turn == 1:
            while not await client.eval(HIDE, 2, stock, hidden):
                await crowd.operate(admin, Restock(crowd_id, 20))
            await crowd.hears(150)
            with suppress(ResponseError):  # a bad build may have made another
                await client.renamenx(hidden, stock)


BUILDS = {
    "a batch that is sent again is decided again": Build(
        {"every_change_was_asked_for"}, {"if sequence == last then": "if false then"}, replies_lost=0.2
    ),
    "a confirmed hold expires all the same": Build(
        {"changes_keep_the_rules"}, {"set_deadline(token, false)\n  keep(token, answer)\n  if": "if"}
    ),
    "the units of a hold come back twice": Build(
        {"changes_keep_the_rules"}, {"stock, held = stock + hold[3]": "stock, held = stock + 2 * hold[3]"}
    ),
    "request ids are not remembered": Build({"request_ids_have_one_effect"}, {"    keep(id, answer .. content)\n": ""}),
    "an id with other content gets the first answer": Build(
        {"duplicates_are_the_first_answer"},
        {"same and again(answer) or bare(MISMATCH)": "again(answer)"},
    ),
    "the limit does not count what is held": Build(
        {"changes_keep_the_rules"},
        {"  count_units(user, quantity)\n": "  if kind == PURCHASE then count_units(user, quantity) end\n"},
    ),
    "a version is left out": Build(
        {"ledger_has_no_gap"},
        {"  version = version + 1\n  --": "  version = version + (version % 10 == 9 and 2 or 1)\n  --"},
    ),
    "sales of three are not in the ledger": Build(
        {"acknowledged_is_in_the_ledger"},
        {"if item == request[5] then": "if quantity == 3 then\n    elseif item == request[5] then"},
    ),
    "a hold is confirmed after its deadline": Build(
        {"changes_keep_the_rules"},
        {"  if at > now_s then": "  if true then", "more_due = due > 0 and": "more_due = false and"},
    ),
    "expired holds come back only when units are wanted": Build(
        {"changes_keep_the_rules"}, {"more_due = due > 0 and": "more_due = false and"}
    ),
    "holds expire by the clock of a server": Build(
        {"changes_keep_the_rules"},
        {
            "KEYS[7], '-inf', now_s,": "KEYS[7], '-inf', now_s + 1,",
            "due <= now_s and sweep": "due <= now_s + 1 and sweep",
        },
    ),
    "a missing key is a stock of 0": Build(
        {"refusals_are_justified", "changes_keep_the_rules"},
        {"return defective('its stock is gone')": "raw = '0'"},
    ),
    "the last unit is not sold": Build(
        {"refusals_are_justified"},
        {"  if stock < quantity then\n    return stock == 0": "  if stock <= quantity then\n    return stock == 0"},
    ),
    "an item is given twice": Build({"changes_keep_the_rules"}, {"    set_taken(item, true)\n": ""}),
    "any free item is given": Build(
        {"any_item_is_the_lowest_free"}, {"cursor = math.min(cursor, item)": "cursor = cursor"}
    ),
    "who wanted any item must want the one that he got": Build(
        {"mismatches_are_justified"},
        {"keep(id, answer .. content)": "keep(id, answer .. (item == request[5] and content or content .. item))"},
    ),
    "who repeats a request is told what is left now": Build(
        {"duplicates_are_the_first_answer"},
        {
            "local function again(packed)\n": (
                "local function again(packed)\n"
                "  if kind_of(packed) == SUCCESS then\n"
                "    local first = cmsgpack.unpack(packed)\n"
                "    return row(DUPLICATE, {SUCCESS, stock, first[3], first[4], first[5]})\n"
                "  end\n"
            )
        },
    ),
    "it sells while it is paused": Build(
        {"changes_keep_the_rules"}, {"elseif state == 'paused' then": "elseif false then"}
    ),
    "the answers of a batch are given in reverse": Build(
        {"acknowledged_is_in_the_ledger"}, twist=lambda answers: answers[::-1]
    ),
    "SOLD_OUT is remembered for a while": Build({"refusals_are_justified"}, sold_out_s=0.5),
}


@pytest.mark.timeout(120)
async def test_every_bad_build_is_caught(store_url: str) -> None:
    histories = await record(store_url, BUILDS.values())
    missed = {}
    for (name, build), of_build in zip(BUILDS.items(), histories, strict=True):
        found: dict[str, list[str]] = {}
        for history in of_build:
            found |= check(history)
        if not build.caught_by & found.keys():
            missed[name] = found
    assert missed == {}


# A good history, and what can be done to it


@pytest.fixture(scope="module")
def good(store_url: str) -> list[History]:
    """The histories of a build with nothing wrong: a crowd's, one with numbered items, one set by hand.

    Each tampering needs something to tamper with; a run that was too quiet for one of them is done again.
    """
    for _ in range(5):
        histories = asyncio.run(record(store_url, [Build(set())]))[0]
        with suppress(StopIteration):
            for tamper, (which, _name) in TAMPERED.items():
                tamper(histories[which])
            return histories
    raise AssertionError("five runs were too quiet")


def test_a_good_build_passes(good: list[History]) -> None:
    assert [check(history) for history in good] == [{}, {}, {}]


def find(history: History, holds: Callable[[Call], object]) -> Call:
    return next(call for call in history.calls if holds(call))


def find_change(history: History, kind: Kind, holds: Callable[[Change], object] = bool) -> Change:
    return next(change for change in history.ledger if change.kind == kind and holds(change))


def with_call(history: History, call: Call, **changes: object) -> History:
    """Return the history with one call changed."""
    calls = [structs.replace(one, **changes) if one is call else one for one in history.calls]
    return structs.replace(history, calls=calls)


def with_change(history: History, change: Change, **changes: object) -> History:
    """Return the history with one change of the ledger changed."""
    ledger = [structs.replace(one, **changes) if one is change else one for one in history.ledger]
    return structs.replace(history, ledger=ledger)


def without_change(history: History, change: Change) -> History:
    return structs.replace(history, ledger=[one for one in history.ledger if one is not change])


def sold_call(history: History) -> Call:
    """Return the first purchase that succeeded."""
    return find(history, lambda call: isinstance(call.request, Purchase) and _is_first(call.answer, Success))


def _is_first(answer: Answer | None, kind: type[Answer]) -> bool:
    return isinstance(answer, kind) and not getattr(answer, "duplicate", False)


def repeated_call(history: History) -> Call:
    """Return the first purchase that was told that it was one before."""
    return find(history, lambda call: isinstance(call.answer, Success) and call.answer.duplicate)


def wrong_version(history: History) -> History:
    call = sold_call(history)
    return with_call(history, call, answer=structs.replace(call.answer, version=call.answer.version + 1))


def lost_change(history: History) -> History:
    return without_change(history, find_change(history, Kind.SOLD))


def success_without_change(history: History) -> History:
    call = find(history, lambda call: isinstance(call.answer, SoldOut))
    answer = structs.replace(sold_call(history).answer, version=history.ledger[-1].version + 1)
    return with_call(history, call, answer=answer)


def order_of_another_moment(history: History) -> History:
    call = sold_call(history)
    order_id = call.answer.order_id
    return with_call(history, call, answer=structs.replace(call.answer, order_id="0" + order_id[1:]))


def false_sold_out(history: History) -> History:
    return with_call(history, sold_call(history), answer=SOLD_OUT)


def false_limit(history: History) -> History:
    return with_call(history, sold_call(history), answer=LimitExceeded())


def sold_out_after_its_success(history: History) -> History:
    return with_call(history, repeated_call(history), answer=SOLD_OUT)


def other_duplicate(history: History) -> History:
    call = repeated_call(history)
    left = call.answer.remaining_stock + 1
    return with_call(history, call, answer=structs.replace(call.answer, remaining_stock=left))


def duplicate_of_another(history: History) -> History:
    call, other = repeated_call(history), sold_call(history)
    answer = structs.replace(other.answer, duplicate=True)
    request = structs.replace(call.request, request_id="another")
    return with_call(history, call, answer=answer, request=request)


def two_codes_of_a_hold(history: History) -> History:
    call = find(history, lambda call: isinstance(call.request, Extend) and isinstance(call.answer, Held))
    return with_call(history, call, answer=structs.replace(call.answer, code="another." + history.sale.product_id))


def one_change_for_two(history: History) -> History:
    call = repeated_call(history)
    return with_call(history, call, answer=structs.replace(call.answer, duplicate=False))


def two_changes_of_a_request_id(history: History) -> History:
    first = find_change(history, Kind.SOLD, lambda change: change.request_id)
    second = find_change(history, Kind.SOLD, lambda change: change.version > first.version)
    return with_change(history, second, request_id=first.request_id)


def mismatch_of_the_same(history: History) -> History:
    return with_call(history, repeated_call(history), answer=Mismatch())


def answered_late(history: History) -> History:
    call = sold_call(history)
    return with_call(history, call, begin=call.begin + 10**9, end=call.end + 10**9)


def answered_out_of_order(history: History) -> History:
    calls = history.calls
    first, second = next(
        (a, b)
        for i, a in enumerate(calls)
        for b in calls[i + 1 : i + 20]
        if a.client == b.client and _is_first(a.answer, Success) and _is_first(b.answer, Success)
    )
    return with_call(with_call(history, first, answer=second.answer), second, answer=first.answer)


def other_clock(history: History) -> History:
    return structs.replace(history, clock_ms=history.clock_ms + 1_000)


def backward_clock(history: History) -> History:
    return with_change(history, history.ledger[-1], at_ms=history.ledger[0].at_ms - 1)


def nobody_asked(history: History) -> History:
    call = sold_call(history)
    return structs.replace(history, calls=[one for one in history.calls if one is not call])


def unknown_with_two_effects(history: History) -> History:
    undecided = [call.request for call in history.calls if call.answer is None]
    call = find(
        history,
        lambda call: (
            isinstance(call.request, Purchase)
            and _is_first(call.answer, Success)
            and call.request.request_id is None
            and call.request not in undecided
        ),
    )
    last = history.ledger[-1]
    twice = structs.replace(
        find_change(history, Kind.SOLD, lambda change: change.version == call.answer.version),
        version=last.version + 1,
        at_ms=last.at_ms,
    )
    changed = structs.replace(history, ledger=[*history.ledger, twice])
    return with_call(changed, call, answer=None, end=None)


def early_expiry(history: History) -> History:
    change = find_change(history, Kind.EXPIRED)
    return with_change(history, change, at_ms=change.at_ms - 3_000)


def late_confirm(history: History) -> History:
    hold = find_change(history, Kind.CONFIRMED).ref
    change = find_change(history, Kind.HELD, lambda change: change.version == hold)
    return with_change(history, change, expires_at=change.at_ms // 1_000)


def late_return(history: History) -> History:
    hold = find_change(history, Kind.EXPIRED).ref
    change = find_change(history, Kind.HELD, lambda change: change.version == hold)
    return with_change(history, change, expires_at=change.expires_at - 10)


def hold_that_ends_twice(history: History) -> History:
    expired = find_change(history, Kind.EXPIRED)
    return with_change(history, history.ledger[-1], kind=Kind.EXPIRED, ref=expired.ref, quantity=expired.quantity)


def lower_limit(history: History) -> History:
    terms = structs.replace(history.sale.terms, limit=3)
    return structs.replace(history, sale=structs.replace(history.sale, terms=terms))


def item_of_another(history: History) -> History:
    first = find_change(history, Kind.SOLD)
    second = find_change(history, Kind.SOLD, lambda change: change.version > first.version)
    return with_change(history, second, item_id=first.item_id)


def one_unit_more(history: History) -> History:
    return structs.replace(history, keys=structs.replace(history.keys, stock=history.keys.stock + 1))


def buyer_forgotten(history: History) -> History:
    return structs.replace(history, keys=structs.replace(history.keys, buyers=history.keys.buyers[:-1]))


def request_forgotten(history: History) -> History:
    kept = {name: row for name, row in history.keys.kept.items() if name[0] != "="}
    return structs.replace(history, keys=structs.replace(history.keys, kept=kept))


def expired_though_confirmed(history: History) -> History:
    return with_call(
        history,
        find(history, lambda call: isinstance(call.request, Confirm) and _is_first(call.answer, Success)),
        answer=Expired(),
    )


def not_extended(history: History) -> History:
    """Return a history in which an extension was to be longer than it is, and could have been."""
    call = find(history, lambda call: isinstance(call.request, Extend) and isinstance(call.answer, Held))
    terms = structs.replace(history.sale.terms, hold_total_s=1_000)
    history = structs.replace(history, sale=structs.replace(history.sale, terms=terms))
    return with_call(history, call, request=structs.replace(call.request, hold_seconds=500))


def wrong_status(history: History) -> History:
    call = find(history, lambda call: isinstance(call.answer, ProductStatus) and call.answer.version)
    return with_call(history, call, answer=structs.replace(call.answer, sold=call.answer.sold + 1))


def answer_of_another_request(history: History) -> History:
    call = find(history, lambda call: isinstance(call.request, Cancel) and _is_first(call.answer, Cancelled))
    return with_call(history, call, request=Reserve(history.sale.product_id, "u"))


def any_item(history: History) -> History:
    """Return a history in which somebody got an item that he had not asked for, though a lower one was free."""
    lowest = Fold(history.sale, history.ledger).lowest_free
    call = find(
        history,
        lambda call: (
            isinstance(call.request, Purchase)
            and _is_first(call.answer, Success)
            and call.answer.item_id != lowest[call.answer.version]
        ),
    )
    return with_call(history, call, request=structs.replace(call.request, item_id=None))


CROWD, SEATS, PLAIN_SALE = range(3)
TAMPERED = {
    wrong_version: (CROWD, "acknowledged_is_in_the_ledger"),
    lost_change: (CROWD, "ledger_has_no_gap"),
    success_without_change: (PLAIN_SALE, "acknowledged_is_in_the_ledger"),
    order_of_another_moment: (PLAIN_SALE, "acknowledged_is_in_the_ledger"),
    false_sold_out: (CROWD, "refusals_are_justified"),
    false_limit: (CROWD, "refusals_are_justified"),
    sold_out_after_its_success: (CROWD, "refusals_are_justified"),
    other_duplicate: (CROWD, "duplicates_are_the_first_answer"),
    duplicate_of_another: (CROWD, "duplicates_are_the_first_answer"),
    two_codes_of_a_hold: (CROWD, "duplicates_are_the_first_answer"),
    one_change_for_two: (CROWD, "no_change_is_claimed_twice"),
    two_changes_of_a_request_id: (CROWD, "request_ids_have_one_effect"),
    mismatch_of_the_same: (CROWD, "mismatches_are_justified"),
    answered_late: (CROWD, "answers_come_in_real_time_order"),
    answered_out_of_order: (PLAIN_SALE, "a_connection_is_answered_in_order"),
    other_clock: (CROWD, "changes_happen_within_their_calls"),
    backward_clock: (CROWD, "time_goes_forward"),
    nobody_asked: (SEATS, "every_change_was_asked_for"),
    unknown_with_two_effects: (CROWD, "every_change_was_asked_for"),
    early_expiry: (CROWD, "changes_keep_the_rules"),
    late_confirm: (CROWD, "changes_keep_the_rules"),
    late_return: (CROWD, "holds_return_in_time"),
    hold_that_ends_twice: (CROWD, "changes_keep_the_rules"),
    lower_limit: (CROWD, "changes_keep_the_rules"),
    item_of_another: (SEATS, "changes_keep_the_rules"),
    any_item: (SEATS, "any_item_is_the_lowest_free"),
    one_unit_more: (PLAIN_SALE, "keys_are_what_the_ledger_says"),
    buyer_forgotten: (CROWD, "keys_are_what_the_ledger_says"),
    request_forgotten: (CROWD, "keys_are_what_the_ledger_says"),
    expired_though_confirmed: (CROWD, "ended_holds_say_how_they_ended"),
    not_extended: (CROWD, "extensions_are_given"),
    wrong_status: (PLAIN_SALE, "statuses_are_states"),
    answer_of_another_request: (CROWD, "answers_belong_to_their_requests"),
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_a_history_that_was_tampered_with_is_caught(tamper: Callable[[History], History], good: list[History]) -> None:
    which, name = TAMPERED[tamper]
    assert name in check(tamper(good[which]))


def test_every_check_has_caught_something() -> None:
    assert {name for _, name in TAMPERED.values()} == set(CHECKS)
