"""Group commit: what arrives while one round trip is in flight makes up the next.

One round trip at a time carries one batch for each product that has something waiting. There are no timers: an idle
server answers after one round trip, a busy one in larger batches. Everything is bounded; beyond a bound the answer is
BUSY, and when the store is away it is `unavailable` (not executed) or UNKNOWN (perhaps executed). Once the first have
waited for it in vain, those who come are refused at once, but for one now and then who finds out whether it is back.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable
from contextvars import Context
from itertools import accumulate, islice
from time import monotonic
from typing import Protocol, TypeAlias

from msgspec import Struct

from flashsale.breaker import Breakers
from flashsale.crash import crash_point
from flashsale.domain.answers import BUSY, NOT_EXECUTED, UNKNOWN, Answer
from flashsale.domain.batches import Ambiguous, Batch, Defective, NotExecuted, Outcome
from flashsale.domain.requests import Request
from flashsale.engine import Engine

_log = logging.getLogger(__name__)

_RETRY_PAUSE_S = 0.05
_DEADLINE_MARGIN_S = 0.1
"""Answers are given this much before the deadline, so that they arrive within it."""

_OVERLAP_COUNT_MIN = 16
"""Fewer answers than this are sent in less time than it takes to send the next round off."""

_UNSETTLED_COUNT_MAX = 16_384
"""Products whose batches of unknown fate are told apart; beyond it every batch is fenced, which is safe, and slower."""

_BREAKERS_COUNT_MAX = 1_024
"""Products that are refused at once; beyond it requests for one of them wait for their deadline once more."""


class Sink(Protocol):
    """Where answers go: a door's connection. Each ticket is answered exactly once."""

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to the request that was submitted with this ticket."""
        ...

    def flush(self) -> None:
        """Send what was taken; called once for all the answers of a batch."""
        ...


class Recorder(Protocol):
    """Keeps what was asked and answered. It may neither wait nor fail."""

    def record(self, requests: list[Request], answers: list[Answer]) -> None:
        """Take requests with their answers, in the same order; called after the answers were given."""
        ...


class Meter(Protocol):
    """Counts what is answered. It may neither wait nor fail."""

    def measure(self, requests: list[Request], answers: list[Answer], arrivals: list[float]) -> None:
        """Count a batch that was answered now: its requests, their answers, and when each came, in order."""
        ...

    def refuse(self, requests: list[Request], answers: list[Answer]) -> None:
        """Count requests that were answered at once, as there was no use in waiting."""
        ...


class Limits(Struct, frozen=True, kw_only=True):
    """The bounds of a batcher."""

    queue_count_max: int = 131_072
    """Requests waiting for their turn; 100,000 buyers at once is the job."""
    queue_size_max: int = 64 * 1024 * 1024
    """Characters in the ids of the requests that wait: bounds memory when ids are long."""
    batch_count_max: int = 512
    """Requests of one product in one round trip: bounds how long one script call blocks the store, and lets the server
    answer one batch while the store decides the next."""
    batch_size_max: int = 1024 * 1024
    """Characters in their ids, for the same reason; a single request may have more."""
    round_count_max: int = 64
    """Products in one round trip."""
    store_deadline_s: float = 2.0
    """How long the store may be silent before requests are answered without it."""
    queue_age_max_s: float = 10.0
    """A request that waited longer for its turn is dropped unexecuted: its client has given up."""
    breaker_pause_s: float = 0.25
    """While the store is away, one request is let through so long after the last that failed: it costs the store a
    connection, and so much is added to the time that it was away."""


_Waiting: TypeAlias = tuple[Request, Sink, int, float, int]
"""A request, whom its answer goes to, its ticket there, when it arrived on the batcher's clock, the size of its ids.

A bare tuple, and read by index where it is read once per request: names would cost as much as the rest of the queue.
"""


class _Pending:
    """A batch on its way, with those who wait for its answers."""

    __slots__ = ("ambiguous", "product_id", "requests", "sequence", "waiting")

    def __init__(self, product_id: str, waiting: list[_Waiting], sequence: int) -> None:
        self.product_id = product_id
        self.waiting = waiting  # without the first ones, once they are told UNKNOWN
        self.requests = [item[0] for item in waiting]
        self.sequence = sequence
        self.ambiguous = False  # once sent without a reply, its requests must stay what they were


class _Trouble(Struct, frozen=True):
    """A product that the store does not decide."""

    since: float
    """When the oldest request that met it had arrived."""
    rests_until: float
    """When it is tried again."""
    alone: bool
    """Whether it is about this product, and says nothing of the store."""


class Batcher:
    """Gathers requests from every door, commits them in rounds, and hands the answers back.

    Belongs to one event loop; `submit` is called from it and never blocks.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits | None = None,
        recorder: Recorder | None = None,
        meter: Meter | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """Wait for requests.

        Args:
            engine: decides them.
            limits: the bounds.
            recorder: keeps what is asked and answered.
            meter: counts it.
            now: the clock of all deadlines, in seconds; a loop's may tell no less than milliseconds.
        """
        self._now = now
        self._engine = engine
        self._recorder = recorder
        self._meter = meter
        self._limits = limits or Limits()
        self._queue_count_max = self._limits.queue_count_max
        self._queue_size_max = self._limits.queue_size_max
        self._loop = asyncio.get_running_loop()
        self._queues: dict[str, list[_Waiting]] = {}  # by product, those served longest ago first
        self._waiting_count = 0
        self._waiting_size = 0
        self._sequence = 0
        self._in_flight: list[_Pending] = []  # of this round and the one before
        self._troubles: dict[str, _Trouble] = {}  # products whose last batch was not decided
        self._store_answers = True  # something was decided in the last round
        self._unsettled: set[str] = set()  # products with a batch whose fate was never learnt
        self._all_unsettled = False  # they were too many: any product may be one of them
        self._progress_at = self._now()
        self._task: asyncio.Task[None] | None = None
        self._context = Context()  # of its own: rounds are nobody's who happened to ask first
        self.breakers = Breakers(
            pause_s=self._limits.breaker_pause_s,
            patience_s=self._limits.store_deadline_s,
            count_max=_BREAKERS_COUNT_MAX,
        )
        """Refuse who would wait in vain."""

    def submit(self, request: Request, sink: Sink, ticket: int) -> None:
        """Queue a request; its answer goes to the sink with the ticket, at once when there is no use in waiting."""
        product_id = request.product_id
        size = len(product_id) + len(request.user_id)
        if self._waiting_count >= self._queue_count_max or self._waiting_size >= self._queue_size_max:
            self._refuse(request, sink, ticket, BUSY)
            return
        if not self.breakers.are_closed and not self.breakers.admit(product_id, self._now()):
            self._refuse(request, sink, ticket, NOT_EXECUTED)
            return
        queue = self._queues.get(product_id)
        if queue is None:
            queue = self._queues[product_id] = []
        queue.append((request, sink, ticket, self._now(), size))
        self._waiting_count += 1
        self._waiting_size += size
        if self._task is None:
            self._task = self._loop.create_task(self._run(), context=self._context)

    def _refuse(self, request: Request, sink: Sink, ticket: int, answer: Answer) -> None:
        """Give a request that goes nowhere its answer, which is counted and recorded too."""
        sink.answer(ticket, answer)
        self.record([request], [answer])

    def record(self, requests: list[Request], answers: list[Answer]) -> None:
        """Have requests counted and recorded that were answered at once; for doors that refuse some themselves."""
        if self._meter is not None:
            self._meter.refuse(requests, answers)
        if self._recorder is not None:
            self._recorder.record(requests, answers)

    @property
    def waiting_count(self) -> int:
        """How many requests wait for their turn."""
        return self._waiting_count

    @property
    def waiting_size(self) -> int:
        """How many characters their ids have."""
        return self._waiting_size

    async def drain(self) -> None:
        """Return once every submitted request is answered."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        """Commit round after round while there is work."""
        stuck: list[_Pending] = []  # sent without a reply; they go again, as they were
        commit: asyncio.Task[list[Outcome]] | None = None
        self._store_answers = True
        self._troubles.clear()
        try:
            while self._queues or stuck:
                resting = [item for item in stuck if self._rests(item.product_id)]
                pending = [item for item in stuck if item not in resting] + self._next_round(stuck)
                outcomes = await self._commit(pending)
                while self._queues and not stuck and _worth_overlapping(pending, outcomes):
                    # The next round leaves before this one's answers do: the store works while they are sent.
                    self._progress_at = self._now()
                    following = self._next_round([])
                    commit = self._loop.create_task(self._commit(following))
                    await asyncio.sleep(0)
                    self._take_outcomes(pending, outcomes)
                    pending, outcomes = following, await commit
                self._take_outcomes(pending, outcomes)
                stuck = resting + [item for item in pending if item.waiting]
                if stuck or self._troubles:
                    self._expire(stuck)
                    stuck = [item for item in stuck if item.waiting]
                    if not self._store_answers:
                        await asyncio.sleep(_RETRY_PAUSE_S)
        except Exception:  # noqa: BLE001 - a bug: whoever it has hit gets the safe answer, and service goes on
            _log.exception("group commit failed")
            if commit is not None and not commit.done():
                commit.cancel()  # an engine decides one round at a time
                await asyncio.wait({commit})
            for item in self._in_flight:
                self._leave_unsettled(item.product_id)
                self._answer_all(item, [UNKNOWN] * len(item.waiting))
        finally:
            self._task = None
        if self._queues:
            self._task = self._loop.create_task(self._run())

    def _next_round(self, stuck: list[_Pending]) -> list[_Pending]:
        """Take one batch of each of the products that waited longest, except those that are stuck or resting.

        While some are stuck and the store decides nothing, one product at a time tries whether it does again.
        """
        stale_since = self._now() - self._limits.queue_age_max_s
        count_max = self._limits.round_count_max - len(stuck) if self._store_answers or not stuck else 1
        stuck_ids = {item.product_id for item in stuck}
        ready = (name for name in self._queues if name not in stuck_ids and not self._rests(name))
        pending: list[_Pending] = []
        for product_id in list(islice(ready, max(0, count_max))):
            queue = self._queues[product_id]
            self._drop(queue, stale_since)  # a sink that is flushed may bring new requests
            del self._queues[product_id]
            taken = self._take(queue, self._fitting_count(queue))
            if queue:
                self._queues[product_id] = queue  # behind the others
            if taken:
                self._sequence += 1
                pending.append(_Pending(product_id, taken, self._sequence))
        self._in_flight = [item for item in self._in_flight if item.waiting] + pending
        return pending

    def _fitting_count(self, queue: list[_Waiting]) -> int:
        """Return how many of the first requests of a queue make a batch; one always does."""
        count = min(len(queue), self._limits.batch_count_max)
        if self._waiting_size <= self._limits.batch_size_max:
            return count
        sizes = accumulate(item[4] for item in queue[:count])
        return max(1, sum(size <= self._limits.batch_size_max for size in sizes))

    def _take(self, queue: list[_Waiting], count: int) -> list[_Waiting]:
        """Remove and return the first requests of a queue."""
        taken = _split(queue, count)
        self._waiting_count -= len(taken)
        self._waiting_size -= sum([item[4] for item in taken])
        return taken

    def _drop(self, queue: list[_Waiting], since: float) -> None:
        """Answer, without executing them, those requests of a queue that have waited since then or longer."""
        if _arrived(queue[0]) <= since:
            dropped = self._take(queue, _count_since(queue, since))
            self._deliver(dropped, [NOT_EXECUTED] * len(dropped))

    async def _commit(self, pending: list[_Pending]) -> list[Outcome]:
        batches = [
            Batch(
                item.product_id,
                item.requests,
                item.sequence,
                fenced=item.ambiguous or self._all_unsettled or item.product_id in self._unsettled,
            )
            for item in pending
        ]
        if not pending:  # all were dropped on the way
            return []
        oldest_at = min(_arrived(item.waiting[0]) for item in pending)
        due_at = max(oldest_at, self._progress_at) + self._limits.store_deadline_s - _DEADLINE_MARGIN_S
        timeout_s = max(due_at - self._now(), _RETRY_PAUSE_S)
        crash_point("after-read")
        try:
            outcomes = await self._engine.commit(batches, timeout_s=timeout_s)
            crash_point("after-script")
            _check_outcomes(batches, outcomes)
        except Exception:  # noqa: BLE001 - a bug, met with the safe answer: nothing is known of these batches
            _log.exception("the engine failed")
            outcomes = [Ambiguous("the engine failed", alone=True)] * len(batches)
        return outcomes

    def _take_outcomes(self, pending: list[_Pending], outcomes: list[Outcome]) -> None:
        """Answer the batches that are decided, queue again those that were not executed, mark those that may be."""
        self._store_answers = False
        for item, outcome in zip(pending, outcomes, strict=True):
            match outcome:
                case list():
                    self._note_answer(item)
                    self._unsettled.discard(item.product_id)
                    # the first ones may have been told UNKNOWN
                    self._answer_all(item, outcome[len(outcome) - len(item.waiting) :])
                case Defective():
                    self._note_answer(item)
                    if item.ambiguous:  # the keys may be put right again before what was sent first arrives
                        self._leave_unsettled(item.product_id)
                    self._answer_all(item, [UNKNOWN if item.ambiguous else NOT_EXECUTED] * len(item.waiting))
                case NotExecuted():
                    if not item.ambiguous:
                        self._queue_again(item, alone=outcome.alone)
                case _:
                    item.ambiguous = True
                    self._note_trouble(item, alone=outcome.alone)

    def _leave_unsettled(self, product_id: str) -> None:
        """Remember to fence the product's next batch: one that was given up may still arrive at the store."""
        if len(self._unsettled) < _UNSETTLED_COUNT_MAX:
            self._unsettled.add(product_id)
        elif product_id not in self._unsettled and not self._all_unsettled:
            self._all_unsettled = True
            _log.warning("the fate of batches of more than %d products is unknown", _UNSETTLED_COUNT_MAX)

    def _note_answer(self, item: _Pending) -> None:
        self._store_answers = True
        self._progress_at = self._now()
        self._troubles.pop(item.product_id, None)
        if not self.breakers.are_closed:
            store, product = self.breakers.succeed(item.product_id)
            if store:
                _log.warning("the store decides again: requests are taken")
            if product:
                _log.warning("product %r is decided again: its requests are taken", item.product_id)

    def _note_trouble(self, item: _Pending, *, alone: bool) -> None:
        trouble = self._troubles.get(item.product_id)
        since = trouble.since if trouble else _arrived(item.waiting[0])
        self._troubles[item.product_id] = _Trouble(since, self._now() + _RETRY_PAUSE_S, alone)

    def _queue_again(self, item: _Pending, *, alone: bool) -> None:
        """Put a batch that certainly was not executed back in front of its queue; it becomes part of another batch.

        Those who were let through to find out whether that is so have found out.
        """
        self._note_trouble(item, alone=alone)
        waiting, item.waiting = item.waiting, []
        refused: list[_Waiting] = []
        opened_at = self.breakers.opened_at(item.product_id)
        if opened_at is not None:
            self.breakers.fail_again(item.product_id, self._now())
            waiting, refused = _split(waiting, _count_since(waiting, opened_at)), waiting
        if waiting:
            self._waiting_count += len(waiting)
            self._waiting_size += sum([item[4] for item in waiting])
            self._queues[item.product_id] = waiting + self._queues.pop(item.product_id, [])
        if refused:
            self._deliver(refused, [NOT_EXECUTED] * len(refused))

    def _break(self, product_id: str, since: float) -> None:
        """Have those who come refused at once, after others have waited in vain since then.

        That is for all products when the store has decided none since then, unless this one's trouble is its own.
        """
        trouble = self._troubles.get(product_id)
        if trouble is None:
            return  # it has waited behind the others, and it is they who tell
        if trouble.alone or self._progress_at > since:
            if self.breakers.fail_product(product_id, self._now()):
                _log.warning("product %r is not decided: its requests are refused until one is", product_id)
        elif self.breakers.fail_store(self._now()):
            _log.warning("the store decides nothing: requests are refused until it decides one")

    def _answer_all(self, item: _Pending, answers: list[Answer]) -> None:
        waiting, item.waiting = item.waiting, []
        self._deliver(waiting, answers, item.requests[len(item.requests) - len(waiting) :])

    def _deliver(self, waiting: list[_Waiting], answers: list[Answer], requests: list[Request] | None = None) -> None:
        """Give each its answer, and all of them to the meter and the recorder, if there are any."""
        if not waiting:
            return
        _hand_out(waiting, answers)
        requests = requests or [item[0] for item in waiting]
        if self._meter is not None:
            self._meter.measure(requests, answers, [item[3] for item in waiting])
        if self._recorder is not None:
            self._recorder.record(requests, answers)

    def _expire(self, stuck: list[_Pending]) -> None:
        """Answer, without the store, those for whom it has been silent, or has refused, too long."""
        since = self._now() - self._limits.store_deadline_s + _DEADLINE_MARGIN_S + _RETRY_PAUSE_S
        for item in stuck:
            if self._silent_since(item.product_id) <= since:
                expired = _split(item.waiting, _count_since(item.waiting, since))
                if expired:
                    self._break(item.product_id, since)
                self._deliver(expired, [UNKNOWN] * len(expired))
                if not item.waiting:
                    self._leave_unsettled(item.product_id)
                    self._troubles.pop(item.product_id, None)
        for product_id, queue in list(self._queues.items()):
            if self._silent_since(product_id) <= since:
                if _arrived(queue[0]) <= since:
                    self._break(product_id, since)
                self._drop(queue, since)
                if not queue:
                    del self._queues[product_id]
                    self._troubles.pop(product_id, None)

    def _rests(self, product_id: str) -> bool:
        trouble = self._troubles.get(product_id)
        return trouble is not None and trouble.rests_until > self._now()

    def _silent_since(self, product_id: str) -> float:
        """Return since when the store has decided nothing at all, or nothing of a product in trouble."""
        trouble = self._troubles.get(product_id)
        return min(self._progress_at, trouble.since) if trouble else self._progress_at


def _worth_overlapping(pending: list[_Pending], outcomes: list[Outcome]) -> bool:
    """Whether the next round should leave before this one, if wholly decided, is answered."""
    answer_count = sum(len(item.waiting) for item in pending)
    return answer_count >= _OVERLAP_COUNT_MIN and all(isinstance(outcome, list) for outcome in outcomes)


def _check_outcomes(batches: list[Batch], outcomes: list[Outcome]) -> None:
    """Raise ValueError unless there is an outcome for each batch, and an answer for each request of a decided one."""
    for batch, outcome in zip(batches, outcomes, strict=True):
        if isinstance(outcome, list) and len(outcome) != len(batch.requests):
            raise ValueError(f"{len(outcome)} answers to {len(batch.requests)} requests")


def _arrived(waiting: _Waiting) -> float:
    return waiting[3]


def _count_since(waiting: list[_Waiting], moment: float) -> int:
    """Return how many of them have waited since that moment or longer."""
    return bisect_right(waiting, moment, key=_arrived)


def _split(waiting: list[_Waiting], count: int) -> list[_Waiting]:
    """Remove and return the first ones."""
    first = waiting[:count]
    del waiting[:count]
    return first


def _hand_out(waiting: list[_Waiting], answers: list[Answer]) -> None:
    """Give each its answer, then let each sink send what it got; a sink that fails harms no other."""
    for (_, sink, ticket, _, _), answer in zip(waiting, answers, strict=True):
        try:
            sink.answer(ticket, answer)
        except Exception:  # noqa: BLE001 - a bug in one door must not cost the others their answers
            _log.exception("a sink failed to take an answer")
    crash_point("before-reply")
    for sink in dict.fromkeys([item[1] for item in waiting]):
        try:
            sink.flush()
        except Exception:  # noqa: BLE001 - as above
            _log.exception("a sink failed to send its answers")
