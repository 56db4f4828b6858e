"""How a response of a stream goes out: it has to be taken in time.

A write that is late is not cut short. gRPC notes only behind the first one that the head of the response went out with
it, so that a stream that gave that one up would send its head again instead of its status, and never end.
"""

import asyncio
from collections.abc import Callable
from typing import Any


async def send(context: Any, response: bytes, timeout_s: float, part: Callable[[], None] | None = None) -> bool:
    """Send a response; return, once it is taken, whether that was in time.

    Args:
        context: the call's grpc.aio.ServicerContext.
        response: the bytes of a message.
        timeout_s: for the client to take it.
        part: called as soon as it is late, however long the client then needs.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    late = loop.call_later(timeout_s, part) if part is not None else None
    try:
        await context.write(response)
    finally:
        if late is not None:
            late.cancel()
    return loop.time() - began < timeout_s
