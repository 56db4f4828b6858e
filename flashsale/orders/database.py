"""The database of the orders: where it is, how it is opened and migrated, and what its errors mean."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from flashsale.errors import DatabaseError, InvalidValueError
from flashsale.orders.tables import MYSQL

SQLITE_NAME = "orders.db"
"""Beside the embedded store."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 60.0
_CLOSE_S = 1.0
_WAIT_S = 10.0
"""For a lock that somebody else has."""
_WAL_TRIES, _WAL_PAUSE_S = 100, 0.01
_MYSQL_CHECK_FAILED = {3819, 4025}
_LOCK_KEY = 0x666C617368
"""Of PostgreSQL, held while tables are made."""
_LOCK_NAME = "flashsale_migrations"
"""Of MySQL."""
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
}
_EXTRAS = {"asyncpg": "postgres", "asyncmy": "mysql"}


def database_url(value: str | None, home: Path) -> URL:
    """Return the address of the database; that of a file in `home`, which is made, when none is given.

    Raises:
        InvalidValueError: it is none that is known here.
    """
    if value is None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return URL.create(_DRIVERS["sqlite"], database=str(home / SQLITE_NAME))
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise InvalidValueError(
            "the database URL is none: give one such as postgresql://user:password@host/name"
        ) from None
    scheme = url.drivername.partition("+")[0]
    if scheme not in _DRIVERS:
        raise InvalidValueError(f"'{scheme}' is no database that is known here: give one of {', '.join(_DRIVERS)}")
    url = url.set(drivername=_DRIVERS[scheme])
    if "sslmode" in url.query and url.get_backend_name() == "postgresql":  # libpq's name; the driver here has its own
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    return url


class Database:
    """Connections to one database. Every call raises DatabaseError when it cannot be reached or refuses."""

    def __init__(self, url: URL) -> None:
        """Name the database; connects with the first call."""
        self.shown = (
            url.render_as_string(hide_password=True)
            .replace("+aiosqlite", "")
            .replace("+asyncpg", "")
            .replace("+asyncmy", "")
        )
        self._engine = _make_engine(url)

    def __str__(self) -> str:
        """Return the address as it may be printed."""
        return self.shown

    @property
    def dialect(self) -> str:
        """sqlite, postgresql or mysql."""
        return self._engine.dialect.name

    async def close(self) -> None:
        """Give up the connections; without a word to a database that does not answer."""
        closing = asyncio.create_task(self._engine.dispose())
        done, _ = await asyncio.wait({closing}, timeout=_CLOSE_S)
        if done:
            closing.result()
            return
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it tells each that is given up
        closing.cancel()
        await asyncio.wait({closing}, timeout=_CLOSE_S)

    @asynccontextmanager
    async def reading(self, *, one_instant: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads, all of it as of one instant if it is asked to."""
        with _errors(self.shown):
            async with self._engine.connect() as connection:
                if one_instant and self.dialect != "sqlite":  # there it is always so
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction, which is committed at the end unless an exception leaves it."""
        with _errors(self.shown):
            async with self._engine.connect() as connection:
                await connection.execution_options(writes=True)
                async with connection.begin():
                    yield connection

    async def has_table(self, name: str) -> bool:
        """Return whether there is a table of that name."""
        async with self.reading() as connection:
            return await connection.run_sync(lambda known: sa.inspect(known).has_table(name))

    async def missing_migrations(self) -> list[str]:
        """Return the names of the migrations that the tables have not seen."""
        with _errors(self.shown):
            async with self._engine.connect() as connection:
                return await connection.run_sync(_missing)

    async def upgrade(self) -> list[str]:
        """Bring the tables up to date; return the names of the migrations that were applied.

        Whoever may not make tables can work with tables that are up to date.
        """
        missing = await self.missing_migrations()
        if missing:
            with _errors(self.shown):
                async with self._engine.connect() as connection:
                    await connection.execution_options(writes=True)
                    missing = await connection.run_sync(_upgrade)
        return missing


def _make_engine(url: URL) -> AsyncEngine:
    options: dict[str, Any] = {"pool_pre_ping": False, "pool_size": 4, "max_overflow": 4}
    match url.get_backend_name():
        case "sqlite":
            directory = Path(url.database or "").absolute().parent
            if not directory.is_dir():
                raise InvalidValueError(f"there is no directory {directory} for the database")
            options = {"connect_args": {"timeout": _WAIT_S, "isolation_level": None}}
        case "postgresql":
            options["connect_args"] = {"timeout": _CONNECT_TIMEOUT_S, "command_timeout": _ANSWER_TIMEOUT_S}
        case _:
            options["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT_S, "read_timeout": _ANSWER_TIMEOUT_S}
            options["isolation_level"] = "READ COMMITTED"  # the usual one locks the gap where a product will be
    try:
        engine = create_async_engine(url, **options)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "", "")
        raise InvalidValueError(f"this database needs a driver: pip install 'flashsale[{extra}]'") from error
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    for left in reversed(range(_WAL_TRIES)):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # of several who change a new file at once, SQLite lets some not even wait
            if not left:
                raise
            time.sleep(_WAL_PAUSE_S)
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Begin for ourselves; whoever will write takes the lock at once, or he could lose it to another later."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _alembic(connection: sa.Connection | None = None) -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _missing(connection: sa.Connection) -> list[str]:
    context = MigrationContext.configure(connection, opts={"version_table": "flashsale_migrations"})
    script = ScriptDirectory.from_config(_alembic())
    heads = context.get_current_heads()
    known = {revision.revision for revision in script.walk_revisions()}
    if not known.issuperset(heads):
        raise DatabaseError(f"the tables were made by a later version of flashsale ({', '.join(heads)})")
    applied = {revision.revision for head in heads for revision in script.iterate_revisions(head, "base")}
    return [
        f"{revision.revision} {revision.doc}"
        for revision in reversed(list(script.walk_revisions()))
        if revision.revision not in applied
    ]


def _upgrade(connection: sa.Connection) -> list[str]:
    with _alone(connection):
        missing = _missing(connection)
        if missing:
            command.upgrade(_alembic(connection), "head")
        connection.commit()  # in MySQL the last migration is noted only now: before another looks
    return missing


@contextmanager
def _alone(connection: sa.Connection) -> Iterator[None]:
    """Wait for others who make tables: several may start at once. In SQLite, whoever writes is alone."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    if connection.dialect.name not in MYSQL:
        yield
        return
    # MySQL ends a transaction with each table, but not this lock
    if not connection.scalar(sa.text("SELECT GET_LOCK(:key, :wait_s)"), {"key": _LOCK_NAME, "wait_s": _WAIT_S}):
        raise DatabaseError(f"others have been making the tables for {_WAIT_S:g} s")
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(:key)"), {"key": _LOCK_NAME})


@contextmanager
def _errors(shown: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        reason = f"the database at {shown} refused: {_first_line(error.orig)}"
        raise DatabaseError(reason, is_final=_is_final(error)) from error
    except (StatementError, OverflowError) as error:  # values that are none to the driver
        reason = f"the database at {shown} cannot take a value: {_first_line(error)}"
        raise DatabaseError(reason, is_final=True) from error
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise DatabaseError(
            f"the URL {shown} has a setting that its driver does not know: {_first_line(error)}"
        ) from error
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise DatabaseError(f"cannot reach the database at {shown}: {_first_line(error)}") from error


def _is_final(error: DBAPIError) -> bool:
    """Whether the rows themselves are what is refused: too long, not text, not unique, against a rule."""
    if isinstance(error, IntegrityError | DataError):
        return True
    state = str(getattr(error.orig, "sqlstate", None) or "")  # of PostgreSQL: 22 data, 23 constraints
    arguments: tuple[object, ...] = getattr(error.orig, "args", ())
    return state[:2] in {"22", "23"} or (bool(arguments) and arguments[0] in _MYSQL_CHECK_FAILED)


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
