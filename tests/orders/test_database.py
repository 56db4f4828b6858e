"""The tables are made once, however many make them; whatever a database says is one sentence, without its password."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from flashsale.domain.sale import Change, Kind, Portion
from flashsale.errors import DatabaseError, InvalidValueError
from flashsale.orders import database as database_module
from flashsale.orders.database import Database, database_url
from flashsale.orders.moving import move
from flashsale.orders.tables import dead_letters, metadata, orders, products
from tests.orders import plain

OPENED = Change(kind=Kind.OPENED, version=1, at_ms=1_900_000_000_000, remaining=5, quantity=5)
SOLD = Change(kind=Kind.SOLD, version=2, at_ms=1_900_000_000_000, remaining=4, user_id="u", quantity=1, request_id="r")


def opened(url: str) -> Database:
    return Database(database_url(url, Path()))


# Migrations


MIGRATIONS = [
    path.name[1:5] for path in sorted((Path(database_module.__file__).parent / "migrations" / "versions").glob("v*.py"))
]


def differences(connection: sa.Connection) -> list[object]:
    """Return in what the tables differ from what the metadata says."""
    options = {"version_table": "flashsale_migrations", "compare_type": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def test_the_migrations_make_what_the_metadata_says(database: Database) -> None:
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_tables_are_made_once(url: str) -> None:
    database = opened(url)
    missing = await database.missing_migrations()
    assert missing[0] == "0001 Products, orders, holds, dead letters."
    assert [name.partition(" ")[0] for name in missing] == MIGRATIONS
    assert await database.upgrade() == missing
    assert await database.upgrade() == []
    assert await database.missing_migrations() == []
    await database.close()


async def test_several_who_make_the_tables_at_once_make_them_once(url: str) -> None:
    databases = [opened(url) for _ in range(5)]
    applied = await asyncio.gather(*(database.upgrade() for database in databases))
    assert sorted(map(len, applied)) == [0, 0, 0, 0, len(MIGRATIONS)]
    for database in databases:
        assert await database.missing_migrations() == []
        await database.close()


async def upgrade_until(database: Database, steps_max: int) -> bool:
    """Make tables, and die before a step too many; returns whether they were made."""
    steps = 0

    def step(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal steps
        if statement.lstrip().upper().startswith(("CREATE", "ALTER", "INSERT", "UPDATE")):
            steps += 1
            if steps > steps_max:
                raise ConnectionError("died")

    sa.event.listen(database._engine.sync_engine, "before_cursor_execute", step)
    try:
        await database.upgrade()
    except DatabaseError:
        assert steps > steps_max
    await database.close()
    return steps <= steps_max


async def test_whoever_dies_while_the_tables_are_made_is_followed_by_one_who_makes_the_rest(
    make_url: Callable[[], str], dialect: str
) -> None:
    steps_max = 0
    while not await upgrade_until(opened(url := make_url()), steps_max):
        follower = opened(url)
        await follower.upgrade()
        async with follower.reading() as connection:
            assert await connection.run_sync(differences) == []
        await follower.close()
        steps_max += 1 if dialect == "mariadb" else 8  # others take all back
    assert steps_max > len(metadata.tables)


@pytest.mark.parametrize("table", ["products", "orders", "attempts"])
async def test_tables_of_somebody_else_are_not_touched(make_url: Callable[[], str], table: str) -> None:
    database = opened(make_url())
    async with database.writing() as connection:
        await connection.execute(sa.text(f"CREATE TABLE {table} (id INTEGER, title VARCHAR(9))"))
    with pytest.raises(DatabaseError, match=r"^[^\n]*(there is a table|already exists)[^\n]*$"):
        await database.upgrade()
    async with database.reading() as connection:
        columns = await connection.run_sync(lambda known: sa.inspect(known).get_columns(table))
        assert [column["name"] for column in columns] == ["id", "title"]
    await database.close()


async def test_whoever_makes_the_tables_too_long_is_not_joined(
    url: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dialect != "mariadb":
        pytest.skip("waits in its own way")
    monkeypatch.setattr(database_module, "_WAIT_S", 0.1)
    database = opened(url)
    async with database.reading() as connection:
        await connection.execute(sa.text("SELECT GET_LOCK('flashsale_migrations', 0)"))
        with pytest.raises(DatabaseError, match=r"^others have been making the tables for 0\.1 s$"):
            await database.upgrade()
        await connection.execute(sa.text("SELECT RELEASE_LOCK('flashsale_migrations')"))
    assert await database.upgrade()
    await database.close()


async def test_tables_of_a_later_version_are_refused_in_one_sentence(url: str) -> None:
    database = opened(url)
    await database.upgrade()
    async with database.writing() as connection:
        await connection.execute(sa.text("UPDATE flashsale_migrations SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match=r"^the tables were made by a later version of flashsale \(9999\)$"):
        await database.upgrade()
    await database.close()


RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
GRANTS = {
    "postgresql": (
        "CREATE ROLE {name} LOGIN PASSWORD 'pass-word'; REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
        f"GRANT {RIGHTS} ON ALL TABLES IN SCHEMA public TO {{name}};"
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}"
    ),
    "mariadb": "CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'pass-word'; "
    f"GRANT {RIGHTS} ON {{base}}.* TO {{name}}@'127.0.0.1'",
}


async def test_an_account_that_may_not_make_tables_can_work_with_them(
    url: str, dialect: str, request: pytest.FixtureRequest
) -> None:
    if dialect == "sqlite":
        pytest.skip("a file has no accounts")
    server = request.getfixturevalue({"postgresql": "postgres", "mariadb": "mariadb"}[dialect])
    base = url.rpartition("/")[2]
    owner = opened(url)
    await owner.upgrade()
    await owner.close()
    name = f"limited_{base}"
    server.do(GRANTS[dialect].format(name=name, base=base), base)
    limited = opened(f"{dialect}://{name}:pass-word@127.0.0.1:{server.port}/{base}")
    assert await limited.upgrade() == []
    async with limited.writing() as connection:
        assert await move(connection, [Portion("p", "0000000a", [OPENED, SOLD])]) == 2
    assert len((await plain.read(limited))["orders"]) == 1
    with pytest.raises(DatabaseError):
        async with limited.writing() as connection:
            await connection.execute(sa.text("CREATE TABLE mine (number INTEGER)"))
    await limited.close()


# Addresses


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("sqlite:///relative.db", "sqlite:///relative.db"),
        ("sqlite:////tmp/absolute.db", "sqlite:////tmp/absolute.db"),
        ("postgres://u:p@h:1/n", "postgresql://u:***@h:1/n"),
        ("postgresql://u:p@h/n", "postgresql://u:***@h/n"),
        ("postgres://u:p@h/n?sslmode=disable", "postgresql://u:***@h/n?ssl=disable"),
        ("postgresql+asyncpg://h/n", "postgresql://h/n"),
        ("mysql://u:p@h/n", "mysql://u:***@h/n"),
        ("mariadb://u:p%40@h:3/n", "mariadb://u:***@h:3/n"),
    ],
)
async def test_an_address_is_shown_without_its_password(value: str, told: str) -> None:
    database = opened(value)
    assert str(database) == told
    await database.close()


@pytest.mark.parametrize("value", ["", "nothing", "postgres://h:port/n", "oracle://h/n", "sqlite3:///x", "//h/n"])
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(InvalidValueError, match=r"the database URL is none|no database that is known here"):
        database_url(value, Path())


def test_a_file_in_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"^there is no directory \S+none for the database$"):
        opened(f"sqlite:///{tmp_path}/none/orders.db")


def test_without_an_address_it_is_a_file_in_the_home_directory(tmp_path: Path) -> None:
    url = database_url(None, tmp_path / "new")
    assert url.database == str(tmp_path / "new" / "orders.db")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


async def test_a_relative_file_is_one_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = opened("sqlite:///here.db")
    await database.upgrade()
    await database.close()
    assert (tmp_path / "here.db").exists()


async def test_a_database_that_does_not_answer_is_left_without_a_word(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    server = request.getfixturevalue("postgres")
    url = server.make_database()
    database = opened(url)
    await database.upgrade()
    name = url.rpartition("/")[2]
    pids = server.do(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'").split()
    assert pids
    for pid in pids:
        os.kill(int(pid), signal.SIGSTOP)
    try:
        began = time.monotonic()
        await database.close()
        assert time.monotonic() - began < 5, "asyncpg alone waits for ever"
    finally:
        for pid in pids:
            os.kill(int(pid), signal.SIGCONT)
    assert caplog.records == []


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_the_url_forms_of_postgresql_work(request: pytest.FixtureRequest, scheme: str) -> None:
    url = request.getfixturevalue("postgres").make_database()
    database = opened(f"{scheme}{url.removeprefix('postgresql')}?sslmode=disable")
    assert len(await database.upgrade()) == len(MIGRATIONS)
    await database.close()
    with pytest.raises(DatabaseError, match=r"has a setting that its driver does not know: .*colour"):
        await opened(f"{url}?colour=red").upgrade()
    refusing = opened(f"{url}?sslmode=require")
    with pytest.raises(DatabaseError, match=r"^cannot reach the database at [^\n]*$"):
        await refusing.upgrade()
    await refusing.close()


@pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
async def test_the_url_forms_of_mariadb_work_and_make_the_same_tables(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    server = request.getfixturevalue("mariadb")
    url = server.make_database()
    database = opened(f"{scheme}{url.removeprefix('mariadb')}")
    await database.upgrade()
    made = server.do("SHOW CREATE TABLE orders", url.rpartition("/")[2])
    assert made.count("utf8mb4_nopad_bin") == 6
    assert made.count("datetime(3)") == 2
    async with database.writing() as connection:
        await move(connection, [Portion("p", "0000000a", [OPENED, SOLD])])
    expected = plain.together(plain.fold("p", "0000000a", [OPENED, SOLD]))
    assert await plain.read(database) == expected
    await database.close()


@pytest.mark.parametrize(
    ("module", "value", "extra"),
    [
        ("asyncpg", "postgresql://h/n", "postgres"),
        ("asyncmy", "mysql://h/n", "mysql"),
        ("asyncmy", "mariadb://h/n", "mysql"),
    ],
)
def test_a_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch, module: str, value: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as when it is not installed
    with pytest.raises(InvalidValueError, match=rf"^this database needs a driver: pip install 'flashsale\[{extra}\]'$"):
        opened(value)


# Errors


async def test_a_database_that_is_not_there_is_told_without_its_password() -> None:
    for value in ("postgresql://u:hidden@127.0.0.1:1/n", "mysql://u:hidden@127.0.0.1:1/n"):
        database = opened(value)
        with pytest.raises(DatabaseError) as told:
            await database.upgrade()
        assert str(database) in str(told.value)
        assert "hidden" not in str(told.value)
        assert "\n" not in str(told.value)
        assert not told.value.is_final
        await database.close()


LETTER = {"product_id": "p", "epoch": "e", "version": 1, "entry": "💥", "later": "{}", "error": "ü💥", "created_at": 1}


async def test_what_is_wrong_with_the_rows_is_final(database: Database, dialect: str) -> None:
    async with database.writing() as connection:
        await move(connection, [Portion("p", "0000000a", [OPENED, SOLD])])
        await connection.execute(sa.insert(dead_letters), [LETTER])
    wrong = {
        "twice": sa.insert(dead_letters).values(LETTER),
        "no value": sa.insert(dead_letters).values(LETTER | {"version": 2, "entry": None}),
        "against a rule": sa.update(products).values(sold=products.c.initial + 1),
        "no time": sa.update(products).values(changed_at=10**17),
        "too large": sa.update(products).values(version=10**30),
    }
    if dialect != "sqlite":  # which takes texts of any length
        wrong["too long"] = sa.update(orders).values(user_id="x" * 257)
    for what, statement in wrong.items():
        with pytest.raises(DatabaseError) as refused:
            async with database.writing() as connection:
                await connection.execute(statement)
        assert refused.value.is_final, what


async def test_what_is_wrong_with_the_database_is_not_final(database: Database) -> None:
    for statement in ("SELECT nothing FROM nowhere", "NONSENSE"):
        with pytest.raises(DatabaseError) as refused:
            async with database.reading() as connection:
                await connection.execute(sa.text(statement))
        assert not refused.value.is_final


async def test_a_lock_that_two_wait_for_is_not_final(
    database: Database, shared_url: str, dialect: str, make_url: Callable[[], str]
) -> None:
    if dialect == "sqlite":
        pytest.skip("one who writes has the whole file")
    portions = [Portion(name, "0000000a", [OPENED]) for name in "pq"]
    async with database.writing() as connection:
        await move(connection, portions)
    met = asyncio.Barrier(2)

    async def change(mine: Database, first: str, second: str) -> str:
        try:
            async with mine.writing() as connection:
                for name in (first, second):
                    is_it = products.c.product_id == name
                    await connection.execute(sa.update(products).where(is_it).values(restocked=1))
                    if name == first:
                        await met.wait()
        except DatabaseError as error:
            return "final" if error.is_final else "again"
        return "done"

    other = opened(shared_url)
    ends = await asyncio.gather(change(database, "p", "q"), change(other, "q", "p"))
    await other.close()
    assert sorted(ends) == ["again", "done"]
