"""A ledger becomes the same rows however it is cut, whoever moves it, and however often."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsale.domain.answers import Held, Success
from flashsale.domain.batches import Batch
from flashsale.domain.bounds import QUANTITY_MAX, STOCK_MAX
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
    Sweep,
)
from flashsale.domain.sale import PLAIN, Change, Kind, Portion, Terms
from flashsale.errors import DatabaseError, LedgerGapError
from flashsale.memory import MemoryEngine
from flashsale.orders.database import Database, database_url
from flashsale.orders.moving import bury, move
from flashsale.orders.tables import orders, products
from tests.orders import plain

EPOCH, NEXT_EPOCH = "0000000a", "0000000b"
NOW_MS = 1_900_000_000_123
MOVERS_PATIENCE_S = 30.0


async def moved(database: Database, *portions: Portion) -> int:
    """Move portions in one transaction."""
    async with database.writing() as connection:
        return await move(connection, portions)


class Sales:
    """Sales in memory, whose requests name holds and orders by their place, the last being -1."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.engine.now_ms = NOW_MS
        self._sequences = count(1)
        self._codes: dict[str, list[str]] = {}
        self._orders: dict[str, list[str]] = {}

    def open(self, product_id: str, stock: int, terms: Terms = PLAIN, epoch: str = EPOCH) -> None:
        self.engine.create(product_id, stock, terms, epoch=epoch)

    def decide(self, product_id: str, *requests: Request) -> None:
        answers = self.engine.decide(Batch(product_id, requests, next(self._sequences)))
        assert isinstance(answers, list)
        for answer in answers:
            if isinstance(answer, Held) and not answer.duplicate:
                self._codes.setdefault(product_id, []).append(answer.code)
            if isinstance(answer, Success) and not answer.duplicate:
                self._orders.setdefault(product_id, []).append(answer.order_id)

    def code(self, product_id: str, place: int) -> str:
        codes = self._codes.get(product_id)
        return codes[place % len(codes)] if codes else f"none.{product_id}"

    def order(self, product_id: str, place: int) -> str:
        made = self._orders.get(product_id)
        return made[place % len(made)] if made else f"0-0-none-{product_id}"

    def ledger(self, product_id: str) -> list[Change]:
        return self.engine.ledger(product_id)


def everything(product_id: str, *, by_hand: bool) -> list[Change]:
    """Return a ledger with every kind of change, in which rows change that were just made and that were made before."""
    sales = Sales()
    if by_hand:
        sales.engine.set_stock(product_id, 20, ["early", "earlier"])
    else:
        sales.open(product_id, 20, Terms(numbered=True))
    wanted = None if by_hand else 7
    for number in range(2):
        sales.engine.now_ms += 1_500
        sales.decide(product_id, Purchase(product_id, "a"), Purchase(product_id, "b", 1, f"r{number}", None))
        sales.decide(product_id, Reserve(product_id, "c", 1, f"h{number}", wanted, 30), Reserve(product_id, "d"))
        sales.decide(product_id, Reserve(product_id, "e", hold_seconds=1), Reserve(product_id, "f", hold_seconds=60))
        c, d, f = (sales.code(product_id, place) for place in (-4, -3, -1))
        sales.engine.now_ms += 2_000
        sales.decide(product_id, Extend(c, 900), Extend(f, 800), Confirm(c), Cancel(d), Confirm(f, f"f{number}"))
        sales.decide(product_id, Refund(sales.order(product_id, -1)), Restock(product_id, 5), Pause(product_id))
        sales.decide(product_id, Resume(product_id), Refund(sales.order(product_id, 0)), Reserve(product_id, "g"))
        wanted = None
    sales.decide(product_id, Close(product_id))
    ledger = sales.ledger(product_id)
    assert {change.kind for change in ledger} == set(Kind)
    return ledger


@pytest.mark.parametrize("by_hand", [False, True])
async def test_every_kind_of_change_becomes_the_same_rows_whole_and_cut_at_every_place(
    database: Database, by_hand: bool
) -> None:
    ledger = everything("whole", by_hand=by_hand)
    assert await moved(database, Portion("whole", EPOCH, ledger)) == len(ledger)
    assert await plain.read(database) == plain.together(plain.fold("whole", EPOCH, ledger))
    cuts = {f"cut {cut:02}": cut for cut in range(1, len(ledger))}
    await moved(database, *(Portion(name, EPOCH, ledger[:cut]) for name, cut in cuts.items()))
    folded = [plain.fold(name, EPOCH, ledger[:cut]) for name, cut in cuts.items()]
    assert await plain.read(database, *cuts) == plain.together(*folded)
    await moved(database, *(Portion(name, EPOCH, ledger[cut:]) for name, cut in cuts.items()))
    folded = [plain.fold(name, EPOCH, ledger) for name in cuts]
    assert await plain.read(database, *cuts) == plain.together(*folded)


@pytest.mark.parametrize("by_hand", [False, True])
async def test_each_change_moved_by_itself_becomes_the_same_rows(database: Database, by_hand: bool) -> None:
    ledger = everything("single", by_hand=by_hand)
    for change in ledger:
        assert await moved(database, Portion("single", EPOCH, [change])) == 1
    assert await plain.read(database) == plain.together(plain.fold("single", EPOCH, ledger))


async def test_buyers_from_before_the_ledger_count_as_sold_though_they_have_no_rows(database: Database) -> None:
    sales = Sales()
    sales.engine.set_stock("p", 5, ["early"] * 3)
    sales.decide("p", Purchase("p", "a"))
    await moved(database, Portion("p", EPOCH, sales.ledger("p")))
    found = await plain.read(database)
    assert [(row["initial"], row["sold"], row["version"]) for row in found["products"]] == [(8, 4, 2)]
    assert [row["user_id"] for row in found["orders"]] == ["a"]


# Any sequence, cut anywhere

places = st.integers(-3, 3)
names = st.sampled_from("abc")
quantities = st.sampled_from([1, 1, 2, 5])
ids = st.sampled_from([None, None, "x", "y", "z"])
steps = st.one_of(
    st.tuples(st.just("buy"), names, quantities, ids),
    st.tuples(st.just("hold"), names, quantities, ids, st.sampled_from([1, 2, 900])),
    st.tuples(st.sampled_from(["cancel", "confirm", "refund"]), places),
    st.tuples(st.just("extend"), places, st.sampled_from([2, 900])),
    st.tuples(st.just("wait"), st.sampled_from([1, 999, 1_000, 2_000])),
    st.tuples(st.sampled_from(["restock", "pause", "resume", "resume", "sweep"])),
)
batches = st.lists(
    st.tuples(st.sampled_from(["opened", "by hand"]), st.lists(steps, min_size=1, max_size=6)), max_size=8
)
cuts = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 1, 2])), max_size=5)


def make_request(sales: Sales, product_id: str, step: tuple[Any, ...]) -> Request:
    match step:
        case "buy", user, quantity, request_id:
            return Purchase(product_id, user, quantity, request_id)
        case "hold", user, quantity, request_id, seconds:
            return Reserve(product_id, user, quantity, request_id, None, seconds)
        case "cancel", place:
            return Cancel(sales.code(product_id, place))
        case "confirm", place:
            return Confirm(sales.code(product_id, place))
        case "extend", place, seconds:
            return Extend(sales.code(product_id, place), seconds)
        case "refund", place:
            return Refund(sales.order(product_id, place))
        case ("restock",):
            return Restock(product_id, 2)
        case ("pause",):
            return Pause(product_id)
        case ("resume",):
            return Resume(product_id)
    return Sweep(product_id)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def shared(shared_url: str, runner: asyncio.Runner) -> Iterator[Database]:
    """The database for all examples; each has products of its own."""
    database = Database(database_url(shared_url, Path()))
    runner.run(database.upgrade())
    yield database
    runner.run(database.close())


def test_any_ledger_becomes_what_a_plain_fold_says_however_it_is_cut_and_repeated(
    shared: Database, runner: asyncio.Runner
) -> None:
    numbers = count(1)

    @settings(max_examples=settings.default.max_examples // 3)
    @given(batches=batches, cuts=cuts, numbered=st.booleans(), early=st.integers(0, 2))
    def check(batches: Any, cuts: Any, numbered: bool, early: int) -> None:
        number = next(numbers)
        product_ids = {"opened": f"opened {number}", "by hand": f"by hand {number}"}
        sales = Sales()
        sales.open(product_ids["opened"], 9, Terms(numbered=numbered, hold_s=900))
        sales.engine.set_stock(product_ids["by hand"], 6, ["early"] * early)
        for which, plan in batches:
            product_id = product_ids[which]
            requests = [make_request(sales, product_id, step) for step in plan if step[0] != "wait"]
            sales.engine.now_ms += sum(step[1] for step in plan if step[0] == "wait")
            sales.decide(product_id, *requests)
        runner.run(move_in_pieces(shared, sales, list(product_ids.values()), cuts))

    check()


async def move_in_pieces(
    database: Database, sales: Sales, product_ids: Sequence[str], cuts: Sequence[tuple[float, float, int]]
) -> None:
    """Move ledgers in pieces of which each may begin anywhere in what is moved and end anywhere in the whole."""
    done = dict.fromkeys(product_ids, 0)
    for begin, end, repeats in [*cuts, (1.0, 1.0, 2)]:
        portions = []
        for product_id in product_ids:
            ledger = sales.ledger(product_id)
            first = round(begin * done[product_id])
            last = max(first, round(end * len(ledger)))
            if ledger[first:last]:
                portions.append(Portion(product_id, EPOCH, ledger[first:last]))
                done[product_id] = max(done[product_id], last)
        for _ in range(repeats):
            await moved(database, *portions)
    folded = [plain.fold(name, EPOCH, sales.ledger(name)[: done[name]]) for name in product_ids]
    assert all(done[name] == len(sales.ledger(name)) for name in product_ids)
    assert await plain.read(database, *product_ids) == plain.together(*folded)


# Again, too early, anew


async def test_what_is_in_the_tables_already_is_not_moved_again(database: Database) -> None:
    ledger = everything("p", by_hand=False)
    await moved(database, Portion("p", EPOCH, ledger[:9]))
    assert await moved(database, Portion("p", EPOCH, ledger[:9])) == 0
    assert await moved(database, Portion("p", EPOCH, ledger[3:7])) == 0
    assert await plain.read(database) == plain.together(plain.fold("p", EPOCH, ledger[:9]))
    assert await moved(database, Portion("p", EPOCH, ledger[4:12])) == 3
    assert await moved(database, Portion("p", EPOCH, ledger)) == len(ledger) - 12
    assert await moved(database, Portion("p", EPOCH, [])) == 0
    assert await plain.read(database) == plain.together(plain.fold("p", EPOCH, ledger))


async def test_a_gap_is_an_error_and_nothing_is_written_of_any_product(database: Database) -> None:
    ledger = everything("p", by_hand=False)
    await moved(database, Portion("p", EPOCH, ledger[:5]))
    before = await plain.read(database)
    with pytest.raises(LedgerGapError, match="goes on with version 7, the tables hold what came up to version 5"):
        await moved(database, Portion("another", EPOCH, ledger), Portion("p", EPOCH, ledger[6:]))
    with pytest.raises(LedgerGapError):
        await moved(database, Portion("never seen", EPOCH, ledger[1:]))
    with pytest.raises(LedgerGapError):
        await moved(database, Portion("p", NEXT_EPOCH, ledger[5:]))
    with pytest.raises(LedgerGapError, match="goes on with version 8, the tables hold what came up to version 6"):
        await moved(database, Portion("p", EPOCH, ledger[:6] + ledger[7:]))
    assert await plain.read(database) == before


@pytest.mark.parametrize("first_version", [1, 100])
async def test_a_product_opened_anew_begins_anew_and_keeps_the_orders_of_before(
    database: Database, first_version: int
) -> None:
    before = everything("p", by_hand=False)
    sales = Sales()
    if first_version > 1:  # over a sale that stood: its versions go on
        sales.open("p", 2_000)
        sales.decide("p", *[Purchase("p", "a")] * (first_version - 2))
    sales.open("p", 3, epoch=NEXT_EPOCH)
    sales.decide("p", Purchase("p", "n"), Reserve("p", "m"))
    after = [change for change in sales.ledger("p") if change.version >= first_version]
    assert after[0].kind is Kind.OPENED
    await moved(database, Portion("p", EPOCH, before[:-3]))
    assert await moved(database, Portion("p", NEXT_EPOCH, after)) == len(after)
    both = plain.together(plain.fold("p", EPOCH, before[:-3]), plain.fold("p", NEXT_EPOCH, after))
    assert await plain.read(database) == both


# Several movers


async def test_a_past_sale_that_is_told_again_changes_nothing(database: Database) -> None:
    before = everything("p", by_hand=False)
    after = [change for change in before if change.version <= 4]  # of a product that was deleted in between
    await moved(database, Portion("p", EPOCH, before))
    await moved(database, Portion("p", NEXT_EPOCH, after[:2]))
    expected = plain.together(plain.fold("p", EPOCH, before), plain.fold("p", NEXT_EPOCH, after[:2]))
    for again in (before, before[3:], before[:1]):
        assert await moved(database, Portion("p", EPOCH, again)) == 0
        async with database.writing() as connection:
            await bury(connection, Portion("p", EPOCH, again[:1]), "somebody was late")
    assert await plain.read(database) == expected
    assert await plain.read_letters(database) == []
    assert await moved(database, Portion("q", EPOCH, before), Portion("p", EPOCH, before)) == len(before)
    assert await moved(database, Portion("p", NEXT_EPOCH, after)) == len(after) - 2
    assert await plain.read(database, "p") == plain.together(
        plain.fold("p", EPOCH, before), plain.fold("p", NEXT_EPOCH, after)
    )


async def test_two_movers_at_once_neither_double_nor_lose_anything(database: Database, shared_url: str) -> None:
    ledgers = {f"p{number}": everything(f"p{number}", by_hand=bool(number % 2)) for number in range(6)}
    size = 8

    async def run(mover: Database, order: Sequence[str]) -> int:
        total = 0
        for first in range(0, 64, size // 2):  # every portion overlaps the next
            portions = [Portion(name, EPOCH, ledgers[name][first : first + size]) for name in order]
            portions = [portion for portion in portions if portion.changes]
            total += await persist(mover, portions)
        return total

    async def persist(mover: Database, portions: Sequence[Portion]) -> int:
        async with asyncio.timeout(MOVERS_PATIENCE_S):
            while True:
                try:
                    return await moved(mover, *portions)
                except DatabaseError:  # the other was first, or both waited for each other
                    await asyncio.sleep(0.01)

    other = Database(database_url(shared_url, Path()))
    try:
        counts = await asyncio.gather(run(database, sorted(ledgers)), run(other, sorted(ledgers, reverse=True)))
    finally:
        await other.close()
    assert sum(counts) == sum(map(len, ledgers.values()))
    assert await plain.read(database) == plain.together(*(plain.fold(name, EPOCH, ledgers[name]) for name in ledgers))


# What names and numbers may be


async def test_names_that_only_look_alike_stay_different(database: Database) -> None:
    alike = ["a", "A", "a ", " a", "a  ", "á", "a\u0301", "\u0430", "ａ", "ß", "ss", "a\t", "Straße", "strasse"]
    for number, name in enumerate(alike):
        sales = Sales()
        sales.open(name, 50)
        requests = [Purchase(name, user, 1, user) for user in alike]
        sales.decide(name, *requests, Reserve(name, name))
        ledger = sales.ledger(name)
        assert await moved(database, Portion(name, EPOCH, ledger)) == 2 + len(alike), number
    found = await plain.read(database)
    assert [row["product_id"] for row in found["products"]] == sorted(alike)
    assert len(found["orders"]) == len(alike) ** 2
    for name in alike:
        async with database.reading() as connection:
            query = sa.select(orders.c.product_id, orders.c.user_id).where(orders.c.user_id == name)
            rows = [tuple(row) for row in await connection.execute(query)]
        assert sorted(rows) == sorted((product_id, name) for product_id in alike)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x" * 256, id="1 byte each"),
        pytest.param("é" * 128, id="2 bytes each"),
        pytest.param("語" * 85 + "x", id="3 bytes each"),
        pytest.param("💥" * 64, id="4 bytes each"),
        pytest.param("% _\\'\"`:x;--{}", id="signs"),
    ],
)
async def test_ids_of_full_length_and_of_any_characters_are_kept_whole(database: Database, name: str) -> None:
    sales = Sales()
    sales.open(name, 5)
    request_id = name.encode()[:128].decode(errors="ignore")
    sales.decide(name, Purchase(name, name, 1, request_id), Reserve(name, name, 1, f"{request_id}"[:-1]))
    sales.decide(name, Confirm(sales.code(name, -1)), Reserve(name, name), Refund(sales.order(name, 0)))
    await moved(database, Portion(name, EPOCH, sales.ledger(name)))
    assert await plain.read(database) == plain.together(plain.fold(name, EPOCH, sales.ledger(name)))


async def test_the_largest_numbers_are_kept_whole(database: Database) -> None:
    product_id = "x" * 256
    sales = Sales()
    sales.open(product_id, STOCK_MAX)
    sales.decide(product_id, Purchase(product_id, "a", QUANTITY_MAX), Reserve(product_id, "b", QUANTITY_MAX))
    sales.decide(product_id, Confirm(sales.code(product_id, 0)), Refund(sales.order(product_id, 0)))
    opened, *rest = sales.ledger(product_id)
    far = STOCK_MAX - 100  # the last versions that there can be
    late = [
        Change(
            kind=change.kind,
            version=change.version + far,
            at_ms=change.at_ms,
            remaining=change.remaining,
            user_id=change.user_id,
            quantity=change.quantity,
            ref=change.ref and change.ref + far,
            expires_at=change.expires_at,
        )
        for change in rest
    ]
    begun = Change(kind=Kind.OPENED, version=far + 1, at_ms=opened.at_ms, remaining=STOCK_MAX, quantity=STOCK_MAX)
    ledger = [begun, *late]
    for part in ledger[:3], ledger[3:]:
        await moved(database, Portion(product_id, EPOCH, part))
    found = await plain.read(database)
    assert found == plain.together(plain.fold(product_id, EPOCH, ledger))
    assert found["products"][0]["initial"] == STOCK_MAX
    assert found["products"][0]["version"] == far + len(ledger)


async def test_the_database_itself_refuses_one_unit_too_many(database: Database) -> None:
    sales = Sales()
    sales.open("p", 2)
    sales.decide("p", Purchase("p", "a", 1), Reserve("p", "b", 1))
    opened, sold, held = sales.ledger("p")
    one_more = Change(kind=Kind.SOLD, version=4, at_ms=NOW_MS, remaining=-1, user_id="c", quantity=1)
    await moved(database, Portion("p", EPOCH, [opened, sold, held]))
    with pytest.raises(DatabaseError) as refused:
        await moved(database, Portion("p", EPOCH, [one_more]))
    assert refused.value.is_final
    with pytest.raises(DatabaseError):
        async with database.writing() as connection:
            await connection.execute(sa.update(products).values(sold=-1))
    assert await plain.read(database) == plain.together(plain.fold("p", EPOCH, [opened, sold, held]))
