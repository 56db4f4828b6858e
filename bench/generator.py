"""A load generator: one process, one event loop, its part of the crowd.

    python -m bench.generator '<a Load as JSON>'

Writes `ready` once it is connected, starts when it reads a line, writes the number of its answers every TICK_S, and at
last a Measured as JSON; it ends when its input does, so that nothing is lost on the way, or after the load's time-out.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from itertools import cycle

import msgspec
import uvloop

from bench import proc
from bench.buyer import KINDS, Blocks, Buyer, Frames, Tally, clock_ns
from bench.http.buyer import HTTP_KINDS, HttpBuyer, HttpPurchases
from bench.load import (
    NO_ANSWER,
    NOT_CONNECTED,
    NOT_SENT,
    SOLD_OUT,
    SUCCESS,
    TICK_S,
    Door,
    Load,
    Measured,
    Sample,
)
from bench.ticker import ticking
from flashsale.launch import raise_descriptor_limit

_CONNECT_TIMEOUT_S = 30.0
_PACE_NS_MIN = 100_000
"""Requests of the open loop are sent at most this much after they are due, and often several at once."""


def main() -> None:
    """Run the load given on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends its generators
    load = msgspec.json.decode(sys.argv[1], type=Load)
    raise_descriptor_limit()
    try:
        measured = uvloop.run(_generate(load))
        _tell(msgspec.json.encode(measured).decode())
        sys.stdin.read()  # a pipe that is closed while it is read may lose its end
    except BrokenPipeError:  # the benchmark is gone, nobody wants to know
        sys.exit(1)


async def _generate(load: Load) -> Measured:
    tally = Tally(load.connection_count, HTTP_KINDS if load.door is Door.HTTP else KINDS)
    buyers = await _connect(load, tally)
    _tell("ready")
    if not sys.stdin.readline():  # blocking is fine: there is nothing else to do yet
        raise BrokenPipeError
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing below makes cycles

    loop = asyncio.get_running_loop()
    samples: list[tuple[int, int, int]] = []
    cpu_s = time.process_time()
    started_ns = clock_ns()
    sampler = loop.create_task(_sample(tally, samples, int(load.timeout_s / TICK_S) + 1))
    driver = loop.create_task(_drive(load, buyers, tally, started_ns))
    try:
        async with asyncio.timeout(load.timeout_s):
            await driver
            await tally.finished.wait()
    except TimeoutError:
        pass
    ended_ns = clock_ns()
    cpu_s = time.process_time() - cpu_s
    sampler.cancel()
    samples.append(_state(tally))
    for buyer in buyers:
        tally.add(NO_ANSWER, buyer.waiting_count)
        if load.request_count is not None:
            tally.add(NOT_SENT, buyer.remaining_count)
    counts = tally.counts()
    if load.rate_per_s is not None and load.planned_count is not None:
        missing_count = load.planned_count - sum(counts.values())
        if missing_count > 0:
            counts[NOT_SENT] = counts.get(NOT_SENT, 0) + missing_count
    for buyer in buyers:
        buyer.close()
    return Measured(
        counts=counts,
        latencies_us=dict(tally.latencies_us),
        started_ns=started_ns,
        ended_ns=ended_ns,
        samples=_differences(samples),
        cpu_s=cpu_s,
        memory_kib=proc.rss_kib_max(os.getpid()),
    )


async def _connect(load: Load, tally: Tally) -> list[Buyer]:
    """Connect everybody at once, before any time is taken; count those who do not get through."""
    loop = asyncio.get_running_loop()
    make_buyer: type[Buyer]
    frames: Blocks
    if load.door is Door.HTTP:
        make_buyer, frames = HttpBuyer, HttpPurchases(load.product_id, f"{load.host}:{load.port}")
    else:
        make_buyer, frames = Buyer, Frames(load.product_id, request_ids=load.request_ids)
    host = str(socket.getaddrinfo(load.host, load.port, type=socket.SOCK_STREAM)[0][4][0])  # once, not for each

    async def connect(connection: int) -> Buyer | None:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, buyer = await loop.create_connection(lambda: make_buyer(connection, frames, tally), host, load.port)
        except OSError:  # also the time-out
            if load.rate_per_s is None:
                tally.add(NOT_CONNECTED, load.request_count or 1)
            tally.close_one()
            return None
        return buyer

    first = load.first_connection
    found = await asyncio.gather(*(connect(first + index) for index in range(load.connection_count)))
    return [buyer for buyer in found if buyer is not None]


async def _drive(load: Load, buyers: list[Buyer], tally: Tally, started_ns: int) -> None:
    """Make the buyers buy until the load's end."""
    if load.rate_per_s is not None:
        if buyers:
            await _pace(load, buyers, started_ns)
    else:
        for buyer in buyers:
            buyer.start(load.pipeline_depth, load.request_count)
        if load.request_count is not None:
            return
        assert load.duration_s is not None
        try:
            async with asyncio.timeout(load.duration_s):
                await tally.finished.wait()  # before the time only if every connection is lost
        except TimeoutError:
            pass
    for buyer in buyers:
        buyer.end()


async def _pace(load: Load, buyers: list[Buyer], started_ns: int) -> None:
    """Send the requests of the open loop when they are due.

    A request that is sent late, because this process or the server was slow, is still counted from when it was due.
    """
    assert load.rate_per_s is not None
    count = load.planned_count
    assert count is not None
    interval_ns = 1e9 / load.rate_per_s
    first_ns = started_ns + load.first_due_s * 1e9
    turns = cycle(buyers)
    sent_count = 0
    done = asyncio.Event()

    def send_due() -> None:
        nonlocal sent_count
        due_count = min(count, int((clock_ns() - first_ns) / interval_ns) + 1)
        for index in range(sent_count, due_count):
            next(turns).send(1, int(first_ns + index * interval_ns))
        sent_count = max(sent_count, due_count)
        if sent_count == count:
            done.set()

    pace_ns = max(_PACE_NS_MIN, interval_ns)
    next_due_ns = max(first_ns - clock_ns(), (first_ns - clock_ns()) % pace_ns)  # tick when something is due
    with ticking(send_due, first_s=next_due_ns / 1e9, interval_s=pace_ns / 1e9):
        await done.wait()


async def _sample(tally: Tally, samples: list[tuple[int, int, int]], sample_count_max: int) -> None:
    """Note the state of the tally every TICK_S, and tell how far it is."""
    loop = asyncio.get_running_loop()
    next_at = loop.time()
    for _ in range(sample_count_max):
        next_at += TICK_S
        await asyncio.sleep(next_at - loop.time())
        samples.append(_state(tally))
        _tell(str(sum(samples[-1])))


def _state(tally: Tally) -> tuple[int, int, int]:
    counts = tally.counts()
    success_count, sold_out_count = counts.pop(SUCCESS, 0), counts.pop(SOLD_OUT, 0)
    return success_count, sold_out_count, sum(counts.values())


def _differences(states: list[tuple[int, int, int]]) -> list[Sample]:
    pairs = zip([(0, 0, 0), *states], states, strict=False)
    return [Sample(*(now - then for then, now in zip(*pair, strict=True))) for pair in pairs]


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
