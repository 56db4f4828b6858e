"""Products at a glance, on a real store."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count

import pytest
from redis.asyncio import Redis

from flashsale.domain.answers import Held, ProductStatus
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Close, Pause, Purchase, Request, Reserve, Restock
from flashsale.domain.sale import Terms
from flashsale.live import ProductView
from flashsale.store import overview
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from flashsale.store.overview import Overview


class Scene:
    """A store of its own, who sells there, and who looks on."""

    def __init__(self, url: str) -> None:
        self.now_s = 1_000.0
        self.overview = Overview(url, lambda: self.now_s)
        self.admin = Admin(url)
        self.redis = Redis.from_url(url)
        self._engine = RedisEngine(url)
        self._sequences = count(1)

    async def ask(self, request: Request) -> object:
        [outcome] = await self._engine.commit(
            [Batch(request.product_id, [request], next(self._sequences))], timeout_s=30
        )
        assert isinstance(outcome, list)
        return outcome[0]

    async def look(self) -> dict[str, ProductView] | None:
        """Look again, by name and in order."""
        self.now_s += 1
        found = await self.overview.look()
        return None if found is None else {view.product_id: view for view in found}

    async def put(self, names: Sequence[str]) -> None:
        """Put products there, of one unit each."""
        async with self.redis.pipeline() as pipeline:
            pipeline.sadd("products", *names)
            for name in names:
                pipeline.set(f"product:{name}:stock", 1)
                pipeline.hset(f"product:{name}:sale", mapping={"version": 1, "initial": 1})
            await pipeline.execute()

    async def close(self) -> None:
        await self.overview.close()
        await self.admin.close()
        await self.redis.aclose()
        await self._engine.close()


@pytest.fixture
async def scene(embedded: EmbeddedStore) -> AsyncIterator[Scene]:
    """A scene on a store without products."""
    scene = Scene(embedded.url)
    await scene.redis.flushall()
    yield scene
    await scene.close()


async def test_a_product_is_shown_as_the_store_decides_it(scene: Scene) -> None:
    now = int(time.clock_gettime(time.CLOCK_REALTIME))
    await scene.admin.init("open", 10)
    await scene.admin.init("later", 10, Terms(opens_at=now + 1_000))
    await scene.admin.init("over", 10, Terms(closes_at=now - 1_000))
    await scene.admin.init("paused", 10)
    await scene.admin.init("closed", 10)
    await scene.ask(Purchase("open", "ann", 3))
    assert isinstance(await scene.ask(Reserve("open", "bob", 2)), Held)
    await scene.ask(Restock("open", 5))
    await scene.ask(Pause("paused"))
    await scene.ask(Close("closed"))
    found = await scene.look()
    assert found is not None
    assert found["open"] == ProductView(product_id="open", units=15, remaining=10, sold=3, held=2, state="open", lag=4)
    assert set(found) == {"open", "later", "over", "paused", "closed"}
    for name, view in found.items():
        status = await scene.admin.status(name)
        assert isinstance(status, ProductStatus)
        assert (view.remaining, view.sold, view.held, view.state) == (
            status.remaining_stock,
            status.sold,
            status.held,
            status.state,
        )
        assert view.units == view.remaining + view.sold + view.held
    await scene.redis.hset("product:open:sale", "moved", 3)
    assert (await scene.look() or {})["open"].lag == 1


async def test_a_stock_that_was_set_by_hand_appears_with_its_first_sale(scene: Scene) -> None:
    await scene.redis.set("product:plain:stock", 5)
    assert await scene.look() == {}
    await scene.ask(Purchase("plain", "ann"))
    found = await scene.look()
    assert found is not None
    assert (found["plain"].units, found["plain"].remaining, found["plain"].sold) == (5, 4, 1)


async def test_one_that_is_frozen_is_shown_and_one_that_is_damaged_hides_no_other(scene: Scene) -> None:
    for name in ("broken", "frozen", "gone", "nonsense", "whole"):
        await scene.admin.init(name, 1)
    await scene.redis.delete("product:broken:sale", "product:frozen:stock", "product:gone:stock")
    await scene.redis.set("product:broken:sale", "no hash")
    await scene.redis.hset("product:frozen:sale", "state", "frozen")
    await scene.redis.hset("product:nonsense:sale", "sold", "many")
    found = await scene.look()
    assert found is not None
    assert {name: view.state for name, view in found.items()} == {"frozen": "frozen", "whole": "open"}
    assert found["frozen"].remaining == 0


async def test_those_that_changed_last_come_first_and_open_ones_before_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SHOWN_COUNT_MAX", 3)
    for name in "abcde":
        await scene.admin.init(name, 10)
    await scene.ask(Close("a"))
    assert list(await scene.look() or {}) == ["b", "c", "d"]
    await scene.ask(Purchase("e", "ann"))
    assert list(await scene.look() or {}) == ["e", "b", "c"]
    await scene.ask(Purchase("d", "ann"))
    assert list(await scene.look() or {}) == ["d", "e", "b"]


async def test_beyond_a_number_each_look_is_at_those_that_were_shown_and_a_part_of_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "LOOKED_AT_COUNT_MAX", 16)
    monkeypatch.setattr(overview, "SHOWN_COUNT_MAX", 2)
    monkeypatch.setattr(overview, "_KNOWN_COUNT_MAX", 1_000)
    names = [f"p{number}" for number in range(140)]  # a set of so many is not told in one piece
    await scene.put(names)
    for _ in range(20):
        await scene.look()
    await scene.redis.hset("product:p77:sale", "version", 2)
    for _ in range(20):
        found = list(await scene.look() or {})
        if found[0] == "p77":
            break
    assert found[0] == "p77"
    assert len(found) == 2
    assert next(iter(await scene.look() or {})) == "p77"
    monkeypatch.setattr(overview, "_KNOWN_COUNT_MAX", 10)
    for _ in range(5):
        await scene.look()
    assert len(scene.overview._seen) <= 10 + 18


@pytest.mark.parametrize("prefix", ["", *"abcdefgh"])  # a set of numbers is told in one piece, others in uneven ones
async def test_none_is_left_out_where_the_store_tells_of_more_than_it_was_asked_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setattr(overview, "LOOKED_AT_COUNT_MAX", 16)
    monkeypatch.setattr(overview, "SHOWN_COUNT_MAX", 200)
    names = [f"{prefix}{number}" for number in range(140)]
    await scene.put(names)
    found: set[str] = set()
    for _ in range(20):
        found |= set(await scene.look() or {})
    assert found == set(names)


async def test_a_look_is_shared_for_a_second(scene: Scene) -> None:
    await scene.admin.init("p", 1)
    first = await scene.overview.look()
    await scene.admin.init("q", 1)
    scene.now_s += 0.5
    assert await scene.overview.look() is first
    assert set(await scene.look() or {}) == {"p", "q"}


async def test_a_store_that_is_away_has_no_products(start_store: Callable[..., int]) -> None:
    scene = Scene(f"redis://127.0.0.1:{start_store()}")
    assert await scene.look() == {}
    await scene.redis.shutdown(nosave=True)
    assert await scene.look() is None
    await scene.close()


async def test_a_store_that_is_silent_has_none_either_and_the_log_says_so_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.admin.init("p", 1)
    assert set(await scene.look() or {}) == {"p"}
    await scene.redis.execute_command("CLIENT", "PAUSE", 800, "ALL")
    assert await scene.look() is None
    await scene.redis.ping()  # waits until the store does
    assert set(await scene.look() or {}) == {"p"}
    assert [record.getMessage() for record in caplog.records] == [
        "products cannot be looked at: the store does not answer in time",
        "products can be looked at again",
    ]
