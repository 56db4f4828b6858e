"""Server-sent events: an endpoint that streams what a generator gives, until one of the two sides ends it.

A client that takes nothing holds its own generator up, and nobody else: what a generator gives next is asked for once
the client took what came before, so that one that tells of the present skips what the client missed.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeAlias

from msgspec import Struct

from flashsale.http.asks import RefusedError
from flashsale.http.replies import Headers, Receive, Reply, Scope, Send, problem

STREAM_COUNT_MAX = 256
"""Streams of one worker, of whatever kind: each takes its share of the loop with every event."""
HEARTBEAT_S = 15.0
"""A stream without events says so as often: proxies give up what is silent for a minute, some for half of one."""

_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events before it hands them on has them come late
]
_HEARTBEAT = b":\n\n"
_TOO_MANY = problem(503, "busy", "there is no room for another stream", retry_after_s=5)


class Event(Struct, frozen=True):
    """One event."""

    data: bytes
    """UTF-8."""
    id: str = ""
    """What a client that comes back names in `Last-Event-ID`; without line ends."""
    name: str = ""
    """What kind it is; a browser calls it `message` when it is empty."""

    def encode(self) -> bytes:
        """Return it as it is sent."""
        lines = [b"data: " + line for line in self.data.splitlines() or [b""]]
        if self.name:
            lines.insert(0, b"event: " + self.name.encode())
        if self.id:
            lines.insert(0, b"id: " + self.id.encode())
        return b"\n".join([*lines, b"", b""])


Events: TypeAlias = AsyncGenerator[Event, None]
Open: TypeAlias = Callable[[Scope], AbstractAsyncContextManager[Events]]
"""Gives the events for one client, for as long as he listens; raises RefusedError to answer with something else."""


class Streams:
    """What all streams of a worker share: how many there may be, and when they end."""

    def __init__(
        self,
        draining: asyncio.Event,
        *,
        count_max: int = STREAM_COUNT_MAX,
        heartbeat_s: float = HEARTBEAT_S,
        respond: Callable[[int], None] = lambda status: None,
    ) -> None:
        """Allow so many.

        Args:
            draining: set when all shall end.
            count_max: beyond it a client is answered 503.
            heartbeat_s: without an event for so long, a comment is sent.
            respond: counts each response by its status.
        """
        self.count = 0
        self._draining = draining
        self._count_max = count_max
        self._heartbeat_s = heartbeat_s
        self._respond = respond

    def endpoint(self, open_events: Open) -> "EventEndpoint":
        """Return the ASGI application that streams these events."""
        return EventEndpoint(self, open_events)

    async def stream(self, scope: Scope, receive: Receive, send: Send, open_events: Open) -> None:
        """Stream events to a client until they end, or he is gone, or the server ends."""
        if self.count >= self._count_max or self._draining.is_set():
            await self._refuse(_TOO_MANY, send)
            return
        self.count += 1
        try:
            await self._open(scope, receive, send, open_events)
        finally:
            self.count -= 1

    async def _open(self, scope: Scope, receive: Receive, send: Send, open_events: Open) -> None:
        async with AsyncExitStack() as stack:
            try:
                events = await stack.enter_async_context(open_events(scope))
            except RefusedError as refused:
                await self._refuse(refused.reply, send)
                return
            await self._stream(scope, receive, send, events)

    async def _refuse(self, reply: Reply, send: Send) -> None:
        self._respond(reply.status)
        await reply.send(send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, events: Events) -> None:
        scope["state"]["watch"]()
        self._respond(200)
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        if scope["method"] != "HEAD":
            sending = asyncio.create_task(self._send(send, events))
            ends = {sending, asyncio.create_task(_gone(receive)), asyncio.create_task(self._draining.wait())}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(*ends)
            if not sending.cancelled():
                sending.result()
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, events: Events) -> None:
        """Send each event as it comes, and a comment when none does."""
        coming: asyncio.Task[Event | None] | None = None
        try:
            while True:
                coming = asyncio.create_task(_next(events))
                while not (await asyncio.wait({coming}, timeout=self._heartbeat_s))[0]:
                    await _send_part(send, _HEARTBEAT)
                event = coming.result()
                if event is None:
                    return
                await _send_part(send, event.encode())
        finally:
            if coming is not None:
                await _cancel(coming)


class EventEndpoint:
    """A stream as an ASGI application."""

    def __init__(self, streams: Streams, open_events: Open) -> None:
        self._streams = streams
        self._open_events = open_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream to one client."""
        await self._streams.stream(scope, receive, send, self._open_events)


async def _next(events: Events) -> Event | None:
    return await anext(events, None)


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Return once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End these, and wait until they have; what one has failed with stays in it."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
