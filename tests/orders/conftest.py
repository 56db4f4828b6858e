"""Databases for the tests of the orders: every test that asks for one runs on SQLite, PostgreSQL and MariaDB."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from flashsale.orders.database import Database, database_url
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from tests.orders import plain
from tests.orders.shop import Shop

DIALECTS = ("sqlite", "postgresql", "mariadb")


@pytest.fixture(params=DIALECTS, scope="module")
def dialect(request: pytest.FixtureRequest) -> str:
    """Which database."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def make_url(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    """Make an empty database; returns its URL."""
    if dialect == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('orders') / 'orders.db'}"
    server = request.getfixturevalue({"postgresql": "postgres", "mariadb": "mariadb"}[dialect])
    made: Callable[[], str] = server.make_database
    return made


@pytest.fixture
def url(make_url: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return make_url()


@pytest.fixture(scope="module")
def shared_url(make_url: Callable[[], str]) -> str:
    """The URL of a database for all tests of a module."""
    return make_url()


@pytest.fixture
async def database(shared_url: str) -> AsyncIterator[Database]:
    """That database, with its tables, which are empty."""
    opened = Database(database_url(shared_url, Path()))
    await opened.upgrade()
    await plain.clear(opened)
    yield opened
    await opened.close()


@pytest.fixture
async def shop(embedded: EmbeddedStore, database: Database, shared_url: str) -> AsyncIterator[Shop]:
    made = Shop(embedded, database, shared_url)
    await made.redis.flushall()
    yield made
    await made.close()


@pytest.fixture
async def admin(shop: Shop) -> AsyncIterator[Admin]:
    async with Admin(shop.embedded.url) as opened:
        yield opened


FORBIDDEN = {
    "sqlite": (
        """CREATE TRIGGER no_poison_{0} BEFORE INSERT ON {0} WHEN NEW.user_id = 'poison'
        BEGIN SELECT RAISE(ABORT, 'no poison here'); END""",
        "DROP TRIGGER no_poison_{0}",
    ),
    "postgresql": (
        "ALTER TABLE {0} ADD CONSTRAINT no_poison_{0} CHECK (user_id <> 'poison')",
        "ALTER TABLE {0} DROP CONSTRAINT no_poison_{0}",
    ),
    "mariadb": (
        "ALTER TABLE {0} ADD CONSTRAINT no_poison_{0} CHECK (user_id <> 'poison')",
        "ALTER TABLE {0} DROP CONSTRAINT no_poison_{0}",
    ),
}


@pytest.fixture
async def allow_poison(database: Database, dialect: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Have the database refuse rows of the user `poison`, until this is called."""
    forbid, allow = FORBIDDEN[dialect]
    forbidden = True

    async def stop() -> None:
        nonlocal forbidden
        forbidden = False
        await run(allow)

    async def run(statement: str) -> None:
        async with database.writing() as connection:
            for table in ("orders", "holds"):
                await connection.execute(sa.text(statement.format(table)))

    await run(forbid)
    yield stop
    if forbidden:
        await run(allow)
