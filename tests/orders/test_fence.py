"""A store that went backwards sells nothing of which the database knows more, until it is rebuilt from there."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from flashsale.domain.answers import Answer, Held, Success
from flashsale.domain.batches import Batch, Defective
from flashsale.domain.requests import Close, Confirm, Pause, Purchase, Refund, Reserve, Restock
from flashsale.domain.sale import PLAIN, Terms
from flashsale.errors import RefusedError
from flashsale.orders.fence import Fence
from flashsale.orders.history import read_base
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from flashsale.store.outbox import RedisOutbox
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, Shop, until

TERMS = {
    "plain": PLAIN,
    "limited": Terms(limit=4, hold_s=600, hold_total_s=900),
    "numbered": Terms(numbered=True, limit=9),
}


pytestmark = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True, scope="module")


@pytest.fixture
async def fence(shop: Shop) -> AsyncIterator[Fence]:
    outbox = RedisOutbox(shop.embedded.url)
    yield Fence(outbox, shop.database, writes=True)
    await outbox.close()


async def moved(shop: Shop, fence: Fence) -> None:
    """Move all there is, with a look at the fence before, as a mover does."""
    async with shop.mover() as mover:
        await mover.look()
        assert await fence.check() == []
        await shop.step(mover)


async def look(shop: Shop) -> None:
    """Look as a mover does, which gives the store a name."""
    async with shop.mover() as mover:
        await mover.look()


async def keys_of(shop: Shop, product_id: str) -> dict[bytes, bytes]:
    return {key: await shop.redis.dump(key) async for key in shop.redis.scan_iter(f"product:{product_id}:*")}


async def set_back(shop: Shop, product_id: str, copy: dict[bytes, bytes]) -> None:
    """Have the store hold what it held when the copy was made."""
    async for key in shop.redis.scan_iter(f"product:{product_id}:*"):
        await shop.redis.delete(key)
    for key, value in copy.items():
        await shop.redis.restore(key, 0, value)


async def outcome(shop: Shop, product_id: str) -> object:
    """Return what becomes of a purchase."""
    engine = RedisEngine(shop.embedded.url)
    [found] = await engine.commit([Batch(product_id, [Purchase(product_id, "late")], 1)], timeout_s=PATIENCE_S)
    await engine.close()
    return found


async def assert_frozen(shop: Shop, product_id: str) -> None:
    found = await outcome(shop, product_id)
    assert isinstance(found, Defective)
    assert "flashsale recover" in found.reason


async def play(shop: Shop, admin: Admin, terms: Terms) -> tuple[list[str], list[Answer]]:
    """Have each kind of change happen in a sale of 30 units; return the orders, and what was answered to ids."""
    await shop.open("p", 30, terms)
    orders = await shop.buy("p", *(f"u{number % 4}" for number in range(8)))
    item = 12 if terms.numbered else None
    named = await shop.ask(
        "p", Purchase("p", "a", request_id="ra"), Purchase("p", "b", request_id="rb", item_id=item), Reserve("p", "h1")
    )
    await shop.ask("p", *(Reserve("p", f"h{number}") for number in range(2, 4)))
    assert isinstance(named[2], Held)
    await shop.ask("p", Confirm(named[2].code))
    await admin.change(Refund(orders[2]))
    await admin.change(Restock("p", 2))
    return orders, named


@pytest.mark.parametrize("kind", TERMS)
async def test_a_sale_that_the_store_has_lost_is_rebuilt(shop: Shop, admin: Admin, fence: Fence, kind: str) -> None:
    orders, named = await play(shop, admin, TERMS[kind])
    await moved(shop, fence)
    assert await fence.check() == []
    rows, before = await plain.read(shop.database), await admin.sale("p")
    buyers = [name async for name in admin.buyers("p")]
    users = await shop.redis.hgetall("product:p:users")
    items = await shop.redis.get("product:p:items")

    await shop.redis.flushall()
    await look(shop)
    assert await fence.check() == ["p"]
    assert await fence.check() == []  # told once
    await assert_frozen(shop, "p")
    with pytest.raises(RefusedError, match=r"rebuild it with flashsale recover, or give --discard"):
        await admin.reset("p")
    with pytest.raises(RefusedError, match=r"rebuild it with flashsale recover, or give --discard"):
        await admin.init("p", 5, force=True)

    base, report = await admin.recover("p", partial(read_base, shop.database, "p"))
    assert report.ok, report.differences
    assert await admin.sale("p") == before
    assert [name async for name in admin.buyers("p")] == buyers
    assert await shop.redis.hgetall("product:p:users") == users
    assert ((await shop.redis.get("product:p:items")) or b"").rstrip(b"\0") == (items or b"").rstrip(b"\0")
    assert len(base.holds) == 2
    # who repeats a request gets the first answer, and nobody else's
    item = 12 if TERMS[kind].numbered else None
    again = await shop.ask("p", Purchase("p", "a", request_id="ra"), Purchase("p", "b", request_id="rb", item_id=item))
    for first, second in zip(named, again, strict=False):
        assert isinstance(first, Success)
        assert isinstance(second, Success)
        assert second.duplicate
        assert (second.order_id, second.version, second.remaining_stock, second.item_id) == (
            first.order_id,
            first.version,
            first.remaining_stock,
            first.item_id,
        )
    [other] = await shop.ask("p", Purchase("p", "b", request_id="ra"))
    assert type(other).__name__ == "Mismatch"
    # and it goes on, also into the database
    assert (await admin.change(Refund(orders[2], ("u2", 1, 3 if item else 0)))).duplicate
    await shop.buy("p", "later")
    await moved(shop, fence)
    after = await plain.read(shop.database)
    assert [row for row in after["orders"] if row["user_id"] != "later"] == rows["orders"]
    assert len(after["orders"]) == len(rows["orders"]) + 1
    assert (await admin.audit("p", partial(read_base, shop.database, "p"))).ok


async def test_a_store_that_was_set_back_is_frozen_and_rebuilt(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 10)
    await shop.buy("p", "a", "b")
    await moved(shop, fence)
    copy = await keys_of(shop, "p")
    await shop.buy("p", "c", "d")
    await admin.change(Pause("p"))
    await moved(shop, fence)
    await set_back(shop, "p", copy)
    assert await fence.check() == ["p"]
    assert await fence.check() == []  # told once
    await assert_frozen(shop, "p")
    with pytest.raises(RefusedError, match="rebuild it with flashsale recover"):
        await admin.repair("p")
    await admin.recover("p", partial(read_base, shop.database, "p"))
    sale = await admin.sale("p")
    assert (sale.remaining, sale.sold, sale.state, sale.version) == (6, 4, "paused", 6)
    assert [name async for name in admin.buyers("p")] == ["a", "b", "c", "d"]


async def test_who_bought_after_the_store_was_set_back_has_bought_nothing(
    shop: Shop, admin: Admin, fence: Fence
) -> None:
    await shop.open("p", 10)
    await shop.ask("p", Purchase("p", "a", request_id="ra"))
    [held] = await shop.ask("p", Reserve("p", "h"))
    await moved(shop, fence)
    copy = await keys_of(shop, "p")
    await shop.buy("p", "b", "c")
    await shop.ask("p", Purchase("p", "d", request_id="rd"))
    await moved(shop, fence)
    await set_back(shop, "p", copy)
    [never] = await shop.ask("p", Purchase("p", "x", request_id="rx"))  # before anybody looked
    assert await fence.check() == ["p"]
    await admin.recover("p", partial(read_base, shop.database, "p"))
    assert isinstance(held, Held)
    assert isinstance(never, Success)
    requests = [Purchase("p", user, request_id=f"r{user}") for user in "xad"]
    bought, *again = await shop.ask("p", *requests, Confirm(held.code))
    assert isinstance(bought, Success)
    assert not bought.duplicate
    assert bought.order_id != never.order_id
    assert [getattr(answer, "duplicate", None) for answer in again] == [True, True, False]
    await moved(shop, fence)
    assert [row["user_id"] for row in (await plain.read(shop.database))["orders"]] == ["a", "b", "c", "d", "x", "h"]


async def test_a_recovery_that_was_stopped_half_way_is_done_again(
    shop: Shop, admin: Admin, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.open("p", 10)
    [first] = await shop.ask("p", Purchase("p", "a", request_id="ra"))
    await moved(shop, fence)
    await shop.redis.flushall()
    await look(shop)
    assert await fence.check() == ["p"]
    base = partial(read_base, shop.database, "p")

    async def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Admin, "_repair", stopped)
        with pytest.raises(KeyboardInterrupt):
            await admin.recover("p", base)
    await assert_frozen(shop, "p")
    await asyncio.gather(admin.recover("p", base), admin.recover("p", base))
    [again] = await shop.ask("p", Purchase("p", "a", request_id="ra"))
    assert isinstance(first, Success)
    assert isinstance(again, Success)
    assert (again.order_id, again.duplicate) == (first.order_id, True)
    await shop.buy("p", "b")
    await admin.recover("p", base)  # nothing is lost any more
    assert [name async for name in admin.buyers("p")] == ["a", "b"]


async def test_a_store_that_was_set_back_to_an_earlier_sale_is_frozen(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 10)
    await shop.buy("p", "a")
    await moved(shop, fence)
    copy = await keys_of(shop, "p")
    await shop.open("p", 20)
    await shop.buy("p", "b")
    await moved(shop, fence)
    rows = await plain.read(shop.database)
    await set_back(shop, "p", copy)
    assert await fence.check() == ["p"]
    await assert_frozen(shop, "p")
    async with shop.mover() as mover:
        assert await shop.step(mover) == 0
    await admin.recover("p", partial(read_base, shop.database, "p"))
    assert [name async for name in admin.buyers("p")] == ["b"]
    await moved(shop, fence)
    assert await plain.read(shop.database) == rows


async def test_a_store_that_was_set_back_and_came_farther_with_other_sales_is_frozen(
    shop: Shop, admin: Admin, fence: Fence
) -> None:
    for name in ("p", "q"):
        await shop.open(name, 10)
        await shop.buy(name, "a")
    await moved(shop, fence)
    copy = await keys_of(shop, "p")
    await shop.buy("p", "b")
    await shop.buy("p", "c")
    await moved(shop, fence)
    await asyncio.sleep(0.002)
    await set_back(shop, "p", copy)
    for user in "xyz":
        await shop.buy("p", user)
    outbox = RedisOutbox(shop.embedded.url)
    anew = Fence(outbox, shop.database)  # as one that finds that the store was started again
    assert await anew.check() == ["p"]
    assert await anew.check() == []
    await outbox.close()
    await assert_frozen(shop, "p")
    await admin.recover("p", partial(read_base, shop.database, "p"))
    assert [name async for name in admin.buyers("p")] == ["a", "b", "c"]
    assert await shop.buy("p", "later")
    await moved(shop, fence)
    assert {row["user_id"] for row in (await plain.read(shop.database, "p"))["orders"]} == {"a", "b", "c", "later"}


async def test_what_was_reset_before_the_store_was_lost_does_not_come_back(
    shop: Shop, admin: Admin, fence: Fence
) -> None:
    await shop.open("p", 5)
    await shop.open("reset", 5)
    await moved(shop, fence)
    await admin.reset("reset")
    assert await fence.check() == []
    await shop.redis.flushall()
    assert await fence.check() == ["p"]


async def test_what_an_operator_began_anew_is_not_frozen(shop: Shop, admin: Admin, fence: Fence) -> None:
    for name in ("reset", "anew", "by hand", "idle"):
        await shop.open(name, 5)
        await shop.buy(name, "a")
    await moved(shop, fence)
    await admin.reset("reset")
    assert await fence.check() == []
    await shop.open("anew", 7)
    await admin.reset("by hand")
    await shop.redis.set("product:by hand:stock", 3)
    await shop.open("reset", 9)
    assert await fence.check() == []
    assert await fence.check() == []
    for name in ("anew", "by hand", "reset", "idle"):
        assert await shop.buy(name, "b")
    await moved(shop, fence)
    assert await fence.check() == []


async def test_a_product_without_keys_in_another_store_is_frozen_but_what_is_sold_there_is_not(
    shop: Shop, fence: Fence
) -> None:
    await shop.open("lost", 5)
    await shop.open("anew", 5)
    await shop.buy("anew", "a")
    await moved(shop, fence)
    assert await fence.check() == []
    await shop.redis.flushall()
    await shop.open("anew", 5)
    await look(shop)
    assert await fence.check() == ["lost"]
    assert await shop.buy("anew", "b")


async def test_a_frozen_product_is_forgotten_when_the_operator_says_so(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 5)
    await shop.buy("p", "a")
    await moved(shop, fence)
    await shop.redis.flushall()
    await look(shop)
    assert await fence.check() == ["p"]
    await admin.init("p", 3, discard=True)
    assert await fence.check() == []
    assert await shop.buy("p", "b")
    await moved(shop, fence)
    assert {row["user_id"] for row in (await plain.read(shop.database))["orders"]} == {"a", "b"}


async def test_a_store_that_is_lost_at_once_is_known_to_be(shop: Shop, fence: Fence) -> None:
    await shop.open("p", 5)
    assert await fence.check() == []
    await shop.buy("p", "a")
    async with shop.mover() as mover:
        await shop.step(mover)
    await shop.redis.flushall()
    assert await fence.check() == ["p"]


async def test_a_mover_that_saw_the_store_before_it_was_lost_gives_it_no_old_name(shop: Shop, fence: Fence) -> None:
    await shop.open("p", 5)
    await shop.buy("p", "a")
    async with shop.mover() as mover:
        await shop.step(mover)
        assert await fence.check() == []
        await shop.redis.flushall()
        await mover.look()
        assert await fence.check() == ["p"]


async def test_a_sale_that_is_whole_is_only_audited(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 5)
    await shop.buy("p", "a")
    await moved(shop, fence)
    await shop.buy("p", "b")  # not in the database yet
    await shop.redis.set("product:p:stock", 5)
    base, report = await admin.recover("p", partial(read_base, shop.database, "p"))
    assert (base, report.ok) == (None, True)
    assert (await admin.sale("p")).sold == 2
    with pytest.raises(RefusedError, match="does not know product 'q'"):
        await admin.recover("q", partial(read_base, shop.database, "q"))


async def test_a_closed_sale_whose_stock_is_gone_is_rebuilt(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 5)
    await shop.buy("p", "a")
    await admin.change(Close("p"))
    await moved(shop, fence)
    await shop.redis.delete("product:p:stock")
    found = await outcome(shop, "p")
    assert isinstance(found, Defective)
    await admin.recover("p", partial(read_base, shop.database, "p"))
    sale = await admin.sale("p")
    assert (sale.state, sale.remaining, sale.sold) == ("closed", 4, 1)


async def test_holds_that_were_lost_return_in_time(shop: Shop, admin: Admin, fence: Fence) -> None:
    await shop.open("p", 5, Terms(hold_s=2, hold_total_s=2))
    [held] = await shop.ask("p", Reserve("p", "h"))
    await moved(shop, fence)
    await shop.redis.flushall()
    await look(shop)
    assert await fence.check() == ["p"]
    base, _ = await admin.recover("p", partial(read_base, shop.database, "p"))
    assert len(base.holds) == 1
    assert isinstance(held, Held)
    [answer] = await shop.ask("p", Confirm(held.code))
    assert getattr(answer, "error", "") == "hold not found"

    async def is_back() -> bool:
        return (await admin.status("p")).remaining_stock == 5

    await until(is_back)


async def test_a_server_compares_before_it_sells_and_does_not_wait_long(
    shop: Shop, fence: Fence, embedded: EmbeddedStore, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.open("p", 10)
    await shop.buy("p", "a")
    await moved(shop, fence)
    copy = await keys_of(shop, "p")
    await shop.buy("p", "b")
    await moved(shop, fence)
    await set_back(shop, "p", copy)
    engine = RedisEngine(embedded.url, compare=fence.check_soon)
    await engine.open()
    [found] = await engine.commit([Batch("p", [Purchase("p", "c")], 1)], timeout_s=PATIENCE_S)
    assert isinstance(found, Defective)
    await engine.close()

    class Stuck(Fence):
        async def check(self) -> list[str]:
            await asyncio.sleep(PATIENCE_S)
            return []

    caplog.clear()
    outbox = RedisOutbox(embedded.url)
    stuck = Stuck(outbox, shop.database)
    async with asyncio.timeout(PATIENCE_S / 2):
        await stuck.check_soon()
    assert "selling before the store could be compared with the database: it does not answer" in caplog.text
    await outbox.close()


@pytest.mark.parametrize("damage", ["another type", "no number"])
async def test_a_product_that_cannot_be_read_hinders_nobody_else(shop: Shop, fence: Fence, damage: str) -> None:
    for name in ("p", "q", "r"):
        await shop.open(name)
        await shop.buy(name, "a")
    await moved(shop, fence)
    copy = await keys_of(shop, "r")
    await shop.buy("r", "b")
    await moved(shop, fence)
    await set_back(shop, "r", copy)
    if damage == "another type":
        await shop.redis.set("product:p:sale", "somebody else's")
    else:
        await shop.redis.hset("product:p:sale", "version", "somebody else's")
    assert not isinstance(await outcome(shop, "p"), list)
    async with shop.moving(fenced=True):
        await shop.buy("q", "b")
        await until(lambda: shop.is_moved("q"))
    await assert_frozen(shop, "r")
