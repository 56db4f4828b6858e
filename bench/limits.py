"""The figures beside throughput: ten thousand at once, idle memory; latency.py and sizes.py have the others.

Every part has a server and an embedded store of its own, on loopback, and returns what it found as Targets.
"""

import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

from msgspec import Struct

from bench import latency, proc, sizes
from bench.load import Load
from bench.report import Target
from bench.result import Result
from bench.rig import Rig, on_rig
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess, raise_descriptor_limit
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


def measure(scale: Scale, progress: Callable[[str], None]) -> list[Target]:
    """Measure part after part; return each figure beside what it has to be.

    Args:
        scale: how much each part does.
        progress: called with what comes next.
    """
    parts: dict[str, Callable[..., Awaitable[list[Target]]]] = {
        f"open loop, {scale.open_loop.rate_per_s:,.0f} requests a second, in turns": _latency,
        f"{scale.crowd_count:,} connections at once": _crowd,
        f"{scale.idle_count:,} idle connections": _idle,
        "small and large sales in turns": _sizes,
    }
    targets = []
    for name, part in parts.items():
        progress(name)
        targets += on_rig(partial(part, scale=scale))
    return targets


async def _latency(rig: Rig, scale: Scale) -> list[Target]:
    async def run(load: Load, stock: int) -> Result:
        return await rig.run(load, stock=stock)

    return await latency.measure_latency(rig.server, rig.home, run, scale.open_loop)


async def _crowd(rig: Rig, scale: Scale) -> list[Target]:
    """Let everybody connect in the same moment, and then buy in the same moment."""
    load = Load(
        host=rig.server.host,
        port=rig.server.port,
        product_id=_PRODUCT_ID,
        connection_count=scale.crowd_count,
        request_count=scale.crowd_request_count,
    )
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _DESCRIPTORS_KEPT
    process_count = 1 if room < 0 else -(-scale.crowd_count // room)  # -1 means no limit
    result = await rig.run(load, stock=scale.crowd_stock, process_count=process_count)
    wanted = scale.crowd_count * scale.crowd_request_count
    answered = result.success_count + result.sold_out_count
    errors = f" {result.errors}" if result.errors else ""
    return [
        Target(
            f"{scale.crowd_count:,} connections at once x {scale.crowd_request_count}",
            f"{answered:,} answered in {result.duration_s:.2f} s, once all are connected{errors}",
            f"all {wanted:,}",
            answered == wanted and result.success_count == min(scale.crowd_stock, wanted),
        )
    ]


async def _idle(rig: Rig, scale: Scale) -> list[Target]:
    """Measure by how much the server grows for each connection that has sent one PING and waits.

    A hundred connections come first, so that what the server needs once and for all is not counted.
    """
    raise_descriptor_limit()
    with ExitStack() as stack:
        for _ in range(_WARM_UP_CONNECTION_COUNT):
            _ping(rig.server, stack)
        before_kib = proc.rss_kib(rig.server.pid)
        for _ in range(scale.idle_count):
            _ping(rig.server, stack)
        growth_kib = proc.rss_kib(rig.server.pid) - before_kib
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


async def _sizes(rig: Rig, scale: Scale) -> list[Target]:
    return await sizes.measure_sizes(rig.server, rig.admin, rig.store_url, scale.pairs)
