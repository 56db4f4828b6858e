"""What the HTTP door is given to work with. It never talks to the store itself."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from flashsale.domain.answers import Answer
from flashsale.domain.requests import Request
from flashsale.feed import Feed


class Services(Struct, frozen=True, kw_only=True):
    """The parts of a server that routes use."""

    ask: Callable[[Request], Awaitable[Answer]]
    """Has a request decided."""
    feed: Feed
    """Serves those who follow a sale."""
    draining: asyncio.Event
    """Set once the server is to end."""
