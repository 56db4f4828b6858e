"""A real Valkey for the tests, one for each pytest process, and ids that no other test uses."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from redis.asyncio import Redis

from flashsale.store.embedded import EmbeddedStore

# The same examples every time: a failure can be repeated, and a busy machine's slowness is not one.
settings.register_profile("flashsale", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("flashsale")


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory whose name is short enough for a unix socket in it, which pytest's own may not be."""
    path = Path(tempfile.mkdtemp(prefix="fs", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def store_url(short_dir: Path) -> Iterator[str]:
    """The URL of a real Valkey, shared by all tests of this process."""
    store = EmbeddedStore(short_dir / "store")
    store.acquire()
    yield store.url
    store.release()


@pytest.fixture
async def redis_client(store_url: str) -> AsyncIterator[Redis]:
    """A client of that Valkey, for looking at keys and for planting them."""
    async with Redis.from_url(store_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def product_id() -> str:
    """A product id that no other test uses."""
    return f"product-{secrets.token_hex(6)}"
