"""A crowd over gRPC: one process, grpc.aio's own client, so many calls under way.

    python -m bench.grpc_client '<a Crowd as JSON>'

Calls Purchase until the time is over, each with ids of its own, and prints a Told as JSON. A client of grpc.aio needs
less CPU for a call than a server of grpc.aio: on two cores one is enough to have the server busy.
"""

import asyncio
import gc
import sys
import time
from collections import Counter
from typing import Any

import grpc
import msgspec
import uvloop
from msgspec import Struct

from flashsale.grpc.orders_pb2 import PurchaseRequest, PurchaseResponse

_PURCHASE = "/flashsale.v1.OrderService/Purchase"
_CONNECT_TIMEOUT_S = 30.0


class Crowd(Struct, frozen=True, kw_only=True):
    """What to do."""

    host: str
    port: int
    product_id: str
    connection_count: int
    call_count: int
    """Calls under way on each connection."""
    duration_s: float
    run_id: str
    """Another one for each run: request ids begin with it."""


class Told(Struct, frozen=True, kw_only=True):
    """What came of it."""

    counts: dict[str, int]
    """Calls by status code."""
    duration_s: float
    cpu_s: float
    latencies_ms: list[float]
    """In ascending order."""


async def _run(crowd: Crowd) -> Told:
    options = [("grpc.use_local_subchannel_pool", 1)]  # else all channels would share one connection
    channels = [
        grpc.aio.insecure_channel(f"{crowd.host}:{crowd.port}", options=options) for _ in range(crowd.connection_count)
    ]
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    counts: Counter[str] = Counter()
    latencies_s: list[float] = []
    gc.collect()
    gc.freeze()
    cpu_s = time.process_time()
    begun_s = time.perf_counter()
    ends_at = begun_s + crowd.duration_s

    async def buy(call: Any, buyer: int) -> None:
        number = 0
        sent_at = time.perf_counter()
        while sent_at < ends_at:
            number += 1
            name = f"{crowd.run_id}-{buyer}-{number}"
            request = PurchaseRequest(request_id=name, user_id=name, item_id=crowd.product_id, quantity=1)
            try:
                await call(request)
                counts["OK"] += 1
            except grpc.aio.AioRpcError as error:
                counts[error.code().name] += 1
            answered_at = time.perf_counter()
            latencies_s.append(answered_at - sent_at)
            sent_at = answered_at

    calls = [
        channel.unary_unary(_PURCHASE, PurchaseRequest.SerializeToString, PurchaseResponse.FromString)
        for channel in channels
    ]
    buyers = [call for call in calls for _ in range(crowd.call_count)]
    await asyncio.gather(*(buy(call, buyer) for buyer, call in enumerate(buyers)))
    duration_s = time.perf_counter() - begun_s
    cpu_s = time.process_time() - cpu_s
    for channel in channels:
        await channel.close()
    latencies_ms = [latency_s * 1000 for latency_s in sorted(latencies_s)]
    return Told(counts=dict(counts), duration_s=duration_s, cpu_s=cpu_s, latencies_ms=latencies_ms)


if __name__ == "__main__":
    told = uvloop.run(_run(msgspec.json.decode(sys.argv[1], type=Crowd)))
    sys.stdout.write(msgspec.json.encode(told).decode())
