"""The batcher's own logic, with an engine that does as it is told, on a clock that nobody waits for.

What a real store does is in tests/contract and tests/faults; here are the bounds, the deadlines and the resends, to the
millisecond: time passes on these tests' event loop only when nothing else is left to do.
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from itertools import chain
from typing import Any

import pytest

from flashsale import batching
from flashsale.batching import Batcher, Limits
from flashsale.breaker import State
from flashsale.domain.answers import BUSY, NOT_EXECUTED, NOT_FOUND, UNKNOWN, Answer, ProductStatus, SoldOut, Success
from flashsale.domain.batches import Ambiguous, Batch, Defective, NotExecuted, Outcome
from flashsale.domain.requests import GetStatus, Purchase, Request
from flashsale.engine import Engine
from flashsale.memory import MemoryEngine

REFUSED = NotExecuted("refused")
SILENT = Ambiguous("silent")
BROKEN = Defective("broken")


class SimulatedSelector(selectors.SelectSelector):
    """Says at once that the time it was to wait is over."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing can happen any more: somebody waits for ever"
            self.now += max(timeout, 0)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._simulated = SimulatedSelector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.now


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on a loop of its own, in simulated time."""

    @wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


Step = Outcome | list[Outcome] | BaseException | Callable[[Sequence[Batch], float], Awaitable[list[Outcome]]]


class ScriptedEngine:
    """Plays one step for each commit, then `always` if there is one, else decides as MemoryEngine does.

    It keeps what it was given.
    """

    def __init__(self, *steps: Step, always: Step | None = None, delay_s: float = 0.001) -> None:
        self.always = always
        self.memory = MemoryEngine()
        self.rounds: list[list[Batch]] = []
        self.timeouts_s: list[float] = []
        self.running_count = 0
        self._steps = list(steps)
        self._delay_s = delay_s

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        assert self.running_count == 0, "two round trips at once"
        assert len({batch.product_id for batch in batches}) == len(batches)
        self.rounds.append([Batch(b.product_id, tuple(b.requests), b.sequence, fenced=b.fenced) for b in batches])
        self.timeouts_s.append(timeout_s)
        step = self._steps.pop(0) if self._steps else self.always
        self.running_count += 1
        try:
            if callable(step):
                return await step(batches, timeout_s)
            await asyncio.sleep(self._delay_s)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, NotExecuted | Ambiguous | Defective):
                return [step] * len(batches)
            return await self.memory.commit(batches, timeout_s=timeout_s)
        finally:
            self.running_count -= 1

    def users(self) -> list[list[list[str]]]:
        """Return the user ids of each batch of each round."""
        return [[[request.user_id for request in batch.requests] for batch in batches] for batches in self.rounds]


async def hang(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
    """Be silent for as long as the batcher says, as a stopped store is."""
    await asyncio.sleep(timeout_s)
    return [SILENT] * len(batches)


def after(delay_s: float, outcome: Outcome | None = None) -> Step:
    """Answer late: with this outcome, or as the rules say."""

    async def step(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        await asyncio.sleep(delay_s)
        if outcome is not None:
            return [outcome] * len(batches)
        return [[NOT_FOUND] * len(batch.requests) for batch in batches]

    return step


def without_version(answer: Answer) -> Answer:
    """What a test of the batcher cares about."""
    match answer:
        case Success(remaining_stock):
            return Success(remaining_stock)
        case ProductStatus(remaining_stock, sold):
            return ProductStatus(remaining_stock, sold)
    return answer


class Crowd:
    """A sink that remembers who was told what, and when."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.order: list[int] = []
        self.times: dict[int, float] = {}
        self.flush_count = 0
        self.unflushed_count = 0

    def answer(self, ticket: int, answer: Answer) -> None:
        assert ticket not in self.answers, "told twice"
        self.answers[ticket] = without_version(answer)
        self.order.append(ticket)
        self.times[ticket] = asyncio.get_running_loop().time()
        self.unflushed_count += 1

    def flush(self) -> None:
        self.flush_count += 1
        self.unflushed_count = 0


def make_batcher(engine: Engine, limits: Limits | None, *others: Any) -> Batcher:
    """Make one that lives by the clock of the loop."""
    return Batcher(engine, limits, *others, now=asyncio.get_running_loop().time)


class Sale:
    """A batcher over a scripted engine and one crowd of buyers."""

    def __init__(
        self, *steps: Step, always: Step | None = None, stock: int = 100, delay_s: float = 0.001, **limits: float
    ) -> None:
        self.engine = ScriptedEngine(*steps, always=always, delay_s=delay_s)
        self.engine.memory.create("p", stock)
        self.batcher = make_batcher(self.engine, Limits(**limits))  # type: ignore[arg-type]
        self.crowd = Crowd()
        self.submitted: dict[int, float] = {}

    def buy(self, *tickets: int, product_id: str = "p") -> None:
        for ticket in tickets:
            self.ask(Purchase(product_id, f"u{ticket}"), ticket)

    def ask(self, request: Request, ticket: int) -> None:
        self.submitted[ticket] = asyncio.get_running_loop().time()
        self.batcher.submit(request, self.crowd, ticket)

    async def end(self) -> dict[int, Answer]:
        await self.batcher.drain()
        assert set(self.crowd.answers) == set(self.submitted), "somebody was not answered"
        return self.crowd.answers

    async def end_and_wait(self) -> dict[int, Answer]:
        """End, and wait until it does not matter any more that the store was away."""
        answers = await self.end()
        await asyncio.sleep(10)
        return answers

    def waited_s(self, ticket: int) -> float:
        return self.crowd.times[ticket] - self.submitted[ticket]


# Group commit


@simulated
async def test_one_request_takes_one_round_trip_and_no_timer() -> None:
    sale = Sale(delay_s=0.0005)
    sale.buy(0)
    assert await sale.end() == {0: Success(99)}
    assert sale.waited_s(0) == pytest.approx(0.0005, abs=1e-5)
    assert sale.crowd.flush_count == 1


@simulated
async def test_what_arrives_during_a_round_trip_makes_up_the_next() -> None:
    sale = Sale()
    sale.buy(0)
    await asyncio.sleep(0)  # the first round has begun
    sale.buy(1, 2)
    await asyncio.sleep(0.0005)
    sale.buy(3)
    answers = await sale.end()
    assert sale.engine.users() == [[["u0"]], [["u1", "u2", "u3"]]]
    assert answers == {ticket: Success(99 - ticket) for ticket in range(4)}
    assert sale.crowd.flush_count == 2


@simulated
async def test_what_arrives_together_is_one_batch_in_order_of_arrival() -> None:
    sale = Sale(stock=2)
    sale.buy(0, 1)
    sale.ask(GetStatus("p"), 2)
    sale.buy(3)
    assert await sale.end() == {0: Success(1), 1: Success(0), 2: ProductStatus(0, 2), 3: SoldOut()}
    assert len(sale.engine.rounds) == 1
    assert sale.crowd.order == [0, 1, 2, 3]


@simulated
async def test_each_sink_is_flushed_once_for_a_batch_after_its_answers() -> None:
    sale = Sale()
    other = Crowd()
    for ticket in range(6):
        sale.batcher.submit(Purchase("p", "u"), other if ticket % 2 else sale.crowd, ticket)
    await sale.batcher.drain()
    for crowd in (sale.crowd, other):
        assert crowd.flush_count == 1
        assert crowd.unflushed_count == 0
        assert len(crowd.answers) == 3


@simulated
async def test_batch_is_bounded_and_the_rest_comes_next_in_order() -> None:
    sale = Sale(batch_count_max=2)
    sale.buy(*range(5))
    await sale.end()
    assert sale.engine.users() == [[["u0", "u1"]], [["u2", "u3"]], [["u4"]]]
    assert sale.crowd.order == [0, 1, 2, 3, 4]


@simulated
async def test_sequences_grow_with_every_batch() -> None:
    sale = Sale(batch_count_max=1)
    sale.buy(0, 1)
    sale.buy(2, product_id="q")
    await sale.end()
    sequences = [batch.sequence for batches in sale.engine.rounds for batch in batches]
    assert sequences == sorted(set(sequences))


@simulated
async def test_several_products_share_a_round_each_with_its_own_batch() -> None:
    sale = Sale()
    for ticket, product_id in enumerate("pqrpqr"):
        sale.buy(ticket, product_id=product_id)
    answers = await sale.end()
    assert sale.engine.users() == [[["u0", "u3"], ["u1", "u4"], ["u2", "u5"]]]
    assert answers[3] == Success(98)
    assert answers[4] == NOT_FOUND


@simulated
async def test_products_beyond_the_round_come_in_the_next() -> None:
    sale = Sale(round_count_max=2)
    for ticket, product_id in enumerate("pqrst"):
        sale.buy(ticket, product_id=product_id)
    await sale.end()
    assert [[batch.product_id for batch in batches] for batches in sale.engine.rounds] == [
        ["p", "q"],
        ["r", "s"],
        ["t"],
    ]


@simulated
async def test_crowd_at_one_product_does_not_keep_another_waiting() -> None:
    sale = Sale(round_count_max=1, batch_count_max=2)
    sale.buy(*range(6))
    sale.buy(6, product_id="q")
    await sale.end()
    assert [batches[0].product_id for batches in sale.engine.rounds] == ["p", "q", "p", "p"]


# The bound of the queue


@simulated
async def test_busy_at_the_bound_at_once_and_not_before() -> None:
    sale = Sale(queue_count_max=3)
    sale.buy(0)
    await asyncio.sleep(0)  # in flight: it waits for its turn no more
    sale.buy(1, 2, 3)
    assert sale.crowd.answers == {}
    sale.buy(4)
    sale.buy(5, product_id="q")
    assert sale.crowd.answers == {4: BUSY, 5: BUSY}
    await asyncio.sleep(0.0015)
    sale.buy(6)  # there is room again
    answers = await sale.end()
    assert answers == {0: Success(99), 1: Success(98), 2: Success(97), 3: Success(96), 4: BUSY, 5: BUSY, 6: Success(95)}
    assert not {"u4", "u5"} & {user for batches in sale.engine.users() for users in batches for user in users}


@simulated
async def test_room_comes_back_after_requests_were_dropped() -> None:
    sale = Sale(always=REFUSED, queue_count_max=2)
    for first in (0, 10, 20):
        sale.buy(first)
        await asyncio.sleep(0)
        sale.buy(first + 1, first + 2, first + 3)
        answers = await sale.end_and_wait()
        assert [answers[first + i] for i in range(4)] == [NOT_EXECUTED, NOT_EXECUTED, NOT_EXECUTED, BUSY]


@simulated
async def test_default_bound_takes_a_hundred_thousand_buyers() -> None:
    sale = Sale(stock=100_000)
    sale.buy(*range(131_072))
    assert sale.crowd.answers == {}
    sale.buy(131_072)
    assert sale.crowd.answers == {131_072: BUSY}
    answers = await sale.end()
    assert answers[99_999] == Success(0)
    assert answers[100_000] == SoldOut()
    assert all(len(batch.requests) <= 512 for batches in sale.engine.rounds for batch in batches)


# A store that fails for a moment


@simulated
async def test_not_executed_is_part_of_a_later_batch() -> None:
    sale = Sale(REFUSED, REFUSED)
    sale.buy(0, 1)
    assert await sale.end() == {0: Success(99), 1: Success(98)}
    batches = [batch for [batch] in sale.engine.rounds]
    assert [batch.requests for batch in batches] == [batches[0].requests] * 3
    assert [batch.sequence for batch in batches] == [1, 2, 3]
    assert not any(batch.fenced for batch in batches)


@simulated
async def test_not_executed_goes_before_what_came_later() -> None:
    sale = Sale(REFUSED)
    sale.buy(0, 1)
    await asyncio.sleep(0.002)
    sale.buy(2)
    assert await sale.end() == {0: Success(99), 1: Success(98), 2: Success(97)}
    assert sale.engine.users() == [[["u0", "u1"]], [["u0", "u1", "u2"]]]


@simulated
async def test_ambiguous_is_sent_again_with_its_sequence_behind_a_fence() -> None:
    sale = Sale(SILENT, REFUSED)
    sale.buy(0, 1)
    await asyncio.sleep(0)
    sale.buy(2)
    assert await sale.end() == {0: Success(99), 1: Success(98), 2: Success(97)}
    [first], [second], [third], [fourth] = sale.engine.rounds
    assert (first.fenced, second.fenced, third.fenced, fourth.fenced) == (False, True, True, False)
    assert first.sequence == second.sequence == third.sequence < fourth.sequence
    assert first.requests == second.requests == third.requests
    assert [request.user_id for request in fourth.requests] == ["u2"]


@simulated
async def test_ambiguous_batch_that_was_executed_is_not_sold_twice() -> None:
    async def execute_and_fall_silent(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        await sale.engine.memory.commit(batches, timeout_s=timeout_s)
        return [SILENT] * len(batches)

    sale = Sale(execute_and_fall_silent)
    sale.buy(0, 1)
    assert await sale.end() == {0: Success(99), 1: Success(98)}
    assert sale.engine.memory.buyers("p") == ["u0", "u1"]


@simulated
async def test_only_the_batches_without_an_answer_are_sent_again() -> None:
    async def decide_the_first(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        return [sale.engine.memory.decide(batches[0]), SILENT, REFUSED]

    sale = Sale(decide_the_first)
    for ticket, product_id in enumerate("pqr"):
        sale.buy(ticket, product_id=product_id)
    await sale.end()
    assert [[(b.product_id, b.fenced) for b in batches] for batches in sale.engine.rounds] == [
        [("p", False), ("q", False), ("r", False)],
        [("q", True), ("r", False)],
    ]
    assert sale.waited_s(0) < sale.waited_s(1)


# A store that is away for longer


@simulated
async def test_never_executed_is_answered_unavailable_within_the_deadline() -> None:
    sale = Sale(always=REFUSED)
    sale.buy(0)
    assert await sale.end() == {0: NOT_EXECUTED}
    assert 1.5 < sale.waited_s(0) <= 2.0
    assert sale.crowd.unflushed_count == 0


@pytest.mark.parametrize("deadline_s", [0.3, 2.0, 60.0])
@pytest.mark.parametrize("step", [REFUSED, SILENT, hang], ids=["refused", "silent at once", "hangs"])
def test_everyone_is_answered_within_the_deadline(step: Step, deadline_s: float) -> None:
    @simulated
    async def test() -> None:
        sale = Sale(always=step, store_deadline_s=deadline_s, queue_age_max_s=600.0)
        for ticket in range(10):
            sale.buy(ticket)
            sale.buy(ticket + 100, product_id=f"q{ticket}")
            await asyncio.sleep(deadline_s / 7)
        answers = await sale.end()
        assert all(sale.waited_s(ticket) <= deadline_s + 1e-6 for ticket in answers)
        assert set(answers.values()) <= {NOT_EXECUTED, UNKNOWN}
        told_not_executed = {f"u{ticket}" for ticket, answer in answers.items() if answer == NOT_EXECUTED}
        for number, batches in enumerate(sale.engine.rounds):
            if step is not REFUSED:  # whoever was sent to a silent store must not be told that nothing happened
                assert not told_not_executed & {r.user_id for batch in batches for r in batch.requests}, number

    test()


@simulated
async def test_perhaps_executed_is_answered_unknown_within_the_deadline() -> None:
    sale = Sale(hang)
    sale.buy(0)
    await asyncio.sleep(0.5)
    sale.buy(1)  # waits behind it and was never sent
    sale.buy(2, product_id="q")
    answers = await sale.end()
    assert answers[0] == UNKNOWN
    assert 1.5 < sale.waited_s(0) <= 2.0
    assert answers[1] == Success(99)
    assert answers[2] == NOT_FOUND


@simulated
async def test_after_unknown_the_next_batch_of_the_product_is_fenced_until_one_is_decided() -> None:
    sale = Sale(always=SILENT)
    sale.buy(0)
    await sale.end_and_wait()
    assert sale.crowd.answers == {0: UNKNOWN}
    sale.engine._steps[:], sale.engine.always = [REFUSED], None
    count = len(sale.engine.rounds)
    first = sale.engine.rounds[0][0].sequence
    sale.buy(1)
    sale.buy(2, product_id="q")
    await sale.end()
    sale.buy(3)
    await sale.end()
    again = sale.engine.rounds[count:]
    assert [[(b.product_id, b.fenced) for b in batches] for batches in again] == [
        [("p", True), ("q", False)],
        [("p", True), ("q", False)],
        [("p", False)],
    ]
    assert again[0][0].sequence > first


@simulated
async def test_late_arrival_of_an_unknown_batch_finds_the_door_shut() -> None:
    sale = Sale(always=SILENT)
    sale.buy(0)
    await sale.end_and_wait()
    sale.engine.always = None
    sale.ask(GetStatus("p"), 1)  # changes nothing, and is remembered all the same
    await sale.end()
    late = sale.engine.rounds[0][0]
    assert isinstance(sale.engine.memory.decide(late), Ambiguous)
    assert sale.engine.memory.buyers("p") == []


@simulated
async def test_told_unavailable_is_never_sent_again() -> None:
    sale = Sale(after(0.1, BROKEN), always=REFUSED)
    sale.buy(0, product_id="q")
    await asyncio.sleep(0)
    sale.buy(1)
    await asyncio.sleep(0.09)
    sale.buy(2)
    deadline_s = 2.0
    await asyncio.sleep(deadline_s - 0.14)  # the older one's time is up, the younger one's is not
    assert sale.crowd.answers == {0: NOT_EXECUTED, 1: NOT_EXECUTED}
    sale.engine.always = None
    answers = await sale.end()
    assert answers[2] == Success(99)
    assert sale.engine.users()[-1] == [["u2"]]
    assert sale.engine.memory.buyers("p") == ["u2"]
    assert sale.engine.rounds[-1][0].sequence > sale.engine.rounds[-2][0].sequence


@simulated
async def test_told_unknown_stays_in_its_batch_which_goes_on_for_the_others() -> None:
    sale = Sale(after(0.1, BROKEN), always=SILENT)
    sale.buy(0, product_id="q")
    await asyncio.sleep(0)
    sale.buy(1)
    await asyncio.sleep(0.09)
    sale.buy(2)
    await asyncio.sleep(2.0 - 0.14)
    assert sale.crowd.answers == {0: NOT_EXECUTED, 1: UNKNOWN}
    sale.engine.always = None
    answers = await sale.end()
    assert sale.engine.users()[-1] == [["u1", "u2"]]  # as it was sent first, or the store could not know it again
    assert answers[2] == Success(98)
    assert sale.engine.memory.buyers("p") == ["u1", "u2"]


@simulated
async def test_waiting_behind_a_silent_store_ends_at_the_deadline_too() -> None:
    sale = Sale(always=SILENT)
    sale.buy(0)
    await asyncio.sleep(0)
    sale.buy(1)
    sale.buy(2, product_id="q")
    await asyncio.sleep(1.0)
    sale.buy(3)
    await asyncio.sleep(0.95)
    sale.engine.always = None
    answers = await sale.end()
    # the product behind was sent too, to see whether the store decides anything; what waited behind the first was not
    assert [answers[ticket] for ticket in range(3)] == [UNKNOWN, NOT_EXECUTED, UNKNOWN]
    assert answers[3] == Success(99)
    assert "u1" not in {user for batches in sale.engine.users() for users in batches for user in users}
    assert all(sale.waited_s(ticket) <= 2.0 for ticket in range(4))


@simulated
async def test_slow_store_that_goes_on_answering_is_not_away() -> None:
    sale = Sale(*[after(0.9)] * 4, batch_count_max=1)
    sale.buy(*range(4))
    assert await sale.end() == dict.fromkeys(range(4), NOT_FOUND)
    assert sale.waited_s(3) == pytest.approx(3.6, abs=0.01)


@simulated
async def test_store_has_its_whole_deadline_for_each_round_also_while_many_wait() -> None:
    sale = Sale(*[after(0.9)] * 4, batch_count_max=1)
    sale.buy(*range(4))
    await sale.end()
    assert sale.engine.timeouts_s == pytest.approx([1.9] * 4, abs=0.1)  # it has not been silent, only busy


@simulated
async def test_engine_is_given_what_is_left_of_the_deadline_and_never_nothing() -> None:
    sale = Sale(always=hang)
    sale.buy(0)
    await sale.end()
    assert sale.engine.timeouts_s[0] == pytest.approx(1.9, abs=0.1)
    assert all(timeout_s > 0 for timeout_s in sale.engine.timeouts_s)


@simulated
async def test_too_old_in_the_queue_is_dropped_unexecuted() -> None:
    sale = Sale(after(0.5), after(0.5), queue_age_max_s=0.4)
    sale.buy(0)
    await asyncio.sleep(0.05)
    sale.buy(1)
    sale.buy(2, product_id="q")
    await asyncio.sleep(0.1)
    sale.buy(3)
    assert await sale.end() == {0: NOT_FOUND, 1: NOT_EXECUTED, 2: NOT_EXECUTED, 3: NOT_FOUND}
    assert sale.engine.users() == [[["u0"]], [["u3"]]]
    assert sale.crowd.unflushed_count == 0


@simulated
async def test_round_of_nothing_but_the_too_old_asks_the_store_nothing() -> None:
    sale = Sale(after(0.5), queue_age_max_s=0.4)
    sale.buy(0)
    await asyncio.sleep(0.05)
    sale.buy(1)
    assert await sale.end() == {0: NOT_FOUND, 1: NOT_EXECUTED}
    assert len(sale.engine.rounds) == 1


# Defects


@simulated
async def test_defective_is_unavailable_and_not_repeated() -> None:
    sale = Sale(BROKEN)
    sale.buy(0, 1)
    assert await sale.end() == {0: NOT_EXECUTED, 1: NOT_EXECUTED}
    assert len(sale.engine.rounds) == 1
    assert sale.waited_s(0) < 0.1


@simulated
async def test_defective_after_ambiguous_is_unknown() -> None:
    sale = Sale(SILENT, BROKEN)
    sale.buy(0, 1)
    assert await sale.end() == {0: UNKNOWN, 1: UNKNOWN}


@simulated
async def test_defective_after_ambiguous_leaves_the_fence_up_until_a_batch_is_decided() -> None:
    sale = Sale(SILENT, BROKEN, BROKEN)
    for ticket in range(4):  # the keys are put right behind the second
        sale.buy(ticket)
        await sale.end()
    assert [(batch.sequence, batch.fenced) for [batch] in sale.engine.rounds] == [
        (1, False),
        (1, True),
        (2, True),
        (3, True),
        (4, False),
    ]


def test_beyond_so_many_unknown_fates_every_batch_is_fenced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batching, "_UNSETTLED_COUNT_MAX", 2)

    @simulated
    async def run() -> None:
        sale = Sale(always=SILENT)
        for ticket, product_id in enumerate("qrqst"):
            if ticket == 3:
                assert not sale.batcher._all_unsettled, "two products, asked for again or not"
            sale.buy(ticket, product_id=product_id)
            await sale.end_and_wait()
        assert len(sale.batcher._unsettled) == 2
        sale.engine.always = None
        for ticket, product_id in enumerate("pqrstp", 10):
            sale.buy(ticket, product_id=product_id)
            await sale.end()
            assert sale.engine.rounds[-1][0].fenced, product_id

    run()
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "fate" in line] == ["the fate of batches of more than 2 products is unknown"]


@simulated
async def test_engine_that_raises_once_is_asked_again_behind_a_fence() -> None:
    sale = Sale(ValueError("a bug"))
    sale.buy(0)
    assert await sale.end() == {0: Success(99)}
    assert [batches[0].fenced for batches in sale.engine.rounds] == [False, True]


@simulated
async def test_engine_that_goes_on_raising_is_answered_unknown_and_service_goes_on() -> None:
    sale = Sale(always=ValueError("a bug"))
    sale.buy(0)
    await sale.end_and_wait()
    assert sale.crowd.answers == {0: UNKNOWN}
    assert sale.waited_s(0) <= 2.0
    sale.engine.always = None
    sale.buy(1)
    assert (await sale.end())[1] == Success(99)


# Sinks that ask while they are told


class Pipeliner(Crowd):
    """A saturated connection: each flush submits what waited behind its in-flight limit."""

    def __init__(self, sale: Sale, more: Sequence[int]) -> None:
        super().__init__()
        self._sale = sale
        self._more = list(more)

    def flush(self) -> None:
        super().flush()
        more, self._more = self._more, []
        for ticket in more:
            self._sale.submitted[ticket] = asyncio.get_running_loop().time()
            self._sale.batcher.submit(Purchase("p", f"u{ticket}"), self, ticket)


@simulated
async def test_request_submitted_while_answers_are_given_is_served() -> None:
    sale = Sale()
    sale.crowd = Pipeliner(sale, [1, 2])
    sale.buy(0)
    assert await sale.end() == {0: Success(99), 1: Success(98), 2: Success(97)}


@simulated
async def test_request_submitted_while_the_too_old_are_dropped_is_served() -> None:
    sale = Sale(after(0.5, BROKEN), queue_age_max_s=0.4, batch_count_max=2)
    sale.batcher.submit(Purchase("p", "u0"), Crowd(), 0)
    sale.crowd = Pipeliner(sale, [5, 6])
    await asyncio.sleep(0.05)
    sale.buy(1)  # too old when its turn comes
    await asyncio.sleep(0.3)
    sale.buy(2, 3, 4)  # more than one batch, and in time
    answers = await sale.end()
    assert answers[1] == NOT_EXECUTED
    assert [answers[ticket] for ticket in (2, 3, 4)] == [Success(99), Success(98), Success(97)]
    assert {answers[5], answers[6]} == {Success(96), Success(95)}


@simulated
async def test_request_submitted_while_the_store_is_given_up_is_answered() -> None:
    sale = Sale(always=REFUSED)
    sale.crowd = Pipeliner(sale, [2, 3])
    sale.buy(0)
    await asyncio.sleep(0)
    sale.buy(1)
    answers = await sale.end()
    assert answers[0] == answers[1] == NOT_EXECUTED
    assert {answers[2], answers[3]} <= {NOT_EXECUTED, Success(99), Success(98)}


# Draining


@simulated
async def test_drain_of_an_idle_batcher_returns_at_once() -> None:
    sale = Sale()
    await sale.batcher.drain()
    sale.buy(0)
    await sale.end()
    await sale.batcher.drain()


@simulated
async def test_drain_returns_once_everything_is_answered_also_what_comes_meanwhile() -> None:
    sale = Sale(batch_count_max=1)
    sale.buy(0, 1, 2)
    draining = asyncio.create_task(sale.batcher.drain())
    await asyncio.sleep(0.0005)
    sale.buy(3)
    await draining
    assert set(sale.crowd.answers) == {0, 1, 2, 3}


# Size


@simulated
async def test_batch_is_cut_where_its_ids_grow_too_long() -> None:
    sale = Sale(batch_size_max=100)
    for ticket in range(4):
        sale.ask(Purchase("p", "u" * 49), ticket)  # 50 with the product id
    assert len(await sale.end()) == 4
    assert [[len(users) for users in batches] for batches in sale.engine.users()] == [[2], [2]]


@simulated
async def test_single_request_is_served_however_long_its_ids_are() -> None:
    sale = Sale(batch_size_max=10)
    sale.ask(Purchase("p", "u" * 1000), 0)
    sale.ask(Purchase("p", "v" * 1000), 1)
    assert await sale.end() == {0: Success(99), 1: Success(98)}
    assert len(sale.engine.rounds) == 2


@simulated
async def test_queue_full_of_long_ids_is_busy_and_has_room_again() -> None:
    sale = Sale(queue_size_max=1000)
    for ticket in range(3):
        sale.ask(Purchase("p", "u" * 600), ticket)
    sale.ask(GetStatus("p"), 3)
    assert await sale.end() == {0: Success(99), 1: Success(98), 2: BUSY, 3: BUSY}
    sale.buy(4)
    assert (await sale.end())[4] == Success(97)


# A bug elsewhere


class BrokenSink:
    def answer(self, ticket: int, answer: Answer) -> None:
        raise ValueError(ticket)

    def flush(self) -> None:
        raise ValueError


@simulated
async def test_sink_that_fails_costs_no_other_its_answer() -> None:
    sale = Sale()
    sale.buy(0)
    sale.batcher.submit(Purchase("p", "broken"), BrokenSink(), 0)
    sale.buy(1)
    assert await sale.end() == {0: Success(99), 1: Success(97)}
    sale.buy(2)
    assert (await sale.end())[2] == Success(96)


@pytest.mark.parametrize("outcomes", [[], [[SoldOut()]], [[SoldOut()] * 3]])
def test_engine_that_answers_the_wrong_number_is_not_believed(outcomes: list[Outcome]) -> None:
    @simulated
    async def run() -> None:
        async def wrong(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
            return outcomes

        sale = Sale(always=wrong)
        sale.buy(0, 1)
        assert await sale.end() == {0: UNKNOWN, 1: UNKNOWN}

    run()


# One product in trouble


@simulated
async def test_product_that_is_refused_holds_up_no_other() -> None:
    async def refuse_p(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        await asyncio.sleep(0.001)
        return [REFUSED if batch.product_id == "p" else sale.engine.memory.decide(batch) for batch in batches]

    sale = Sale(always=refuse_p)
    sale.engine.memory.create("q", 100)
    sale.buy(0)
    await asyncio.sleep(0.5)
    for ticket in range(1, 30):
        sale.buy(ticket, product_id="q")
        await asyncio.sleep(0.1)
        assert sale.waited_s(ticket) < 0.06
    answers = await sale.end()
    assert answers.pop(0) == NOT_EXECUTED
    assert 1.8 < sale.waited_s(0) <= 2.0
    assert all(isinstance(answer, Success) for answer in answers.values())
    assert len(sale.engine.rounds) < 100, "a refused product is asked for again and again"


@simulated
async def test_product_whose_batch_is_stuck_waits_for_it_and_the_others_do_not() -> None:
    async def lose_p(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        await asyncio.sleep(0.001)
        return [SILENT if batch.product_id == "p" else sale.engine.memory.decide(batch) for batch in batches]

    sale = Sale(always=lose_p)
    sale.engine.memory.create("q", 100)
    sale.buy(0)
    sale.buy(1, product_id="q")
    await asyncio.sleep(0.01)
    sale.buy(2)
    sale.buy(3, product_id="q")
    await asyncio.sleep(0.2)
    assert sale.crowd.answers == {1: Success(99), 3: Success(98)}
    assert all(
        batch.requests == (Purchase("p", "u0"),) for b in sale.engine.rounds for batch in b if batch.product_id == "p"
    )
    sale.engine.always = None
    answers = await sale.end()
    assert (answers[0], answers[2]) == (Success(99), Success(98))


@pytest.mark.parametrize("count", [1, 20])  # of twenty answers the next round is on its way already
def test_bug_in_group_commit_is_answered_unknown_and_service_goes_on(count: int) -> None:
    @simulated
    async def run() -> None:
        sale = Sale()
        take_outcomes = sale.batcher._take_outcomes

        def fail_once(pending: list[Any], outcomes: list[Outcome]) -> None:
            sale.batcher._take_outcomes = take_outcomes  # type: ignore[method-assign]
            sale.buy(100)
            raise ZeroDivisionError

        sale.batcher._take_outcomes = fail_once  # type: ignore[method-assign]
        sale.buy(*range(count))
        await asyncio.sleep(0)
        sale.buy(50)
        answers = await sale.end()
        assert [answers[ticket] for ticket in range(count)] == [UNKNOWN] * count
        assert answers[50] == (UNKNOWN if count == 20 else Success(98))
        assert isinstance(answers[100], Success)
        assert sale.engine.running_count == 0

    run()


# The recorder and the meter


class Evidence:
    """A recorder and a meter that remember."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Answer]] = []
        self.calls: list[int] = []
        self.measured: list[tuple[list[str], list[float]]] = []
        self.refused: list[str] = []

    def record(self, requests: list[Request], answers: list[Answer]) -> None:
        self.calls.append(len(requests))
        for request, answer in zip(requests, answers, strict=True):
            self.told.append((request.user_id, without_version(answer)))

    def measure(self, requests: list[Request], answers: list[Answer], arrivals: list[float]) -> None:
        assert len(requests) == len(answers)
        self.measured.append(([request.user_id for request in requests], arrivals))

    def refuse(self, requests: list[Request], answers: list[Answer]) -> None:
        assert len(requests) == len(answers)
        self.refused += [request.user_id for request in requests]


@simulated
async def test_a_recorder_is_told_what_everybody_is_told_once_for_each_batch() -> None:
    sale, evidence = Sale(stock=3), Evidence()
    sale.batcher = make_batcher(sale.engine, Limits(batch_count_max=4, queue_count_max=6), evidence, evidence)
    sale.buy(*range(8))  # there is no room for two
    answers = await sale.end()
    assert [answers[6], answers[7]] == [BUSY, BUSY]
    assert evidence.calls == [1, 1, 4, 2]
    assert evidence.refused == ["u6", "u7"]
    assert [users for users, _ in evidence.measured] == [["u0", "u1", "u2", "u3"], ["u4", "u5"]]
    assert sorted(evidence.told) == sorted((f"u{ticket}", answer) for ticket, answer in answers.items())


@simulated
async def test_what_waits_is_known() -> None:
    sale = Sale()
    sale.buy(0)
    await asyncio.sleep(0)  # it is on its way
    sale.buy(1, 10)
    assert (sale.batcher.waiting_count, sale.batcher.waiting_size) == (2, len("p") * 2 + len("u1") + len("u10"))
    await sale.end()
    assert (sale.batcher.waiting_count, sale.batcher.waiting_size) == (0, 0)


@simulated
async def test_a_recorder_is_told_of_those_who_were_answered_without_the_store() -> None:
    sale, evidence = Sale(hang, always=REFUSED), Evidence()
    sale.batcher = make_batcher(sale.engine, None, evidence, evidence)
    sale.buy(0)
    await asyncio.sleep(0.5)
    sale.buy(1, 2)
    answers = await sale.end()
    assert answers == {0: UNKNOWN, 1: NOT_EXECUTED, 2: NOT_EXECUTED}
    assert evidence.told == [("u0", UNKNOWN), ("u1", NOT_EXECUTED), ("u2", NOT_EXECUTED)]
    measured = dict(zip(*map(chain.from_iterable, zip(*evidence.measured, strict=True)), strict=True))
    assert measured == {f"u{ticket}": at for ticket, at in sale.submitted.items()}


# Refused at once


PAUSE_S = Limits().breaker_pause_s
ASIDE = NotExecuted("not now", alone=True)


async def give_up(sale: Sale) -> None:
    """Have one wait in vain, and another one find out, so that whoever comes then is refused."""
    sale.buy(0)
    await sale.end()
    assert 1.5 < sale.waited_s(0) <= 2.0
    sale.buy(1000)
    await sale.end()


@simulated
async def test_once_somebody_has_waited_in_vain_whoever_comes_is_refused_at_once() -> None:
    sale = Sale(always=REFUSED)
    await give_up(sale)
    count = len(sale.engine.rounds)
    sale.buy(1, 2)
    sale.buy(3, product_id="q")
    assert {ticket: sale.crowd.answers[ticket] for ticket in (1, 2, 3)} == dict.fromkeys((1, 2, 3), NOT_EXECUTED)
    assert len(sale.engine.rounds) == count, "the store was asked"
    assert sale.batcher.breakers.store.state is State.OPEN


@simulated
async def test_now_and_then_one_finds_out_whether_the_store_is_back() -> None:
    sale = Sale(always=REFUSED)
    await give_up(sale)
    count = len(sale.engine.rounds)
    for ticket in range(1, 101):  # one second of a crowd
        sale.buy(ticket)
        await asyncio.sleep(0.01)
    answers = await sale.end()
    assert set(answers.values()) == {NOT_EXECUTED}
    assert all(sale.waited_s(ticket) < 0.05 for ticket in range(1, 101)), "who finds out is told at once too"
    assert 3 <= len(sale.engine.rounds) - count <= 4
    assert all(len(batches[0].requests) == 1 for batches in sale.engine.rounds[count:])
    sale.engine.always = None
    await asyncio.sleep(PAUSE_S)
    sale.buy(200, 201)
    await asyncio.sleep(0.002)
    assert sale.crowd.answers[200] == Success(99)
    assert sale.crowd.answers[201] == NOT_EXECUTED, "it was not known yet"
    sale.buy(202)
    assert (await sale.end())[202] == Success(98)
    assert sale.batcher.breakers.are_closed


@simulated
async def test_who_was_let_in_before_keeps_waiting_and_finds_the_store_as_soon_as_ever() -> None:
    sale = Sale(always=REFUSED)
    sale.buy(0)
    await asyncio.sleep(1.0)
    sale.buy(1)
    await asyncio.sleep(0.95)
    sale.buy(2)
    assert sale.crowd.answers == {0: NOT_EXECUTED, 2: NOT_EXECUTED}
    sale.engine.always = None
    back_at = asyncio.get_running_loop().time()
    assert (await sale.end())[1] == Success(99)
    assert sale.crowd.times[1] - back_at < 0.06
    assert sale.batcher.breakers.are_closed


@simulated
async def test_a_silent_store_holds_up_one_at_a_time() -> None:
    sale = Sale(always=hang)
    await give_up(sale)
    await asyncio.sleep(PAUSE_S)
    for ticket in range(1, 101):
        sale.buy(ticket)
        await asyncio.sleep(0.02)
    await sale.end()
    waiting = [ticket for ticket in range(1, 101) if sale.waited_s(ticket) > 0.05]
    assert waiting == [1]
    assert sale.crowd.answers[1] == UNKNOWN, "it was sent"
    assert {sale.crowd.answers[ticket] for ticket in range(2, 101)} == {NOT_EXECUTED}


@simulated
async def test_trouble_of_long_ago_refuses_nobody() -> None:
    sale = Sale(always=REFUSED)
    await sale.end_and_wait()
    sale.buy(0)
    await sale.end_and_wait()
    sale.engine.always = None
    sale.buy(1, 2, 3)
    answers = await sale.end()
    assert [answers[ticket] for ticket in (1, 2, 3)] == [Success(99), Success(98), Success(97)]


@pytest.mark.parametrize("outcome", [ASIDE, Ambiguous("not there", alone=True), ValueError("a bug with p alone")])
def test_trouble_of_one_product_refuses_nobody_who_wants_another(outcome: Step) -> None:
    @simulated
    async def run() -> None:
        sale = Sale(always=outcome)
        sale.engine.memory.create("q", 100)
        await give_up(sale)
        sale.buy(1)
        assert sale.crowd.answers[1] == NOT_EXECUTED
        sale.engine.always = None
        sale.buy(2, 3, product_id="q")  # nobody had asked for it, all that time
        answers = await sale.end()
        assert (answers[2], answers[3]) == (Success(99), Success(98))
        sale.buy(4)
        assert (await sale.end())[4] == NOT_EXECUTED
        await asyncio.sleep(PAUSE_S)
        sale.buy(5)
        await sale.end()
        sale.buy(6)
        answers = await sale.end()
        assert (answers[5], answers[6]) == (Success(99), Success(98))

    run()


@simulated
async def test_a_product_that_is_refused_while_others_are_decided_is_alone_with_it() -> None:
    async def refuse_p(batches: Sequence[Batch], timeout_s: float) -> list[Outcome]:
        await asyncio.sleep(0.001)
        return [REFUSED if batch.product_id == "p" else sale.engine.memory.decide(batch) for batch in batches]

    sale = Sale(always=refuse_p)
    sale.engine.memory.create("q", 1000)
    sale.buy(0)
    for ticket in range(1, 60):
        sale.buy(ticket, product_id="q")
        await asyncio.sleep(0.05)
    sale.buy(60)
    answers = await sale.end()
    assert answers.pop(0) == answers.pop(60) == NOT_EXECUTED
    assert sale.waited_s(60) < 0.05
    assert all(isinstance(answer, Success) for answer in answers.values())
    assert sale.batcher.breakers.store.state is State.CLOSED


@simulated
async def test_defective_keys_refuse_nobody_without_asking() -> None:
    sale = Sale(always=BROKEN)
    for ticket in range(30):
        sale.buy(ticket)
        await asyncio.sleep(0.1)
    await sale.end()
    assert len(sale.engine.rounds) == 30
    assert sale.batcher.breakers.are_closed


@simulated
async def test_refused_at_once_is_recorded_like_any_other() -> None:
    sale, evidence = Sale(always=REFUSED), Evidence()
    sale.batcher = make_batcher(sale.engine, None, evidence)
    sale.buy(0)
    await sale.end()
    sale.buy(1, 2)
    assert evidence.told == [("u0", NOT_EXECUTED), ("u2", NOT_EXECUTED)]
    await sale.end()
    assert evidence.told[2:] == [("u1", NOT_EXECUTED)]


def test_the_log_tells_once_that_requests_are_refused_and_once_that_they_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @simulated
    async def run(outcome: Step) -> None:
        sale = Sale(always=outcome)
        for ticket in range(100):
            sale.buy(ticket)
            await asyncio.sleep(0.1)
        sale.engine.always = None
        for ticket in range(100, 110):
            sale.buy(ticket)
            await asyncio.sleep(0.1)
        await sale.end()

    for outcome in (REFUSED, ASIDE):
        run(outcome)
    assert [record.getMessage() for record in caplog.records] == [
        "the store decides nothing: requests are refused until it decides one",
        "the store decides again: requests are taken",
        "product 'p' is not decided: its requests are refused until one is",
        "product 'p' is decided again: its requests are taken",
    ]


@simulated
async def test_who_asks_again_as_soon_as_it_is_refused_is_answered_each_time() -> None:
    sale = Sale(always=REFUSED)
    sale.buy(0)
    await sale.end()
    await asyncio.sleep(PAUSE_S)
    sale.crowd = Pipeliner(sale, [2, 3])
    sale.submitted.clear()
    sale.buy(1)  # finds out, and asks for more when it is told
    assert await sale.end() == dict.fromkeys((1, 2, 3), NOT_EXECUTED)
    assert sale.waited_s(3) == 0
