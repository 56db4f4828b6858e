"""What the HTTP door is given to work with. It never talks to the store itself."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from flashsale.domain.answers import Answer
from flashsale.domain.requests import Request
from flashsale.domain.schedules import CurrentSale
from flashsale.feed import Feed
from flashsale.gating import Record
from flashsale.limiting import Gate
from flashsale.peers import Proxies
from flashsale.sampling import Sampler


class Services(Struct, frozen=True, kw_only=True):
    """The parts of a server that routes use."""

    ask: Callable[[Request], Awaitable[Answer]]
    """Has a request decided."""
    feed: Feed
    """Serves those who follow a sale."""
    current_sale: Callable[[str | None], CurrentSale | None]
    """Returns the sale of the schedule of that name that goes on, or of the first one; None when there is none."""
    reopen: Callable[[str | None], Awaitable[tuple[str, int]]]
    """Opens a product anew, or the only one; returns which, and its units. Raises FlashsaleError."""
    sampler: Sampler
    """Looks at all workers, for those who look on."""
    draining: asyncio.Event
    """Set once the server is to end."""
    operator_token: str | None = None
    """What an operator shows who is not on this machine; None for nobody."""
    lottery: bool = True
    """Whether one purchase in a hundred is told the surprise."""
    gate: Gate | None = None
    """Refuses who comes too often; ask it by way of flashsale.http.rates."""
    proxies: Proxies = Proxies()
    """Who is believed when he says for whom he asks."""
    record: Record = lambda requests, answers: None
    """Is told of those it refused."""
    respond: Callable[[int], None] = lambda status: None
    """Counts a response by its status."""
