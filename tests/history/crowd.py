"""A crowd that does all that buyers do, at once, over TCP; it writes down what it asked and what it was told."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

from msgspec import Struct, structs

from flashsale.domain.answers import Answer, Failed, Held, Success, Unavailable, Unknown
from flashsale.domain.requests import Cancel, Confirm, Extend, GetStatus, OperatorRequest, Purchase, Request, Reserve
from flashsale.domain.sale import Change
from flashsale.errors import OutcomeUnknownError, RefusedError, StoreUnavailableError
from flashsale.store.admin import Admin
from flashsale.wire import FrameReader, decode_answer, encode_request
from tests.history.record import Call, History, Keys, Sale

PATIENCE_S = 30.0


class Recorder:
    """The calls of a run, as they end."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def note(self, client: str, request: Request, begin: int, answer: Answer | None) -> None:
        """Write down a call that ends now; no answer, or UNKNOWN, is one that never does."""
        known = answer is not None and not isinstance(answer, Unknown)
        call = Call(client, request, begin, time.monotonic_ns(), answer) if known else Call(client, request, begin)
        self.calls.append(call)

    def history(self, sale: Sale, ledger: list[Change], keys: Keys, clock_ms: float, lateness_max_ms: int) -> History:
        """Return what was recorded of one sale."""
        calls = [call for call in self.calls if call.request.product_id == sale.product_id]
        calls.sort(key=lambda call: call.begin)  # stable: those of a burst stay in their order
        return History(sale, calls, ledger, keys, clock_ms, lateness_max_ms)


class Market:
    """What the crowd knows of one sale."""

    def __init__(self, sale: Sale, users: int) -> None:
        self.sale = sale
        self.users = users
        self.asked: deque[Request] = deque(maxlen=200)  # with request ids, to be repeated
        self.held: deque[Held] = deque(maxlen=500)  # to be confirmed, extended or cancelled
        self.forgotten: deque[Held] = deque(maxlen=500)  # to be confirmed when it is too late
        self.ended: deque[str] = deque(maxlen=100)  # codes that were used
        self.unsettled: deque[Request] = deque(maxlen=500)  # with request ids, and nobody knows what became of them
        self.orders: deque[str] = deque(maxlen=500)

    def learn(self, request: Request, answer: Answer | None, chance: random.Random) -> None:
        """Note what an answer is good for."""
        if isinstance(answer, Unknown | Unavailable | None) and getattr(request, "request_id", None) is not None:
            self.unsettled.append(request)
        if isinstance(answer, Held) and isinstance(request, Reserve) and not answer.duplicate:
            (self.forgotten if chance.random() < 0.5 else self.held).append(answer)
        elif isinstance(answer, Success) and not answer.duplicate:
            self.orders.append(answer.order_id)


class Habits(Struct, frozen=True, kw_only=True):
    """How the crowd behaves."""

    clients: int = 200
    users: int = 400
    seconds: float = 10.0
    calls_min: int = 0
    """On a slow machine it goes on until so much was asked, for five times as long at most."""
    calls_max: int = 60_000
    pause_max_s: float = 0.5
    burst_max: int = 6
    cuts: float = 0.01
    """The share of bursts after which the client hangs up without waiting for the answers."""
    stays: int = 0
    """Bursts on one connection, before the next one is made to any of the servers; 0: as many as it bears."""
    insists: bool = False
    """Whether a request with a request id of which nobody knows what became is asked again before anything else."""


class Crowd:
    """Clients with a connection each, until the time is over or enough was asked."""

    def __init__(
        self, ports: Sequence[int], sales: Sequence[Sale], now_ms: Callable[[], float], *, seed: int, habits: Habits
    ) -> None:
        """Know where to buy what.

        Args:
            ports: of the servers; each connection takes any.
            sales: what is on sale.
            now_ms: the store's clock.
            seed: of all choices.
            habits: how it behaves.
        """
        self.recorder = Recorder()
        self._ports = list(ports)
        self._markets = [Market(sale, habits.users) for sale in sales]
        self._now_ms = now_ms
        self._chance = random.Random(seed)
        self._habits = habits
        self._request_ids = (f"r{number}" for number in count(1))
        self._connections = count(1)
        self._asked_count = 0
        self._begun = 0.0
        self._enough = False

    @property
    def orders(self) -> list[str]:
        """Of the first sale, those that were told lately."""
        return list(self._markets[0].orders)

    async def run(self) -> None:
        """Let everyone buy until it is over."""
        self._begun = time.monotonic()
        seeds = [self._chance.random() for _ in range(self._habits.clients)]
        await asyncio.gather(*(self._shop(random.Random(seed)) for seed in seeds))

    def end(self) -> None:
        """Let everyone hear his last answers, and leave."""
        self._enough = True

    async def hears(self, count: int) -> None:
        """Wait until so many more calls have ended, or the crowd is about to leave."""
        count += len(self.recorder.calls)
        while self._goes_on():
            if len(self.recorder.calls) >= count:
                return
            await asyncio.sleep(0.01)

    def _goes_on(self) -> bool:
        habits, elapsed_s = self._habits, time.monotonic() - self._begun
        if self._enough:
            return False
        if elapsed_s > habits.seconds and (self._asked_count >= habits.calls_min or elapsed_s > 5 * habits.seconds):
            return False
        return self._asked_count < habits.calls_max

    async def operate(self, admin: Admin, request: OperatorRequest) -> None:
        """Have an operator's request done, and write it down."""
        begin = time.monotonic_ns()
        answer: Answer | None = None
        try:
            answer = await admin.change(request)
        except RefusedError as error:
            answer = Failed(str(error))
        except StoreUnavailableError:
            answer = Unavailable()
        except OutcomeUnknownError:
            pass
        self.recorder.note("operator", request, begin, answer)

    async def _shop(self, chance: random.Random) -> None:
        """Make connections, one after another, and ask burst after burst on each."""
        while self._goes_on():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", chance.choice(self._ports))
            except OSError:
                await asyncio.sleep(0.1)
                continue
            try:
                await self._talk(reader, writer, chance)
            except OSError:
                pass  # the server was killed: what was under way is written down
            finally:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        name = f"connection {next(self._connections)}"
        frames = FrameReader()
        for turn in count(1):
            if not self._goes_on():
                return
            market = chance.choice(self._markets)
            burst = self._burst(market, chance)
            self._asked_count += len(burst)
            hangs_up = chance.random() < self._habits.cuts
            begin, answered = time.monotonic_ns(), 0
            writer.write(b"".join(encode_request(request) for request in burst))
            try:
                if hangs_up:
                    await asyncio.sleep(chance.uniform(0, 0.005))
                    return
                while answered < len(burst):
                    data = await asyncio.wait_for(reader.read(65_536), PATIENCE_S)
                    if not data:
                        return
                    for _, payload in frames.feed(data):
                        request, answer = burst[answered], decode_answer(payload)
                        self.recorder.note(name, request, begin, answer)
                        market.learn(request, answer, chance)
                        answered += 1
            finally:
                for request in burst[answered:]:
                    self.recorder.note(name, request, begin, None)
                    market.learn(request, None, chance)
            await asyncio.sleep(chance.uniform(0, self._habits.pause_max_s))
            if turn == self._habits.stays:
                return

    # What to ask

    def _burst(self, market: Market, chance: random.Random) -> list[Request]:
        burst: list[Request] = []
        for _ in range(chance.randint(1, self._habits.burst_max)):
            request = self._plain(market, chance) if market.sale.by_hand else self._request(market, chance)
            burst.append(request)
            if getattr(request, "request_id", None) is not None:
                market.asked.append(request)
                if chance.random() < 0.1:
                    burst.append(request)  # once more in the same burst
        return burst

    def _plain(self, market: Market, chance: random.Random) -> Request:
        product_id = market.sale.product_id
        return GetStatus(product_id) if chance.random() < 0.02 else Purchase(product_id, self._user(market, chance))

    def _user(self, market: Market, chance: random.Random) -> str:
        return f"u{min(chance.randrange(market.users), chance.randrange(market.users))}"

    def _request(self, market: Market, chance: random.Random) -> Request:
        product_id, terms = market.sale.product_id, market.sale.terms
        if market.unsettled and self._habits.insists:
            return market.unsettled.popleft()
        turn = chance.random()
        if turn < 0.2 and market.asked:
            request = chance.choice(market.asked)
            if chance.random() < 0.1 and isinstance(request, Purchase | Reserve):
                return structs.replace(request, quantity=request.quantity % 3 + 1)  # another request with the same id
            return request
        if turn < 0.5:
            of_hold = self._of_hold(market, chance)
            if of_hold is not None:
                return of_hold
        if chance.random() < 0.02:
            return GetStatus(product_id)
        user_id = self._user(market, chance)
        request_id = next(self._request_ids) if chance.random() < 0.5 else None
        quantity = chance.choice((1, 1, 2, 3))
        item_id = None
        if terms.numbered:
            quantity = 1 if chance.random() < 0.95 else 2
            item_id = chance.randint(1, market.sale.stock + 5) if chance.random() < 0.4 else None
        if chance.random() < 0.5:
            hold_seconds = chance.choice((1, 2, None))
            return Reserve(product_id, user_id, quantity, request_id, item_id, hold_seconds)
        return Purchase(product_id, user_id, quantity, request_id, item_id)

    def _of_hold(self, market: Market, chance: random.Random) -> Request | None:
        """Return what is to be done with a hold: some of it too late, some of it again."""
        turn = chance.random()
        if turn < 0.35 and market.forgotten and market.forgotten[0].expires_at * 1_000 <= self._now_ms():
            return self._confirm(market, market.forgotten.popleft().code, chance)
        if turn < 0.45 and market.ended:
            code = chance.choice(market.ended)
            return chance.choice((Confirm(code), Cancel(code), Extend(code, 2)))
        if not market.held:
            return None
        held = market.held.popleft()
        if turn < 0.65:
            market.ended.append(held.code)
            return Cancel(held.code)
        if turn < 0.75:
            market.held.append(held)
            return Extend(held.code, chance.choice((1, 2, 3)))
        return self._confirm(market, held.code, chance)

    def _confirm(self, market: Market, code: str, chance: random.Random) -> Request:
        market.ended.append(code)
        return Confirm(code, next(self._request_ids) if chance.random() < 0.3 else None)
