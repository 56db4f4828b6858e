"""How a request comes in: the one message of a call, in time.

To the library every call is a stream of requests, so that it does not wait for the message by itself, for ever.
"""

import asyncio
from typing import Any

import grpc

from flashsale.grpc.outcomes import LATE, UNREADABLE, Refusal


async def receive(context: Any, timeout_s: float) -> bytes | Refusal:
    """Return the bytes of a call's message, or what the call is told when they do not come.

    Args:
        context: the call's grpc.aio.ServicerContext.
        timeout_s: from the beginning of the call to the end of the message.
    """
    raw = await receive_next(context, timeout_s)
    return UNREADABLE if raw is None else raw


async def receive_next(context: Any, timeout_s: float) -> bytes | Refusal | None:
    """Return the bytes of a stream's next message, likewise; None when there are no more."""
    try:
        async with asyncio.timeout(timeout_s):
            raw: bytes = await context.read()
    except TimeoutError:
        return LATE
    return None if raw is grpc.aio.EOF else raw
