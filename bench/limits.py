"""The figures beside throughput: ten thousand at once, idle memory; latency.py and sizes.py have the others.

Every part has a server and an embedded store of its own, on loopback, and returns what it found as Targets.
"""

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from bench import latency, proc, sizes
from bench.crowd import run_load
from bench.load import Load
from bench.report import Target
from bench.result import Result
from bench.stage import started_server, temporary_store
from flashsale.app import open_admin
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess, raise_descriptor_limit
from flashsale.store.admin import Admin
from flashsale.wire import MessageType, encode_frame

_PRODUCT_ID = "limits"
_WARM_UP_CONNECTION_COUNT = 100
_ANSWER_TIMEOUT_S = 10.0
_DESCRIPTORS_KEPT = 64
_PING = encode_frame(MessageType.PING, b"idle")


class Scale(Struct, frozen=True, kw_only=True):
    """How much each part does. The defaults are those for which the targets are stated."""

    open_loop: latency.Scale = latency.Scale()
    crowd_count: int = 10_000
    crowd_request_count: int = 10
    crowd_stock: int = 1_000
    idle_count: int = 8_000
    pairs: sizes.Scale = sizes.Scale()


class _Stage(Struct, frozen=True):
    """What a part works with."""

    home: Path
    store_url: str
    server: ServerProcess
    admin: Admin

    async def run(self, load: Load, *, stock: int, process_count: int = 1) -> Result:
        """Open a fresh sale and let a crowd at it; raise FlashsaleError unless the store agrees with the buyers."""
        await self.admin.init(load.product_id, stock, force=True)
        result = await run_load(load.with_timeout(), process_count=process_count)
        sold_count = (await self.admin.status(load.product_id)).sold
        if not result.success_count <= sold_count <= min(stock, result.success_count + result.uncertain_count):
            raise FlashsaleError(f"{result.success_count} of {stock} buyers were told SUCCESS, {sold_count} are listed")
        return result


def measure(scale: Scale, progress: Callable[[str], None]) -> list[Target]:
    """Measure part after part; return each figure beside what it has to be.

    Args:
        scale: how much each part does.
        progress: called with what comes next.
    """
    parts: dict[str, Callable[[_Stage, Scale], Awaitable[list[Target]]]] = {
        f"open loop, {scale.open_loop.rate_per_s:,.0f} requests a second, in turns": _latency,
        f"{scale.crowd_count:,} connections at once": _crowd,
        f"{scale.idle_count:,} idle connections": _idle,
        "small and large sales in turns": _sizes,
    }
    targets = []
    for name, part in parts.items():
        progress(name)
        targets += _on_stage(part, scale)
    return targets


def _on_stage(part: Callable[[_Stage, Scale], Awaitable[list[Target]]], scale: Scale) -> list[Target]:
    with temporary_store() as (home, store), started_server(home) as server:

        async def run() -> list[Target]:
            async with open_admin(store) as admin:
                return await part(_Stage(home, store.url, server, admin), scale)

        return asyncio.run(run())


async def _latency(stage: _Stage, scale: Scale) -> list[Target]:
    async def run(load: Load, stock: int) -> Result:
        return await stage.run(load, stock=stock)

    return await latency.measure_latency(stage.server, stage.home, run, scale.open_loop)


async def _crowd(stage: _Stage, scale: Scale) -> list[Target]:
    """Let everybody connect in the same moment and buy."""
    load = Load(
        host=stage.server.host,
        port=stage.server.port,
        product_id=_PRODUCT_ID,
        connection_count=scale.crowd_count,
        request_count=scale.crowd_request_count,
    )
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _DESCRIPTORS_KEPT
    process_count = 1 if room < 0 else -(-scale.crowd_count // room)  # -1 means no limit
    result = await stage.run(load, stock=scale.crowd_stock, process_count=process_count)
    wanted = scale.crowd_count * scale.crowd_request_count
    answered = result.success_count + result.sold_out_count
    errors = f" {result.errors}" if result.errors else ""
    return [
        Target(
            f"{scale.crowd_count:,} connections at once x {scale.crowd_request_count}",
            f"{answered:,} answered in {result.duration_s:.2f} s{errors}",
            f"all {wanted:,}",
            answered == wanted and result.success_count == min(scale.crowd_stock, wanted),
        )
    ]


async def _idle(stage: _Stage, scale: Scale) -> list[Target]:
    """Measure by how much the server grows for each connection that has sent one PING and waits.

    A hundred connections come first, so that what the server needs once and for all is not counted.
    """
    raise_descriptor_limit()
    with ExitStack() as stack:
        for _ in range(_WARM_UP_CONNECTION_COUNT):
            _ping(stage.server, stack)
        before_kib = proc.rss_kib(stage.server.pid)
        for _ in range(scale.idle_count):
            _ping(stage.server, stack)
        growth_kib = proc.rss_kib(stage.server.pid) - before_kib
    per_connection_kib = growth_kib / scale.idle_count
    return [
        Target(
            f"server memory for each of {scale.idle_count:,} idle connections",
            f"{per_connection_kib:.2f} KiB",
            "<= 4 KiB",
            per_connection_kib <= 4,
        )
    ]


def _ping(server: ServerProcess, stack: ExitStack) -> None:
    """Open a connection that stays, and wait for the answer to one PING."""
    connection = stack.enter_context(socket.create_connection((server.host, server.port), _ANSWER_TIMEOUT_S))
    connection.sendall(_PING)
    answer = b""
    while len(answer) < len(_PING):
        received = connection.recv(len(_PING) - len(answer))
        if not received:
            raise FlashsaleError("the server refused an idle connection")
        answer += received


async def _sizes(stage: _Stage, scale: Scale) -> list[Target]:
    return await sizes.measure_sizes(stage.server, stage.admin, stage.store_url, scale.pairs)
