"""A sale is confirmed after its fsync and not before. Kill -9 cannot show that: it leaves the page cache alone."""

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import redis

from flashsale import Client, SoldOut, Success
from flashsale.launch import ServerProcess

T = TypeVar("T")
DELAY_S = 0.5


@pytest.fixture
def slow_disk() -> Iterator[Callable[[int], None]]:
    """Make each fdatasync of a process take DELAY_S longer, until the end of the test."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace to delay fdatasync")
    tracers: list[subprocess.Popen[str]] = []

    def slow_down(pid: int) -> None:
        delay = f"inject=fdatasync:delay_enter={DELAY_S * 1e6:.0f}"
        command = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-e", delay, "-o", "/dev/null", "-p", str(pid)]
        tracers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        line = tracers[-1].stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace may not delay fdatasync here: {line.strip()}")

    yield slow_down
    for tracer in tracers:
        tracer.terminate()
        tracer.communicate()


async def timed(answer: Awaitable[T]) -> tuple[T, float]:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    return await answer, loop.time() - begun


@pytest.mark.parametrize(
    ("durability", "appendfsync", "waits"),
    [("local", "always", True), ("relaxed", "everysec", False)],  # the second shows what the first would not miss
)
async def test_a_sale_is_confirmed_after_its_fsync_and_nothing_else_waits_for_one(
    start_server: Callable[..., ServerProcess],
    store: "redis.Redis",
    store_pid: Callable[[], int],
    slow_disk: Callable[[int], None],
    durability: str,
    appendfsync: str,
    *,
    waits: bool,
) -> None:
    server = start_server("--durability", durability)
    store.config_set("appendfsync", appendfsync)
    store.mset({"product:p:stock": 100, "product:none-left:stock": 0})
    async with Client(server.host, server.port) as buyer, Client(server.host, server.port) as other:
        await asyncio.gather(buyer.ping(), other.ping())
        slow_disk(store_pid())
        answer, sold_out_s = await timed(other.purchase("none-left", "u"))
        assert answer == SoldOut()
        buying = asyncio.create_task(timed(buyer.purchase("p", "u")))
        _, ping_s = await timed(other.ping())
        answer, sold_s = await buying
    assert isinstance(answer, Success)
    assert max(sold_out_s, ping_s) < DELAY_S
    assert (sold_s >= DELAY_S) == waits, f"confirmed after {sold_s:.3f} s"
