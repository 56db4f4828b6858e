"""Everything that breaks, under a crowd, and what must hold afterwards."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from bench.databases import Server
from tests.faults.matrix import FAULTS, STRICT_FAULTS, kill_store_that_is_behind
from tests.faults.run import Fault, Needs, Row, open_run, suffer
from tests.faults.scene import Scene
from tests.faults.verdict import judge

pytestmark = pytest.mark.timeout(180)
BY_NUMBER = {fault.number: fault for fault in FAULTS}
SEEDS = (1, 2, 3)
EACH_SEED = [0, *(pytest.param(seed, marks=pytest.mark.faults) for seed in SEEDS)]
"""The first in the short form, the others in the long one."""
DATABASES = {
    None: ["sqlite", "postgresql", "mariadb"],
    Needs.DATABASE: ["postgresql", "mariadb"],
    Needs.POSTGRESQL: ["postgresql"],
    Needs.FILE: ["sqlite"],
}
"""Which the seeds of the long form take in turn."""
SLACK_S = 5.0
"""For a busy machine, beyond how soon service is promised to be back; the table shows what it took."""
TOGETHER = [
    ("sqlite", ["F9", "F13", "F1", "F3"]),
    ("sqlite", ["F4", "F6", "F8"]),
    ("sqlite", ["F10", "F11", "F12", "F5"]),
    ("sqlite", ["F2 server", "F20 file", "F22"]),
    ("postgresql", ["F19", "F20 stopped", "F20 locked"]),
    ("postgresql", ["F2 mover", "F21"]),
]
"""What has a crowd of its own in the short form; F7 needs a place of its own."""


@pytest.fixture(scope="module")
def open_scene(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    temporary_home: Callable[[], AbstractContextManager[Path]],
) -> Iterator[Callable[[str], Scene]]:
    """Return the scene with such a database: one for all tests of this process."""
    scenes: dict[str, Scene] = {}
    with ExitStack() as stack:

        def get(database: str) -> Scene:
            if database not in scenes:
                fixture = {"postgresql": "postgres", "mariadb": "mariadb"}.get(database)
                sql = request.getfixturevalue(fixture) if fixture else None
                scenes[database] = Scene(stack.enter_context(temporary_home()), environment, sql=sql)
                stack.callback(scenes[database].close)
            return scenes[database]

        yield get


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with 16 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root to mount a small disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "none", str(tmp_path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[list[Row]], None]:
    """Have rows shown in the table at the end."""
    return lambda rows: [record_property("fault", msgspec.json.encode(row).decode()) for row in rows] and None


@pytest.mark.parametrize(("database", "numbers"), TOGETHER, ids=lambda it: " ".join(it) if isinstance(it, list) else it)
async def test_faults_one_after_the_other(
    open_scene: Callable[[str], Scene], database: str, numbers: list[str], record: Callable[[list[Row]], None]
) -> None:
    scene = await asyncio.to_thread(open_scene, database)
    rows, wrong = await suffer(scene, [BY_NUMBER[number] for number in numbers], 1, slack_s=SLACK_S)
    record(rows)
    assert wrong == []


def test_every_fault_is_in_the_short_form_and_the_tests_that_it_names_are_there() -> None:
    assert sorted([*(number for _, numbers in TOGETHER for number in numbers), "F7"]) == sorted(BY_NUMBER)
    for fault in FAULTS:
        if fault.also:
            place, name = fault.also.split("::")
            assert f"def {name}(" in (Path(__file__).parents[1] / place).read_text()


@pytest.mark.parametrize("seed", EACH_SEED)
async def test_a_full_disk(
    small_disk: Path, home: Path, environment: dict[str, str], seed: int, record: Callable[[list[Row]], None]
) -> None:
    scene = await asyncio.to_thread(Scene, home, environment, home=small_disk)
    try:
        rows, wrong = await suffer(scene, [BY_NUMBER["F7"]], seed, slack_s=SLACK_S)
    finally:
        await asyncio.to_thread(scene.close)
    record(rows)
    assert wrong == []


@pytest.mark.parametrize("seed", EACH_SEED)
async def test_faults_where_everything_is_in_the_database_before_it_is_told(
    home: Path, environment: dict[str, str], postgres: Server, seed: int, record: Callable[[list[Row]], None]
) -> None:
    scene = await asyncio.to_thread(Scene, home, environment, sql=postgres, durability="strict")
    try:
        faults = STRICT_FAULTS if seed else [fault for fault in STRICT_FAULTS if fault.number in {"F4", "F19"}]
        rows, wrong = await suffer(scene, faults, seed, long=seed > 0, slack_s=SLACK_S)
    finally:
        await asyncio.to_thread(scene.close)
    record(rows)
    assert wrong == []


# The teeth: what is not as it must be is seen


@pytest.mark.parametrize("seed", EACH_SEED)
async def test_what_local_keeps_on_a_slow_disk_relaxed_loses(
    home: Path, environment: dict[str, str], seed: int, record: Callable[[list[Row]], None]
) -> None:
    scene = await asyncio.to_thread(Scene, home, environment, durability="relaxed", orders=False)
    try:
        scene.store.config_set("appendfsync", "everysec")
        rows, _ = await suffer(scene, [Fault("F5", BY_NUMBER["F5"].what, "losses", kill_store_that_is_behind, 5)], seed)
    finally:
        await asyncio.to_thread(scene.close)
    record(rows)
    assert rows[0].lost > 0


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("DELETE FROM orders WHERE order_id = (SELECT min(order_id) FROM orders WHERE product_id = :p)", 1),
        ("UPDATE orders SET user_id = 'a stranger' WHERE product_id = :p", 0),
        ("UPDATE orders SET order_id = 'another' || order_id WHERE product_id = :p", 5),
        ("UPDATE products SET sold = sold - 1 WHERE product_id = :p", 0),
    ],
)
async def test_rows_that_are_not_what_was_sold_are_seen(
    open_scene: Callable[[str], Scene], change: str, lost: int
) -> None:
    scene = await asyncio.to_thread(open_scene, "sqlite")
    async with open_run(scene, f"teeth-{secrets.token_hex(4)}", 1, long=False) as run:
        await run.sells(10)
    assert (await judge(scene, run.crowd.recorder, run.sales, run.clock_ms)).faults == []
    database = scene.open_database()
    async with database.writing() as connection:
        await connection.execute(sa.text(change), {"p": run.sales[0].product_id})
    await database.close()
    found = await judge(scene, run.crowd.recorder, run.sales, run.clock_ms, patience_s=0.3)
    assert any("or differ" in words for words in found.faults)
    assert len(found.lost) >= lost


# The long form


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [number for number in BY_NUMBER if number != "F7"])
async def test_a_fault_with_several_seeds(
    open_scene: Callable[[str], Scene], number: str, seed: int, record: Callable[[list[Row]], None]
) -> None:
    fault = BY_NUMBER[number]
    databases = DATABASES.get(fault.needs, DATABASES[None])
    scene = await asyncio.to_thread(open_scene, databases[seed % len(databases)])
    rows, wrong = await suffer(scene, [fault], seed, long=True, slack_s=SLACK_S)
    record(rows)
    assert wrong == []
