"""Sends the visits of a shop when they are due, over connections that they share, and counts what is answered."""

import asyncio
import time
from collections import Counter, deque

from msgspec import Struct

from bench.buyer import clock_ns, whole_us
from bench.http.line import Answer, Line
from bench.http.shop import Ask, Shop, Visit
from bench.line import Timings
from bench.ticker import ticking
from flashsale.errors import FlashsaleError

_CONNECT_TIMEOUT_S = 30.0
_PACE_NS_MIN = 500_000
"""Visitors come at most this much after they are due, and several at once."""
_WAITING_COUNT_MAX = 100_000
"""Visitors who wait for a connection; one who comes then is not let in, and counted."""
NOT_SENT = "not sent"
NO_ANSWER = "no answer"


class Plan(Struct, frozen=True, kw_only=True):
    """How many visitors come, and for how long."""

    rate_per_s: float
    duration_s: float
    connection_count: int
    timeout_s: float
    """For the answers to those who came last."""


class _Turn:
    """A visit with the request that is under way or next."""

    __slots__ = ("ask", "due_ns", "visit")

    def __init__(self, visit: Visit, due_ns: int) -> None:
        self.visit = visit
        self.ask: Ask = next(visit)
        self.due_ns = due_ns


class Rush:
    """One run."""

    def __init__(self, shop: Shop, plan: Plan) -> None:
        self._shop = shop
        self._plan = plan
        self._free: deque[Line] = deque()
        self._under_way: dict[Line, _Turn] = {}
        self._waiting: deque[_Turn] = deque()
        self._came_count = 0
        self._all_came = False
        self._finished = asyncio.Event()
        self.timings = Timings()
        self.unexpected: Counter[str] = Counter()
        """Answers that are not documented for what was asked, and requests without one."""
        self.cpu_s = 0.0
        """CPU time that this process used for it."""

    async def run(self, host: str, port: int) -> None:
        """Connect, let everybody come, wait for the answers; raises FlashsaleError if there is no connecting."""
        await self._connect(host, port)
        self.timings.begin()
        self.cpu_s = -time.process_time()
        await self._let_in()
        self._all_came = True
        self._finish_if_done()
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                await self._finished.wait()
        except TimeoutError:
            for turn in self._under_way.values():
                self._fail(turn.ask, NO_ANSWER)
        for turn in self._waiting:
            self._fail(turn.ask, NOT_SENT)
        self.timings.end()
        self.cpu_s += time.process_time()
        for line in [*self._free, *self._under_way]:
            line.close()
        await asyncio.sleep(0)  # they are closed in the loop's next turn

    async def _connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                for _ in range(self._plan.connection_count):
                    _, line = await loop.create_connection(lambda: Line(self._take), host, port)
                    self._free.append(line)
        except OSError as error:  # also the time-out
            raise FlashsaleError(f"cannot connect to {host}:{port}: {error}") from error

    async def _let_in(self) -> None:
        """Have visitors come when they are due; their latency counts from then, however late this process is."""
        interval_ns = 1e9 / self._plan.rate_per_s
        count = max(1, round(self._plan.rate_per_s * self._plan.duration_s))
        started_ns = clock_ns()
        done = asyncio.Event()

        def come() -> None:
            due_count = min(count, int((clock_ns() - started_ns) / interval_ns) + 1)
            while self._came_count < due_count:
                self._come(int(started_ns + self._came_count * interval_ns))
                self._came_count += 1
            if self._came_count == count:
                done.set()

        pace_s = max(_PACE_NS_MIN, interval_ns) / 1e9
        with ticking(come, first_s=0.0, interval_s=pace_s):
            await done.wait()

    def _come(self, due_ns: int) -> None:
        turn = _Turn(self._shop.visit(), due_ns)
        if self._free:
            self._send(self._free.popleft(), turn)
        elif len(self._waiting) < _WAITING_COUNT_MAX and self._under_way:
            self._waiting.append(turn)
        else:
            self._fail(turn.ask, NOT_SENT)

    def _send(self, line: Line, turn: _Turn) -> None:
        if line.ask(turn.ask.request):
            self._under_way[line] = turn
        else:
            self._fail(turn.ask, NOT_SENT)

    def _take(self, line: Line, answer: Answer) -> None:
        """Count an answer; the connection goes on with what its visitor asks next, or with the next visitor."""
        now_ns = clock_ns()
        turn = self._under_way.pop(line)
        kind = answer.told.message or answer.told.detail
        if answer.status:
            kind += f" ({answer.status})"
        self.timings.count(turn.ask.operation, kind, whole_us(now_ns - turn.due_ns) if answer.status else None)
        if answer.status not in turn.ask.expected:
            self._note(turn.ask, kind)
        try:
            turn.ask = turn.visit.send(answer)
        except StopIteration:
            if self._waiting:
                self._send(line, self._waiting.popleft())
            else:
                self._free.append(line)
        else:
            turn.due_ns = now_ns
            self._send(line, turn)
        self._finish_if_done()

    def _fail(self, ask: Ask, kind: str) -> None:
        self.timings.count(ask.operation, kind)
        self._note(ask, kind)

    def _note(self, ask: Ask, kind: str) -> None:
        self.unexpected[f"{ask.operation}: {kind}"] += 1

    def _finish_if_done(self) -> None:
        if self._all_came and not self._under_way:  # then nobody waits, unless all connections are lost
            self._finished.set()
