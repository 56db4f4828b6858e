"""Strict: nobody is told of a sale before it is a row; and what the database does not take is told or taken back."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from flashsale.domain.answers import SOLD_OUT, Held, Success
from flashsale.domain.batches import Ambiguous, Batch, Defective, NotExecuted
from flashsale.domain.requests import Cancel, Confirm, GetStatus, Purchase, Reserve
from flashsale.errors import StoreUnavailableError
from flashsale.orders import mover as moving
from flashsale.orders.history import read_base
from flashsale.store.admin import Admin
from flashsale.store.durability import Durability
from flashsale.store.engine import RedisEngine
from flashsale.store.outbox import RedisOutbox
from flashsale.store.progress import Progress
from flashsale.store.strict import StrictEngine
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, Shop, until

SHORT_S = 0.2


pytestmark = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True, scope="module")


@pytest.fixture
async def progress(shop: Shop) -> AsyncIterator[Progress]:
    async with Progress(shop.embedded.url) as opened:
        yield opened


@pytest.fixture
async def engine(shop: Shop, progress: Progress) -> AsyncIterator[StrictEngine]:
    opened = StrictEngine(shop.embedded.url, progress, durability=Durability.STRICT)
    yield opened
    await opened.close()


async def users(shop: Shop) -> list[str]:
    return [row["user_id"] for row in (await plain.read(shop.database))["orders"]]


async def test_a_sale_is_told_once_it_is_a_row(shop: Shop, engine: StrictEngine) -> None:
    await shop.open("p")
    await shop.open("q", 1)
    async with shop.moving():
        for number in range(1, 20):
            batches = [Batch(name, [Purchase(name, f"{name}{number}")], number) for name in ("p", "q")]
            [of_p], [of_q] = await engine.commit(batches, timeout_s=PATIENCE_S)  # type: ignore[misc]
            assert isinstance(of_p, Success)
            assert f"p{number}" in await users(shop)
            assert of_q == SOLD_OUT or (isinstance(of_q, Success) and "q1" in await users(shop))


async def test_holds_and_what_becomes_of_them_are_told_once_they_are_rows(shop: Shop, engine: StrictEngine) -> None:
    await shop.open("p")
    async with shop.moving():
        [held] = await engine.commit([Batch("p", [Reserve("p", "a"), Reserve("p", "b")], 1)], timeout_s=PATIENCE_S)
        assert [row["status"] for row in (await plain.read(shop.database))["holds"]] == ["held", "held"]
        assert isinstance(held, list)
        first, second = held
        assert isinstance(first, Held)
        assert isinstance(second, Held)
        requests = [Confirm(first.code), Cancel(second.code)]
        await engine.commit([Batch("p", requests, 2)], timeout_s=PATIENCE_S)
        rows = await plain.read(shop.database)
        assert [row["status"] for row in rows["holds"]] == ["confirmed", "cancelled"]
        assert await users(shop) == ["a"]


async def test_without_the_database_nothing_is_told_and_nothing_more_is_sold(shop: Shop, engine: StrictEngine) -> None:
    await shop.open("p", 3)
    await shop.open("q", 3)
    first, later = Batch("p", [Purchase("p", "a"), Purchase("p", "b")], 1), Batch("p", [Purchase("p", "c")], 2)
    [outcome] = await engine.commit([first], timeout_s=SHORT_S)
    assert isinstance(outcome, Ambiguous)
    refused, of_q = await engine.commit([later, Batch("q", [GetStatus("q")], 3)], timeout_s=SHORT_S)
    assert isinstance(refused, NotExecuted)
    assert isinstance(of_q, list)  # who asks for nothing is answered
    [again] = await engine.commit([first], timeout_s=SHORT_S)
    assert isinstance(again, Ambiguous)
    assert await users(shop) == []
    async with shop.moving():
        [answers] = await engine.commit([first], timeout_s=PATIENCE_S)
        assert isinstance(answers, list)
        assert [type(answer) for answer in answers] == [Success, Success]
        assert await users(shop) == ["a", "b"]

        async def is_sold() -> bool:
            return isinstance((await engine.commit([later], timeout_s=PATIENCE_S))[0], list)

        await until(is_sold)
    assert await users(shop) == ["a", "b", "c"]
    [sold_out] = await engine.commit([Batch("p", [Purchase("p", "d")], 4)], timeout_s=SHORT_S)
    assert sold_out == [SOLD_OUT]  # nothing to wait for


async def test_a_repeated_request_waits_as_the_first_one_did(shop: Shop, engine: StrictEngine) -> None:
    await shop.open("p")
    await shop.ask("p", Purchase("p", "a", request_id="r"))  # at a server that does not wait
    again = Batch("p", [Purchase("p", "a", request_id="r")], 1)
    assert isinstance((await engine.commit([again], timeout_s=SHORT_S))[0], Ambiguous)
    async with shop.moving():
        [answers] = await engine.commit([again], timeout_s=PATIENCE_S)
        assert isinstance(answers, list)
        assert isinstance(answers[0], Success)
        assert answers[0].duplicate


async def test_what_was_told_of_an_earlier_sale_says_nothing_of_this_one(shop: Shop, engine: StrictEngine) -> None:
    await shop.open("p")
    async with shop.moving():
        await engine.commit([Batch("p", [Purchase("p", f"u{n}") for n in range(20)], 1)], timeout_s=PATIENCE_S)
        await shop.reset("p")
    await shop.open("p")
    [outcome] = await engine.commit([Batch("p", [Purchase("p", "late")], 2)], timeout_s=SHORT_S)
    assert isinstance(outcome, Ambiguous)


@pytest.mark.parametrize("loss", ["reset", "discarded", "lost"])
async def test_what_the_database_will_never_take_holds_nothing_up(
    shop: Shop, engine: StrictEngine, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.open("p")
    async with shop.mover() as mover:
        await shop.step(mover)
    assert isinstance((await engine.commit([Batch("p", [Purchase("p", "a")], 1)], timeout_s=SHORT_S))[0], Ambiguous)
    async with Admin(shop.embedded.url) as admin:
        if loss == "reset":
            monkeypatch.setattr(Progress, "_hear", lambda *_: None)  # a hint may be lost
            async with shop.mover() as mover:
                await shop.step(mover)
            await admin.reset("p")
            await admin.init("p", 10)
        elif loss == "discarded":
            await admin.init("p", 10, force=True, discard=True)
        else:
            await shop.redis.flushall()
            await admin.recover("p", partial(read_base, shop.database, "p"))
    sequence = 1

    async def is_sold() -> bool:
        nonlocal sequence
        sequence += 1
        batch = Batch("p", [Purchase("p", "b")], sequence)
        return isinstance((await engine.commit([batch], timeout_s=PATIENCE_S))[0], list)

    async with shop.moving():
        await until(is_sold)
    assert "b" in await users(shop)


async def test_a_request_that_is_repeated_after_a_recovery_is_answered(shop: Shop) -> None:
    await shop.open("p")
    await shop.ask("p", Purchase("p", "a", request_id="r"))
    async with shop.mover() as mover:
        await shop.step(mover)
    await shop.redis.flushall()
    async with Admin(shop.embedded.url) as admin:
        await admin.recover("p", partial(read_base, shop.database, "p"))
    async with Progress(shop.embedded.url) as late:
        engine = StrictEngine(shop.embedded.url, late, durability=Durability.STRICT)
        again = Batch("p", [Purchase("p", "a", request_id="r")], 1)
        assert isinstance((await engine.commit([again], timeout_s=PATIENCE_S))[0], list)
        await engine.close()


async def test_progress_that_was_not_heard_of_is_asked_for(shop: Shop, progress: Progress) -> None:
    await shop.open("p")
    await shop.buy("p", "a")
    async with shop.mover() as mover:
        await shop.step(mover)
    epoch, _ = await shop.ledger("p")
    async with Progress(shop.embedded.url) as late:
        assert not late.has_reached(("p", epoch, 2))
        await late.reach([("p", epoch, 2)], PATIENCE_S)
        assert late.has_reached(("p", epoch, 2))
        await shop.redis.client_kill_filter(_type="pubsub")
        await shop.redis.publish("flashsale_moved", "nonsense")
        await shop.buy("p", "b")
        reached = asyncio.create_task(late.reach([("p", epoch, 3)], PATIENCE_S))
        async with shop.mover() as mover:
            await shop.step(mover)
        await reached
        assert late.has_reached(("p", epoch, 3))


async def test_the_backlog_is_bounded_and_drains(shop: Shop) -> None:
    engine = RedisEngine(shop.embedded.url, backlog_max=5)
    await shop.open("free", 100)
    for number in range(1, 20):  # nobody moves anything here
        assert isinstance((await engine.commit([Batch("free", [Purchase("free", "u")], number)], timeout_s=9))[0], list)
    await shop.open("p", 100)
    async with shop.mover() as mover:
        await mover.look()
    sold, sequence = 0, 0
    while True:
        sequence += 1
        [outcome] = await engine.commit([Batch("p", [Purchase("p", f"u{sequence}")], sequence)], timeout_s=PATIENCE_S)
        if not isinstance(outcome, list):
            break
        sold += 1
    assert outcome == Defective("the database is too many changes behind")
    assert sold == 4  # and the change that opened the sale
    [status] = await engine.commit([Batch("p", [GetStatus("p")], sequence + 1)], timeout_s=PATIENCE_S)
    assert isinstance(status, list)
    async with shop.mover() as mover:
        await shop.step(mover)
    [outcome] = await engine.commit([Batch("p", [Purchase("p", "late")], sequence + 2)], timeout_s=PATIENCE_S)
    assert isinstance(outcome, list)
    await engine.close()
    # one that is opened anew begins without the versions of before
    async with shop.moving():

        async def is_moved() -> bool:
            return await shop.is_moved("p")

        await until(is_moved)
    await shop.open("p", 100)
    again = RedisEngine(shop.embedded.url, backlog_max=5)
    [outcome] = await again.commit([Batch("p", [Purchase("p", "anew")], 1)], timeout_s=PATIENCE_S)
    assert isinstance(outcome, list)
    await again.close()


@pytest.mark.parametrize("refunds", [False, True])
async def test_an_order_that_the_database_does_not_take_is_kept_or_refunded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, refunds: bool
) -> None:
    monkeypatch.setattr(moving, "TRIES_MAX", 1)
    await shop.open("p", 10)
    await shop.ask("p", Purchase("p", "a", request_id="r"))
    # the store forgets an id after a day; the database does not
    await shop.redis.delete("product:p:requests")
    await shop.redis.hset("product:p:sale", "since", 0)
    await shop.ask("p", Purchase("p", "b", request_id="r"))
    await shop.buy("p", "c")
    async with Admin(shop.embedded.url) as admin:
        options = {"reject": admin.take_back} if refunds else {}
        async with shop.mover(**options) as mover:
            await shop.step(mover)
            await shop.step(mover)
        status = await admin.status("p")
    assert await users(shop) == ["a", "c"]
    [letter] = await plain.read_letters(shop.database)
    assert '"b"' in letter["entry"]
    assert ('"refunded"' in letter["later"]) is refunds
    [product] = (await plain.read(shop.database))["products"]
    assert product["sold"] == status.sold == (2 if refunds else 3)


async def test_what_was_committed_and_not_noted_is_noted_by_the_next_one(
    shop: Shop, engine: StrictEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.open("p")
    await shop.open("q")
    batch = Batch("p", [Purchase("p", "a", request_id="r")], 1)
    assert isinstance((await engine.commit([batch], timeout_s=SHORT_S))[0], Ambiguous)

    async def die(*_: object) -> None:
        raise StoreUnavailableError("the mover is killed")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(RedisOutbox, "note", die)
        async with shop.mover() as mover:
            await shop.step(mover)
    assert await users(shop) == ["a"]
    assert await shop.redis.hmget("product:p:sale", "moved", "stored") == [b"0", None]
    async with shop.moving():
        [answers] = await engine.commit([batch], timeout_s=PATIENCE_S)
        assert isinstance(answers, list)
        later = Batch("p", [Purchase("p", "b")], 2)
        assert isinstance((await engine.commit([later], timeout_s=PATIENCE_S))[0], list)
    await shop.redis.hset("product:p:sale", "stored", 2)  # a slow mover's note came after that of a fast one
    async with shop.mover() as mover:
        assert await shop.step(mover) == 0
    assert await shop.redis.hmget("product:p:sale", "moved", "stored") == [b"3", b"3"]
    await shop.reset("p")  # all of it is in the database


async def test_progress_ends_whatever_it_is_doing(shop: Shop) -> None:
    for number in range(12):  # also while it connects
        async with asyncio.timeout(PATIENCE_S), Progress(shop.embedded.url):
            await asyncio.sleep(number * 0.0002)
