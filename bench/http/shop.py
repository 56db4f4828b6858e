"""The visitors of a shop, as tools/k6/loadtest.js has them: they come at a steady rate, whatever the server does.

70 % check out an item at random, each a user of his own; 10 % are few users who want more than they may; 10 % check
out and purchase with the code; 10 % send what is not valid. Each answer must be one of those that are documented for
what was asked, no item may be promised twice, and no user more than the limit.
"""

from collections import Counter
from collections.abc import Callable, Generator
from random import Random
from secrets import token_hex
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from bench.http.buyer import post
from bench.http.line import Answer

NORMAL, HEAVY, PURCHASES, INVALID = "normal", "heavy", "purchases", "invalid"
SHARES = {NORMAL: 0.7, HEAVY: 0.1, PURCHASES: 0.1, INVALID: 0.1}
CHECKED_OUT = frozenset({200, 409})
LIMITED = frozenset({200, 409, 429})
PURCHASED = frozenset({200})
REFUSED = frozenset({400})

_HEAVY_COUNT = 20
"""Users who come again and again."""


class Ask(NamedTuple):
    """A request, what it is called in tables, and the statuses that are documented for it."""

    operation: str
    request: bytes
    expected: frozenset[int]


Visit: TypeAlias = Generator[Ask, Answer, None]
"""What one visitor asks, one after the other; is sent each answer."""


class Terms(Struct, frozen=True, kw_only=True):
    """What is known of the sale."""

    item_count: int
    limit: int | None
    """Units that a user may have; None when nobody knows."""


class Shop:
    """Makes the visits, and keeps what was promised."""

    def __init__(self, host: str, terms: Terms) -> None:
        self._host = host
        self._terms = terms
        self._run = token_hex(4)  # other users and items than those of the run before
        self._random = Random(self._run)
        self._visit_count = 0
        self._items: Counter[int] = Counter()
        self._users: Counter[str] = Counter()
        self.held_count = self.purchased_count = 0
        self._make: dict[str, Callable[[int], Visit]] = {
            NORMAL: self._normal,
            HEAVY: self._heavy,
            PURCHASES: self._purchase,
            INVALID: self._invalid,
        }

    def visit(self) -> Visit:
        """Return what the next visitor does."""
        self._visit_count += 1
        [scenario] = self._random.choices(tuple(SHARES), tuple(SHARES.values()))
        return self._make[scenario](self._visit_count)

    @property
    def faults(self) -> list[str]:
        """Return what was promised that must not be, a sentence each."""
        faults = []
        twice = sum(count > 1 for count in self._items.values())
        if twice:
            faults.append(f"{twice} items were promised more than once")
        limit = self._terms.limit
        if limit is not None and any(count > limit for count in self._users.values()):
            faults.append(f"a user was promised {max(self._users.values())} units, and {limit} are allowed")
        return faults

    def _normal(self, number: int) -> Visit:
        yield from self._check_out(NORMAL, f"user_{self._run}_{number}", CHECKED_OUT)

    def _heavy(self, number: int) -> Visit:
        yield from self._check_out(HEAVY, f"heavy_{self._run}_{number % _HEAVY_COUNT}", LIMITED)

    def _purchase(self, number: int) -> Visit:
        code = yield from self._check_out(PURCHASES, f"buyer_{self._run}_{number}", CHECKED_OUT)
        if code:
            answer = yield Ask(f"{PURCHASES}: purchase", post(f"/purchase?code={code}", self._host), PURCHASED)
            self.purchased_count += answer.status == 200

    def _invalid(self, number: int) -> Visit:
        user_id = f"invalid_{self._run}_{number}"
        targets = (
            "/checkout",
            f"/checkout?user_id={user_id}",
            "/checkout?id=1",
            f"/checkout?user_id={user_id}&id=none",
            f"/checkout?user_id={user_id}&id=0",
            f"/checkout?user_id={user_id}&id=-1",
            f"/checkout?user_id={user_id}&id=999999999",
            f"/checkout?user_id={user_id}&id=1%27%20OR%20%271%27=%271",
            "/purchase",
            "/purchase?code=",
            f"/purchase?code={user_id}",
        )
        target = targets[number % len(targets)]
        operation = target.partition("?")[0].removeprefix("/")
        yield Ask(f"{INVALID}: {operation}", post(target, self._host), REFUSED)

    def _check_out(self, scenario: str, user_id: str, expected: frozenset[int]) -> Generator[Ask, Answer, str]:
        """Ask for an item at random; return the code, which is empty if there is none."""
        item_id = self._random.randint(1, self._terms.item_count)
        target = f"/checkout?user_id={user_id}&id={item_id}"
        answer = yield Ask(f"{scenario}: checkout", post(target, self._host), expected)
        if answer.status != 200:
            return ""
        self.held_count += 1
        self._items[item_id] += 1
        self._users[user_id] += 1
        return answer.told.checkout_code
