"""Recurring sales: on a real store, with periods of a second or two, which no command allows but the store does."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from flashsale.domain.schedules import Schedule, period_begin
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.schedules import Overview, RedisSchedules

HOUR_S = 3_600


@pytest.fixture
async def redis(embedded: EmbeddedStore) -> AsyncIterator[Redis]:
    """A client of a store of this module's own, which is empty."""
    async with Redis.from_url(embedded.url, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def admin(embedded: EmbeddedStore, redis: Redis) -> AsyncIterator[Admin]:
    async with Admin(embedded.url) as operator:
        yield operator


def hourly(**terms: int | bool) -> Schedule:
    return Schedule(name="hourly", every_s=HOUR_S, item_count=10_000, **({"limit": 10, "numbered": True} | terms))


async def open_due(schedules: RedisSchedules) -> Overview:
    """Have opened what is due; return what there is then."""
    for due in (await schedules.look()).due:
        await schedules.open(due)
    return await schedules.look()


async def test_the_sale_of_the_period_is_opened_on_the_terms_of_its_schedule(admin: Admin) -> None:
    await admin.schedules.add(hourly(hold_s=60))
    look = await open_due(admin.schedules)
    sale = look.current["hourly"]
    assert sale.begins_at == period_begin(HOUR_S, int(look.now_s))
    assert (sale.ends_at - sale.begins_at, sale.item_count, sale.numbered) == (HOUR_S, 10_000, True)
    found = await admin.sale(sale.product_id)
    assert (found.remaining, found.version, found.state) == (10_000, 1, "open")
    terms = found.terms
    assert (terms.opens_at, terms.closes_at) == (sale.begins_at, sale.ends_at)
    assert (terms.limit, terms.hold_s, terms.hold_total_s, terms.numbered) == (10, 60, 3_600, True)
    assert (await admin.audit(sale.product_id)).ok
    assert look.due == []
