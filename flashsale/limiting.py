"""Rate limits: how often a user, a client or an operation may come. Pure: the clock is handed in.

Each has a bucket of tokens, which fills at the rate; a request takes one from each bucket that it meets, or none when
one of them is empty. A bucket is one number, the moment when it will be full again, so that it needs no timer.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

from msgspec import Struct

from flashsale.domain.requests import Cancel, Confirm, Extend, GetStatus, Purchase, Reserve, Subscribe
from flashsale.errors import InvalidValueError

OPERATIONS: dict[type, str] = {
    Purchase: "purchase",
    Reserve: "reserve",
    Confirm: "confirm",
    Cancel: "cancel",
    Extend: "extend",
    GetStatus: "status",
    Subscribe: "subscribe",
}
"""What a request is called in `rate_route`, whichever door it comes through."""

BUCKET_COUNT_MAX = 65_536
"""Users, or clients, that are told apart, in some 10 MB for each of the two; the least recently seen is forgotten.

That is safe. A bucket that is forgotten is a full one: nobody is refused who should not be. Nearly always it was full,
as 65,536 others have come since; where it was not, its owner may come too often by one burst. Whoever can come with as
many names can come as often as he likes anyway: a limit for clients is against him, not one for users.
"""

LIMITS = ("user", "client", "route")
"""What is limited."""

COUNT_MAX = 1_000_000
"""The largest rate, and the largest burst."""

_SPANS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE = re.compile(r"([0-9]{1,7})/([smh])(?: burst ([0-9]{1,7}))?")
_ONE = 0  # the key of the one bucket of an operation


class Rate(Struct, frozen=True):
    """So many in so many seconds, and so many at once."""

    count: int
    span_s: float
    burst: int


def parse_rate(text: str) -> Rate:
    """Return the rate that is said as `10/s`, `100/m` or `20/s burst 40`.

    Without a burst as many may come at once as in the whole span.

    Raises:
        InvalidValueError: it says none, or one that is out of bounds.
    """
    said = _RATE.fullmatch(text.strip())
    if said is None:
        raise InvalidValueError(f"{text!r} is no rate: give one such as 10/s, 100/m or 20/s burst 40")
    count, burst = int(said[1]), int(said[3] or said[1])
    if not (1 <= count <= COUNT_MAX and 1 <= burst <= COUNT_MAX):
        raise InvalidValueError(f"{text!r} is out of bounds: a rate and its burst are from 1 to {COUNT_MAX}")
    return Rate(count, _SPANS_S[said[2]], burst)


def parse_route_rates(text: str) -> dict[str, Rate]:
    """Return the rates by operation that are said as `purchase=100/s,reserve=50/s burst 80`.

    Raises:
        InvalidValueError: a part says none, or an operation is unknown or named twice.
    """
    rates: dict[str, Rate] = {}
    for part in text.split(","):
        name, separator, rate = part.partition("=")
        name = name.strip()
        if not separator or name not in OPERATIONS.values():
            known = ", ".join(OPERATIONS.values())
            raise InvalidValueError(f"{part.strip()!r} limits no operation: give purchase=100/s; there are {known}")
        if name in rates:
            raise InvalidValueError(f"{name} has two rates: give one")
        rates[name] = parse_rate(rate)
    return rates


class Limit:
    """One rate for each of many keys."""

    __slots__ = ("_bucket_count_max", "_burst_s", "_full_at", "_token_s")

    def __init__(self, rate: Rate, *, bucket_count_max: int = BUCKET_COUNT_MAX) -> None:
        self._token_s = rate.span_s / rate.count  # until a token is there
        self._burst_s = (rate.burst - 1) * self._token_s  # a bucket that is full so late has one token left
        self._full_at: OrderedDict[int, float] = OrderedDict()  # those seen longest ago first
        self._bucket_count_max = bucket_count_max

    @property
    def bucket_count(self) -> int:
        """How many keys are known."""
        return len(self._full_at)

    def wait_s(self, key: int, now: float) -> float:
        """Return in how many seconds there is a token, without taking it; 0 or less when there is one."""
        full_at = self._full_at.get(key)
        if full_at is None:
            return 0.0
        self._full_at.move_to_end(key)
        return full_at - self._burst_s - now

    def take(self, key: int, now: float) -> None:
        """Take a token, of which `wait_s` has just said that it is there."""
        full_at = self._full_at.get(key)
        if full_at is None:
            if len(self._full_at) >= self._bucket_count_max:
                self._full_at.popitem(last=False)
            self._full_at[key] = now + self._token_s
        else:
            self._full_at[key] = (full_at if full_at > now else now) + self._token_s


class Gate:
    """The limits of one worker. Every door asks it before it submits a request."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        user: Rate | None = None,
        client: Rate | None = None,
        routes: Mapping[str, Rate] | None = None,
    ) -> None:
        """Limit what has a rate.

        Args:
            clock: in seconds, never going back.
            user: for each user id.
            client: for each client.
            routes: for each operation, of all users and clients together.
        """
        self._clock = clock
        self._user = Limit(user) if user else None
        self._client = Limit(client) if client else None
        self._routes = {name: Limit(rate, bucket_count_max=1) for name, rate in (routes or {}).items()}
        self.refused_counts = dict.fromkeys(LIMITS, 0)
        """Requests that were refused, by the limit that they would have had to wait for longest."""

    def wait_s(self, operation: str, client: str, user_id: str) -> float:
        """Return 0 to let a request through; else nothing was taken, and it is worth another try in so many seconds.

        Args:
            operation: one of OPERATIONS.
            client: where it comes from (flashsale.peers); empty when that is not known, and then not limited.
            user_id: empty when it has none, and then not limited.
        """
        now = self._clock()
        longest_s, by = 0.0, ""
        # a table keeps hashes, which Python salts anew in each process, so that it is bounded however long ids are
        user_key = client_key = 0
        user = self._user if user_id else None
        if user is not None:
            user_key = hash(user_id)
            longest_s, by = user.wait_s(user_key, now), "user"
        address = self._client if client else None
        if address is not None:
            client_key = hash(client)
            waits_s = address.wait_s(client_key, now)
            if waits_s > longest_s:
                longest_s, by = waits_s, "client"
        route = self._routes.get(operation)
        if route is not None:
            waits_s = route.wait_s(_ONE, now)
            if waits_s > longest_s:
                longest_s, by = waits_s, "route"
        if longest_s > 0:
            self.refused_counts[by] += 1
            return longest_s
        if user is not None:
            user.take(user_key, now)
        if address is not None:
            address.take(client_key, now)
        if route is not None:
            route.take(_ONE, now)
        return 0.0
