"""A cluster for the tests, and databases; topics and groups that no other test uses."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.consumer.group_coordinator import GroupCoordinator

from flashsale.kafka import brokers
from flashsale.orders.database import Database, database_url
from tests.kafka.cluster import Cluster

perform_assignment = GroupCoordinator._perform_assignment


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """For all tests of this process; whoever takes it down brings it up again."""
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """Of a topic and a group."""
    return f"orders-{secrets.token_hex(4)}"


@pytest.fixture
def make_topic(cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], brokers.Topic]:
    """Name the test's topic; the members of its groups are missed soon."""
    monkeypatch.setattr(brokers, "_SESSION_S", 1.5)
    monkeypatch.setattr(GroupCoordinator, "_perform_assignment", share_out_last)
    return lambda: brokers.Topic(cluster.brokers, name)


async def share_out_last(*arguments: object) -> object:
    """Share out partitions after the others have asked for theirs: this cluster forgets them when it has told them."""
    await asyncio.sleep(0.2)
    return await perform_assignment(*arguments)


@pytest.fixture
def topic(make_topic: Callable[[], brokers.Topic]) -> brokers.Topic:
    return make_topic()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'orders.db'}"
    made: str = request.getfixturevalue("postgres").make_database()
    return made


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """That database, with its tables."""
    opened = Database(database_url(url, Path()))
    await opened.upgrade()
    yield opened
    await opened.close()
