"""The store and the database that the settings name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from flashsale.config import Config, home_directory
from flashsale.store.address import redis_url, shown_url
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.outbox import RedisOutbox

if TYPE_CHECKING:  # what is behind it takes longer to import than all else together: where it is not needed, it is not
    from flashsale.orders.database import Database
    from flashsale.orders.fence import Fence


class Store(Struct, frozen=True):
    """Where the sales are kept."""

    url: str
    embedded: EmbeddedStore | None

    @property
    def revive(self) -> Callable[[], Awaitable[None]] | None:
        """What starts it again when it has died; None when it is not ours."""
        embedded = self.embedded
        return None if embedded is None else lambda: asyncio.to_thread(embedded.acquire)

    def give_up(self) -> None:
        """Have nobody here wait any longer for one that does not start."""
        if self.embedded is not None:
            self.embedded.give_up()

    def __str__(self) -> str:
        """Return the address as it may be printed."""
        return shown_url(self.url) + (" (embedded)" if self.embedded else "")


@contextmanager
def open_store(config: Config) -> Iterator[Store]:
    """Hold the store of the settings for as long as the context lasts, starting the embedded one if it is that.

    Raises:
        InvalidValueError: the address is none, or the directory.
        StoreUnavailableError: the embedded store does not start.
    """
    if config.redis is not None:
        yield Store(redis_url(config.redis), None)
        return
    embedded = EmbeddedStore(home_directory(config.home))
    embedded.acquire()
    try:
        yield Store(embedded.url, embedded)
    finally:
        embedded.release()


def open_admin(store: Store) -> Admin:
    """Return the operator's hands on the store."""
    return Admin(store.url)


def open_database(config: Config) -> "Database":
    """Return the database of the orders; it connects with the first call.

    Raises:
        InvalidValueError: the address is none, or the directory.
    """
    from flashsale.orders.database import Database, database_url

    return Database(database_url(config.database, home_directory(config.home)))


def has_database(config: Config) -> bool:
    """Return whether there may be orders in a database; False when nothing was ever written there."""
    from flashsale.orders.database import SQLITE_NAME

    return config.database is not None or (home_directory(config.home) / SQLITE_NAME).exists()


@asynccontextmanager
async def open_fence(config: Config, store: Store) -> AsyncIterator["Fence"]:
    """Give what compares the store with the database of the orders.

    Raises:
        InvalidValueError: the address is none, or the directory.
    """
    from flashsale.orders.fence import Fence

    outbox, database = RedisOutbox(store.url), open_database(config)
    fence = Fence(outbox, database)
    try:
        yield fence
    finally:
        await fence.settle()
        await outbox.close()
        await database.close()


@asynccontextmanager
async def open_history(config: Config) -> AsyncIterator["Database | None"]:
    """Return the database of the orders for as long as the context lasts; None when nothing was ever written there.

    Raises:
        InvalidValueError: the address is none, or the directory.
        DatabaseError: it cannot be reached.
    """
    if not has_database(config):
        yield None
        return
    database = open_database(config)
    try:
        yield database if await database.has_table("orders") else None
    finally:
        await database.close()
