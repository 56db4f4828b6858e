"""The mover between a real store and real databases: whatever goes away and comes back, each order is one row."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from flashsale.domain.answers import Held, Success
from flashsale.domain.requests import Cancel, Confirm, Purchase, Refund, Reserve
from flashsale.errors import DatabaseError, StoreUnavailableError
from flashsale.orders import carrier, reports
from flashsale.orders import mover as moving
from flashsale.orders.database import Database, database_url
from flashsale.store.admin import Admin
from flashsale.store.outbox import RedisOutbox
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, Shop, until

END_S = 5.0
PROMPT_S = 1.0  # from the first sale of a new product to its row


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put off is put off for a moment, and waited for no longer."""
    monkeypatch.setattr(carrier, "_WAIT_S", 0.05)
    monkeypatch.setattr(carrier, "_PUT_OFF_S", 0.02)


# Moving


async def test_a_step_moves_what_there_is_and_the_next_one_nothing(shop: Shop) -> None:
    await shop.open("p")
    await shop.open("q")
    await shop.buy("p", "a", "b", "a")
    await shop.ask("q", Purchase("q", "c", 2, "r"), Reserve("q", "d", 3))
    async with shop.mover() as mover:
        assert await shop.step(mover) == 7
        assert mover.moved_count == 7
        assert await shop.is_moved("p", "q")
        await shop.buy("p", "c")
        assert await mover.step(0.01) == 1
        assert await mover.step(0.01) == 0
        assert await shop.is_moved("p", "q")
    assert await shop.redis.hget("product:p:sale", "moved") == b"5"
    assert await shop.redis.hget("product:q:sale", "moved") == b"3"


async def test_without_any_product_there_is_nothing_to_move(shop: Shop) -> None:
    async with shop.mover() as mover:
        assert await shop.step(mover) == 0


async def test_a_mover_that_begins_goes_on_where_another_has_ended(shop: Shop) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    async with shop.mover() as first:
        assert await shop.step(first) == 2
    await shop.buy("p", "b")
    async with shop.mover() as second:
        assert await shop.step(second) == 1
    assert await shop.is_moved("p")


async def test_a_product_never_seen_before_is_in_the_tables_within_a_second(shop: Shop) -> None:
    clock, times = asyncio.get_running_loop().time, []
    async with shop.moving():
        for name in "abc":  # the quickest, as the machine may be busy
            began = clock()
            await shop.open(name)
            await shop.buy(name, "u")
            await until(lambda name=name: shop.is_moved(name))
            times.append(clock() - began)
    assert min(times) < PROMPT_S


@pytest.mark.usefixtures("no_pauses")
async def test_a_sale_whose_stock_was_set_by_hand_is_moved_with_its_first_order(shop: Shop) -> None:
    await shop.redis.set("product:p:stock", 40)
    await shop.redis.lpush("product:p:buyers", "early", "earlier")
    async with shop.moving():
        [order_id] = await shop.buy("p", "a")
        await until(lambda: shop.is_moved("p"))
    found = await plain.read(shop.database)
    assert [(row["initial"], row["sold"]) for row in found["products"]] == [(42, 3)]
    assert [row["order_id"] for row in found["orders"]] == [order_id]


@pytest.mark.usefixtures("no_pauses")
async def test_more_products_than_one_reading_takes_all_get_their_turn(shop: Shop) -> None:
    names = [f"p{number:03}" for number in range(300)]
    await shop.redis.mset({f"product:{name}:stock": 5 for name in names})
    await shop.buy_of_each(names, "a")
    async with shop.moving():
        await until(lambda: has_products(shop, len(names)))
        for name in (names[0], names[-1]):
            await shop.buy(name, "b")
        await until(lambda: shop.is_moved(names[0], names[-1]))
    assert await shop.is_moved(*names)


async def has_products(shop: Shop, number: int) -> bool:
    return len((await plain.read(shop.database))["products"]) == number


@pytest.mark.usefixtures("no_pauses")
async def test_two_movers_at_once_and_nothing_is_doubled_or_lost(shop: Shop) -> None:
    other = Database(database_url(shop.url, Path()))
    order_ids: list[str] = []
    try:
        async with shop.moving(), shop.moving(database=other):
            for name in ("p", "q", "r"):
                await shop.open(name)
            for number in range(30):
                for name in ("p", "q", "r"):
                    order_ids += await shop.buy(name, f"a{number}", f"b{number}")
            await until(lambda: shop.is_moved("p", "q", "r"))
    finally:
        await other.close()
    found = await plain.read(shop.database)
    assert sorted(row["order_id"] for row in found["orders"]) == sorted(order_ids)


# What goes away comes back


@pytest.mark.usefixtures("no_pauses")
async def test_the_store_dies_and_comes_back_and_the_orders_go_on(shop: Shop) -> None:
    await shop.open("p")

    async def revive() -> None:
        await asyncio.to_thread(shop.embedded.acquire)

    async with shop.moving(revive=revive):
        before = await shop.buy("p", "a", "b")
        await until(lambda: shop.is_moved("p"))
        pid = (await shop.redis.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)  # whoever moves starts it again
        await until(lambda: answers(shop.redis))
        after = await shop.buy("p", "c")
        await until(lambda: shop.is_moved("p"))
    found = await plain.read(shop.database)
    assert [row["order_id"] for row in found["orders"]] == before + after


async def answers(client: "Redis") -> bool:
    try:
        return bool(await client.ping())
    except Exception:  # noqa: BLE001 - of any kind
        return False


@pytest.mark.parametrize("kill", [False, True])
async def test_the_database_goes_and_comes_back_and_the_rows_are_complete(
    shop: Shop, dialect: str, request: pytest.FixtureRequest, kill: bool
) -> None:
    if dialect == "sqlite":
        pytest.skip("a file does not go away")
    server = request.getfixturevalue({"postgresql": "postgres", "mariadb": "mariadb"}[dialect])
    await shop.open("p")
    async with shop.moving():
        order_ids = await shop.buy("p", "a")
        await until(lambda: shop.is_moved("p"))
        await asyncio.to_thread(server.kill if kill else server.stop)
        try:
            for number in range(20):
                order_ids += await shop.buy("p", f"meanwhile {number}")
            with pytest.raises(DatabaseError):
                await plain.read(shop.database)
        finally:
            await asyncio.to_thread(server.start)
        order_ids += await shop.buy("p", "z")
        await until(lambda: is_moved_now(shop, "p"))
    found = await plain.read(shop.database)
    assert [row["order_id"] for row in found["orders"]] == order_ids


async def is_moved_now(shop: Shop, *product_ids: str) -> bool:
    """Like `is_moved`; false while the database is still coming back."""
    try:
        return await shop.is_moved(*product_ids)
    except DatabaseError:
        return False


async def test_a_database_that_is_locked_for_a_while_is_waited_for(shop: Shop) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    async with shop.mover() as mover:
        await shop.step(mover)
        async with shop.database.writing() as connection:
            await connection.execute(sa.update(plain.products).values(state="open"))
            await shop.buy("p", "b")
            other = asyncio.create_task(shop.step(mover))
            done, _ = await asyncio.wait([other], timeout=0.3)
            assert not done
        assert await other == 1
    assert await shop.is_moved("p")


@pytest.mark.usefixtures("no_pauses")
async def test_a_note_that_the_store_does_not_take_hinders_nothing(shop: Shop) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    await shop.redis.config_set("maxmemory", 1)
    try:
        async with shop.moving():
            await until(lambda: shop.is_moved("p"))
    finally:
        await shop.redis.config_set("maxmemory", 0)
    assert await shop.redis.hget("product:p:sale", "moved") == b"0"


@pytest.mark.usefixtures("no_pauses")
async def test_a_mover_that_is_told_to_end_ends_whatever_it_is_doing(shop: Shop) -> None:
    for name in ("p", "q"):
        await shop.open(name)
    epoch, _ = await shop.ledger("q")
    bad = {"at": "9" * 18, "epoch": epoch, "changes": '[["sold",1,"u",1]]'}
    await shop.redis.xadd("product:q:orders", bad, "2-0")  # so that it rolls back again and again
    for number in range(20):
        async with shop.mover() as mover:
            task = asyncio.create_task(mover.run())
            await shop.buy("p", f"u{number}")
            await asyncio.sleep(0.005 * number)
            mover.end()
            await asyncio.wait_for(task, END_S)
        async with asyncio.timeout(END_S), shop.database.writing() as connection:  # nothing is locked any more
            await connection.execute(sa.update(plain.products).values(state="open"))


async def test_a_mover_that_is_cancelled_ends_whatever_it_is_doing(shop: Shop, dialect: str) -> None:
    if dialect == "sqlite":
        pytest.skip("its threads are ended, not cancelled")
    await shop.open("p")
    for number in range(20):
        async with shop.mover() as mover:
            task = asyncio.create_task(mover.run())
            await shop.buy("p", f"u{number}")
            await asyncio.sleep(0.003 * number)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
            assert done
            assert task.cancelled()


# A product anew


@pytest.mark.usefixtures("no_pauses")
async def test_a_product_reset_and_opened_anew_while_it_is_moved_keeps_the_orders_of_before(shop: Shop) -> None:
    order_ids: list[str] = []
    async with shop.moving():
        for generation in range(3):
            await shop.open("p", 10 + generation)
            order_ids += await shop.buy("p", *(f"{generation}.{number}" for number in range(5 - generation)))
            await until(lambda: has_orders(shop, order_ids))  # noqa: B023 - it is awaited at once
            if generation == 1:  # once reset, once opened over what was there
                await shop.reset("p")
    found = await plain.read(shop.database)
    assert sorted(row["order_id"] for row in found["orders"]) == sorted(order_ids)
    assert found["products"] == (await shop.expected("p"))["products"]


async def has_orders(shop: Shop, order_ids: list[str]) -> bool:
    return {row["order_id"] for row in (await plain.read(shop.database))["orders"]} == set(order_ids)


async def is_as(shop: Shop, product_id: str, expected: plain.Rows) -> bool:
    return await plain.read(shop.database, product_id) == expected


async def has_order_count(shop: Shop, product_id: str, number: int) -> bool:
    return len((await plain.read(shop.database, product_id))["orders"]) == number


async def test_a_product_that_is_deleted_stays_in_the_tables(shop: Shop) -> None:
    await shop.open("p")
    await shop.open("q")
    await shop.buy("p", "a")
    async with shop.mover() as mover:
        await shop.step(mover)
        before = await plain.read(shop.database, "p")
        await shop.reset("p")
        await shop.buy("q", "a")
        assert await shop.step(mover) == 1
    assert await plain.read(shop.database, "p") == before


# One bad product hinders no other


@pytest.mark.parametrize(
    "fields",
    [
        {"changes": '[["sold",1,"u",1]]', "epoch": "00000000"},
        {"at": "1900000000000", "changes": '[["sold",1,"u",1]]'},
        {"at": "1900000000000", "epoch": "00000000", "changes": "no JSON"},
        {"at": "1900000000000", "epoch": "00000000", "changes": '[["stolen",1,"u",1]]'},
        {"at": "soon", "epoch": b"\xff\xfe", "changes": "[]"},
    ],
    ids=["no time", "no epoch", "no JSON", "no such kind", "no number"],
)
@pytest.mark.usefixtures("no_pauses")
async def test_a_message_that_cannot_be_read_blocks_only_its_own_product(shop: Shop, fields: Any) -> None:
    await shop.open("bad")
    await shop.open("good")
    await shop.buy("bad", "a")
    expected = await shop.expected("bad")
    await shop.redis.xadd("product:bad:orders", fields, "3-0")
    async with shop.moving():
        await shop.buy("good", "b")
        await until(lambda: shop.is_moved("good"))
        await until(lambda: is_as(shop, "bad", expected))
        await shop.buy("good", "c")
        await until(lambda: shop.is_moved("good"))
        await shop.open("bad")  # as an operator does to have it back
        await shop.buy("bad", "d")
        await until(lambda: has_order_count(shop, "bad", 2))
    assert (await plain.read(shop.database, "bad"))["products"] == (await shop.expected("bad"))["products"]


@pytest.mark.parametrize(
    ("at", "change"),
    [
        ("9" * 18, '["sold",1,"u",1]'),
        ("1900000000000", f'["sold",1,"u",{10**30}]'),
        ("1900000000000", f'["held",1,"u",1,0,"",0,{10**15}]'),
        ("1900000000000", '["sold",1,"thief",100000]'),
    ],
    ids=["a year that there is not", "a number that is too large", "a deadline that there is not", "oversold"],
)
@pytest.mark.usefixtures("no_pauses")
async def test_a_change_that_nobody_can_have_made_blocks_only_its_own_product(shop: Shop, at: str, change: str) -> None:
    for name in ("p", "q", "r"):
        await shop.open(name)
        await shop.buy(name, "a")
    expected = await shop.expected("q")
    epoch, _ = await shop.ledger("q")
    await shop.redis.xadd("product:q:orders", {"at": at, "epoch": epoch, "changes": f"[{change}]"}, "3-0")
    async with shop.moving():
        await until(lambda: shop.is_moved("p", "r"))
        for number in range(moving.TRIES_MAX + 2):
            await shop.buy("p", f"p{number}")
            await shop.buy("r", f"r{number}")
            await until(lambda: shop.is_moved("p", "r"))
    found = await plain.read(shop.database, "q")
    assert found["orders"] == expected["orders"]
    assert found["holds"] == []


@pytest.mark.usefixtures("no_pauses")
async def test_a_gap_in_a_ledger_blocks_only_its_own_product(shop: Shop) -> None:
    for name in ("p", "q"):
        await shop.open(name)
        await shop.buy(name, "a")
        await shop.buy(name, "b")
    await shop.redis.xdel("product:p:orders", "2-0")
    async with shop.moving():
        await until(lambda: shop.is_moved("q"))
        await until(lambda: has_version(shop, "p", 1))
        await shop.buy("q", "c")
        await until(lambda: shop.is_moved("q"))
    assert (await plain.read(shop.database, "p"))["orders"] == []


async def has_version(shop: Shop, product_id: str, version: int) -> bool:
    return [row["version"] for row in (await plain.read(shop.database, product_id))["products"]] == [version]


@pytest.mark.parametrize("part", ["orders", "sale"])
@pytest.mark.usefixtures("no_pauses")
async def test_a_key_of_another_type_blocks_only_its_own_product(shop: Shop, part: str) -> None:
    for name in ("p", "q"):
        await shop.open(name)
        await shop.buy(name, "a")
    await shop.redis.set(f"product:p:{part}", "somebody else's")
    async with shop.moving():
        await until(lambda: shop.is_moved("q"))
        await shop.buy("q", "b")
        await until(lambda: shop.is_moved("q"))


# What the database does not take


@pytest.mark.usefixtures("no_pauses")
async def test_a_change_that_is_not_taken_is_a_dead_letter_after_some_tries_and_what_is_behind_it_goes_on(
    shop: Shop, allow_poison: Callable[[], Awaitable[None]]
) -> None:
    await shop.open("p")
    await shop.open("q")
    await shop.buy("p", "a", "b", "poison", "c", "poison", "d")
    await shop.buy("q", "a")
    async with shop.mover() as mover:
        await mover.look()
        for _ in range(1, moving.TRIES_MAX):
            await mover.step(0.01)
            assert await has_version(shop, "p", 3)  # what stands before it
            assert await shop.is_moved("q")
            assert await reports.list_dead_letters(shop.database) == []

        async def all_counted() -> bool:
            await mover.step(0.01)
            return await has_version(shop, "p", 7)

        await until(all_counted)
    expected = await shop.expected("p", "q")
    poisoned = [row for row in expected["orders"] if row["user_id"] == "poison"]
    found = await plain.read(shop.database)
    assert found["products"] == expected["products"]  # counted all the same
    assert found["orders"] == [row for row in expected["orders"] if row not in poisoned]
    letters = await reports.list_dead_letters(shop.database)
    assert [letter["version"] for letter in letters] == [row["version"] for row in poisoned]
    assert all(letter["error"] for letter in letters)

    with pytest.raises(DatabaseError):
        await reports.retry(shop.database, letters[0]["id"], 1)
    assert await reports.list_dead_letters(shop.database) == letters
    await allow_poison()
    for letter in letters:
        assert await reports.retry(shop.database, letter["id"], 1)
        assert not await reports.retry(shop.database, letter["id"], 1)
    assert await reports.list_dead_letters(shop.database) == []
    assert await shop.is_moved("p", "q")


@pytest.mark.usefixtures("no_pauses")
async def test_a_dead_letter_that_is_written_at_last_tells_what_has_become_of_it_since(
    shop: Shop, allow_poison: Callable[[], Awaitable[None]]
) -> None:
    await shop.open("p")
    answers = await shop.ask(
        "p",
        Purchase("p", "poison"),
        Purchase("p", "poison"),
        Reserve("p", "poison"),
        Reserve("p", "poison"),
        Reserve("p", "poison"),
        Reserve("p", "fine"),
    )
    orders = [answer.order_id for answer in answers if isinstance(answer, Success)]
    codes = [answer.code for answer in answers if isinstance(answer, Held)]
    [refunded] = [answer for answer in await shop.ask("p", Confirm(codes[0])) if isinstance(answer, Success)]
    async with shop.moving():
        await until(lambda: has_version(shop, "p", 8))
        async with Admin(shop.embedded.url) as admin:
            await admin.change(Refund(orders[0]))
            await admin.change(Refund(refunded.order_id))
        await shop.ask("p", Cancel(codes[1]), Confirm(codes[3]))
        await until(lambda: has_version(shop, "p", 12))
    letters = await reports.list_dead_letters(shop.database)
    assert [letter["version"] for letter in letters] == [2, 3, 4, 5, 6, 8]
    await allow_poison()
    for letter in reversed(letters):  # the confirmation before its hold
        assert await reports.retry(shop.database, letter["id"], 1)
    assert await shop.is_moved("p")


@pytest.mark.usefixtures("no_pauses")
async def test_a_name_that_postgresql_has_no_text_for_is_a_dead_letter_there_and_a_row_elsewhere(
    shop: Shop, dialect: str
) -> None:
    await shop.open("p")
    await shop.buy("p", "a", "nul\0", "b")
    async with shop.moving():
        await until(lambda: has_version(shop, "p", 4))
    expected = await shop.expected("p")
    found = await plain.read(shop.database)
    letters = await reports.list_dead_letters(shop.database)
    if dialect == "postgresql":
        assert [row["user_id"] for row in found["orders"]] == ["a", "b"]
        assert [letter["version"] for letter in letters] == [3]
        assert found["products"] == expected["products"]
        with pytest.raises(DatabaseError):
            await reports.retry(shop.database, letters[0]["id"], 1)
    else:
        assert found == expected
        assert letters == []


@pytest.mark.usefixtures("no_pauses")
async def test_two_movers_bury_a_change_once(shop: Shop, allow_poison: Callable[[], Awaitable[None]]) -> None:
    await shop.open("p")
    await shop.buy("p", "poison", "a")
    other = Database(database_url(shop.url, Path()))
    try:
        async with shop.moving(), shop.moving(database=other):
            await until(lambda: has_version(shop, "p", 3))
    finally:
        await other.close()
    assert [letter["version"] for letter in await reports.list_dead_letters(shop.database)] == [2]
    assert [row["sold"] for row in (await plain.read(shop.database))["products"]] == [2]
    await allow_poison()


async def test_a_store_that_is_not_there_is_said_in_one_sentence() -> None:
    outbox = RedisOutbox("redis://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match=r"^cannot reach Redis at 127\.0\.0\.1:1: [^\n]*$"):
        await outbox.epochs()
    await outbox.close()
