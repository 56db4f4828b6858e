"""What is in the database leaves the ledger after a while; audits, refunds and movers go on as if it had not."""

import asyncio
from functools import partial

import pytest

from flashsale.domain.answers import ORDER_NOT_FOUND, Held, Success
from flashsale.domain.ids import parse_order_id
from flashsale.domain.requests import Cancel, Confirm, Extend, Pause, Purchase, Refund, Reserve, Restock
from flashsale.domain.sale import Terms
from flashsale.errors import RefusedError
from flashsale.orders import mover
from flashsale.orders.history import find_order, read_base
from flashsale.store.admin import Admin
from flashsale.store.report import Report
from flashsale.store.trimming import Window
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, Shop, until

NOTHING = Window(count=0, age_s=0.0)
TERMS = {"plain": Terms(), "limited": Terms(limit=5), "numbered": Terms(numbered=True, limit=9)}


pytestmark = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True, scope="module")


async def length(shop: Shop, product_id: str) -> int:
    return int(await shop.redis.xlen(f"product:{product_id}:orders"))


async def first_version(shop: Shop, product_id: str) -> int:
    [(message_id, _)] = await shop.redis.xrange(f"product:{product_id}:orders", count=1)
    return int(message_id.partition(b"-")[0])


async def play(shop: Shop, admin: Admin, product_id: str, terms: Terms) -> list[str]:
    """Have each kind of change happen; two holds stand at the end. Return the orders of six who bought."""
    await shop.open(product_id, 40, terms)
    orders = await shop.buy(product_id, *(f"u{number}" for number in range(6)))
    held = await shop.ask(product_id, *(Reserve(product_id, f"h{number}") for number in range(5)))
    codes = [answer.code for answer in held if isinstance(answer, Held)]
    await shop.ask(product_id, Confirm(codes[0]), Cancel(codes[1]), Extend(codes[2], 1_500), Purchase(product_id, "u1"))
    await admin.change(Refund(orders[5]))
    await admin.change(Restock(product_id, 3))
    return orders


async def trimmed(shop: Shop, product_id: str, window: Window = NOTHING) -> None:
    """Move all there is, and trim what may be."""
    async with shop.mover(window=window) as mover:
        await shop.step(mover)
        await mover.trim()


async def audited(shop: Shop, admin: Admin, product_id: str, *, helped: bool = True) -> Report:
    report = await admin.audit(product_id, partial(read_base, shop.database, product_id) if helped else None)
    assert report.fault == ""
    assert report.differences == []
    return report


@pytest.mark.parametrize("kind", TERMS)
async def test_a_ledger_is_cut_behind_the_database_and_everything_still_adds_up(
    shop: Shop, admin: Admin, kind: str
) -> None:
    await play(shop, admin, "p", TERMS[kind])
    whole = await audited(shop, admin, "p")
    await trimmed(shop, "p")
    assert await length(shop, "p") == 1  # the last one stays
    sums = await audited(shop, admin, "p", helped=False)
    assert (sums.trimmed, sums.first_version) == (True, await first_version(shop, "p"))
    both = await audited(shop, admin, "p")
    assert not both.trimmed
    for report in (sums, both):
        found = (report.version, report.units, report.remaining, report.held, report.sold)
        assert found == (whole.version, whole.units, whole.remaining, whole.held, whole.sold)
    # and it goes on
    await shop.buy("p", "later", "u1")
    await admin.change(Pause("p"))
    assert (await audited(shop, admin, "p")).version == whole.version + 3
    await trimmed(shop, "p")
    assert (await audited(shop, admin, "p")).version == whole.version + 3
    assert await shop.redis.xlen("product:p:orders") == 1


async def test_what_differs_is_found_and_mended_with_the_help_of_the_database(shop: Shop, admin: Admin) -> None:
    await play(shop, admin, "p", TERMS["limited"])
    await trimmed(shop, "p")
    await shop.redis.hset("product:p:users", "u1", "4")
    await shop.redis.lpop("product:p:buyers")
    assert (await admin.audit("p")).differences == []  # the sums are right
    base = partial(read_base, shop.database, "p")
    assert {row.what for row in (await admin.audit("p", base)).differences} == {"units of user u1", "entries in buyers"}
    await shop.redis.incr("product:p:stock")
    assert {row.what for row in (await admin.audit("p")).differences} == {"stock", "left + held + sold"}
    with pytest.raises(RefusedError, match="and the database does not help"):
        await admin.repair("p")
    before, after = await admin.repair("p", base)
    assert (before.ok, after.ok) == (False, True)
    await audited(shop, admin, "p")


async def test_an_order_that_the_ledger_does_not_tell_of_any_more_is_refunded_once(shop: Shop, admin: Admin) -> None:
    orders = await play(shop, admin, "p", TERMS["numbered"])
    await trimmed(shop, "p")
    stock = (await admin.status("p")).remaining_stock
    with pytest.raises(RefusedError, match=ORDER_NOT_FOUND):
        await admin.change(Refund(orders[0]))
    order = await find_order(shop.database, orders[0])
    assert order is not None
    known = (order.user_id, order.quantity, order.item_id)
    assert known == ("u0", 1, 1)
    assert (await admin.change(Refund(orders[0], known))).remaining_stock == stock + 1
    assert (await admin.change(Refund(orders[0], known))).duplicate
    assert (await admin.change(Refund(orders[5], known))).duplicate  # it was before
    ref = parse_order_id(orders[0])
    assert ref is not None
    with pytest.raises(RefusedError, match=ORDER_NOT_FOUND):  # of another sale
        await admin.change(Refund(orders[0].replace(ref.epoch, "00000000"), known))
    await trimmed(shop, "p")
    await audited(shop, admin, "p")
    refunded = await find_order(shop.database, orders[0])
    assert refunded is not None
    assert refunded.refund_version == (await admin.status("p")).version


async def test_what_is_within_the_window_stays(shop: Shop, admin: Admin) -> None:
    await shop.open("p")
    for user in range(10):  # a message each
        await shop.buy("p", f"u{user}")
    await trimmed(shop, "p", Window(count=4, age_s=0.0))
    assert await first_version(shop, "p") == 8
    await trimmed(shop, "p", Window(count=0, age_s=3_600.0))
    assert await first_version(shop, "p") == 8
    await audited(shop, admin, "p", helped=False)


async def test_what_is_not_in_the_database_stays(shop: Shop, admin: Admin) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    async with shop.mover(window=NOTHING) as mover:
        await shop.step(mover)
        await shop.buy("p", "b")
        await shop.buy("p", "c")
        await mover.look()
        await mover.trim()
    assert await first_version(shop, "p") == 2
    assert (await audited(shop, admin, "p", helped=False)).sold == 3


async def test_several_trim_while_a_crowd_buys_and_an_operator_audits(shop: Shop, admin: Admin) -> None:
    await shop.open("p", 100_000, TERMS["limited"])
    async with shop.moving(window=Window(count=20, age_s=0.0)), shop.moving(window=NOTHING):
        async with asyncio.timeout(PATIENCE_S):
            cut, number = 0, 0
            while cut < 3 or number < 60:
                number += 1
                await shop.buy("p", *(f"u{number}-{i}" for i in range(10)))
                if number % 10 == 0:
                    await audited(shop, admin, "p")
                    cut += await first_version(shop, "p") > 2
        version = (await admin.status("p")).version

        async def is_moved() -> bool:
            base = await read_base(shop.database, "p")
            return base is not None and base.counters.version == version

        await until(is_moved)
    base = await read_base(shop.database, "p")
    assert base is not None
    assert base.counters.sold == len(base.orders) == 10 * number
    await audited(shop, admin, "p")


async def test_a_checkpoint_that_somebody_else_has_written_is_told_and_nothing_is_cut(
    shop: Shop, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    await shop.buy("p", "b")
    await shop.redis.hset("product:p:sale", "checkpoint", "nonsense")
    await trimmed(shop, "p")
    assert await first_version(shop, "p") == 1
    assert "the ledger of product 'p' is not trimmed" in caplog.text
    assert (await admin.audit("p")).fault == "was trimmed, and what it added up to is not what was written"


async def test_a_ledger_that_somebody_else_has_cut_is_left_alone(shop: Shop) -> None:
    await shop.open("p")
    for user in "abcd":
        await shop.buy("p", user)
    async with shop.mover(window=NOTHING) as mover:
        await shop.step(mover)
        await shop.redis.xtrim("product:p:orders", minid="3-0", approximate=False)
        await mover.trim()
    assert await first_version(shop, "p") == 3
    assert not await shop.redis.hexists("product:p:sale", "checkpoint")


async def test_a_product_that_is_opened_anew_has_a_whole_ledger(shop: Shop, admin: Admin) -> None:
    await play(shop, admin, "p", TERMS["plain"])
    await trimmed(shop, "p")
    await shop.open("p", 5)
    await shop.buy("p", "a", "b")
    report = await audited(shop, admin, "p")
    assert (report.trimmed, report.units, report.sold) == (False, 5, 2)


async def test_each_of_many_products_has_its_turn(shop: Shop) -> None:
    names = [f"p{number:03}" for number in range(150)]
    for name in names:
        await shop.open(name, 10)
    await shop.buy_of_each(names, "a")
    async with shop.mover(window=NOTHING) as mover:
        await shop.step(mover)
        for _ in range(3):
            await mover.trim()
    assert {await length(shop, name) for name in names} == {1}


@pytest.mark.usefixtures("allow_poison")
async def test_what_is_a_dead_letter_still_has_its_item_and_its_buyer(
    shop: Shop, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "TRIES_MAX", 1)
    await shop.open("p", 20, TERMS["numbered"])
    bought = await shop.ask("p", *(Purchase("p", user) for user in ("a", "poison", "poison", "b")))
    orders = [answer.order_id for answer in bought if isinstance(answer, Success)]
    held = await shop.ask("p", *(Reserve("p", user) for user in ("poison", "poison", "poison", "c")))
    codes = [answer.code for answer in held if isinstance(answer, Held)]

    async def is_moved() -> bool:
        return await shop.redis.hget("product:p:sale", "moved") == await shop.redis.hget("product:p:sale", "version")

    async with shop.moving():
        await until(is_moved)
        await shop.ask("p", Confirm(codes[0]), Cancel(codes[1]), Extend(codes[2], 1_500))
        await admin.change(Refund(orders[1]))
        await until(is_moved)
    assert [letter["version"] for letter in await plain.read_letters(shop.database)] == [3, 4, 6, 7, 8, 10]
    await trimmed(shop, "p")
    report = await audited(shop, admin, "p")
    assert (report.trimmed, report.sold, report.held) == (False, 4, 2)
    order = await find_order(shop.database, orders[2])
    assert order is not None
    known = (order.user_id, order.quantity, order.item_id)
    assert known == ("poison", 1, 3)
    assert (await admin.change(Refund(orders[2], known))).remaining_stock == 15
    assert await find_order(shop.database, orders[2].replace("-p", "-q")) is None
