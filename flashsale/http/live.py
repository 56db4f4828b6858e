"""`GET /live`: the server at a glance, once a second for as long as somebody listens; with `?once` a single time."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import msgspec

from flashsale.http.asks import RefusedError, parameters
from flashsale.http.events import Event, Events, Streams
from flashsale.http.replies import Receive, Scope, Send, json_reply
from flashsale.live import Snapshot
from flashsale.sampling import Sampler

ONCE = "once"

_encode = msgspec.json.Encoder().encode


class Live:
    """The endpoint, as an ASGI application."""

    def __init__(self, sampler: Sampler, streams: Streams) -> None:
        self._sampler = sampler
        self._streams = streams
        self._event = Event(b"")
        self._encoded: Snapshot | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one client."""
        await self._streams.stream(scope, receive, send, self._open)

    @asynccontextmanager
    async def _open(self, scope: Scope) -> AsyncIterator[Events]:
        if ONCE in parameters(scope):
            raise RefusedError(json_reply(200, await self._sampler.look()))
        async with aclosing(self._events()) as events:
            yield events

    async def _events(self) -> AsyncGenerator[Event, None]:
        """Yield how things are, and then each second, for one who keeps up; others miss some."""
        yield self._encode(await self._sampler.look())
        while True:
            yield self._encode(await self._sampler.next())

    def _encode(self, snapshot: Snapshot) -> Event:
        """Return it as the event that all who listen are sent."""
        if snapshot is not self._encoded:
            self._encoded, self._event = snapshot, Event(_encode(snapshot))
        return self._event
