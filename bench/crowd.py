"""Lets a crowd loose: starts the generators, gives the signal, collects what they measured, and ends them for sure."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable

import msgspec

from bench.load import Load, Measured
from bench.result import Result
from bench.stage import child_environment
from flashsale.errors import FlashsaleError

_READY_TIMEOUT_S = 60.0
_GRACE_S = 15.0
_LINE_SIZE_MAX = 256 * 1024 * 1024

Progress = Callable[[int], None]
Signal = Callable[[], Awaitable[None]]


async def run_load(
    load: Load, *, process_count: int = 1, progress: Progress | None = None, signal: Signal | None = None
) -> Result:
    """Run a load in processes of its own and return what came of it.

    Args:
        load: what to do.
        process_count: how many generators share it.
        progress: called with the number of answers so far.
        signal: awaited when everybody is connected; the load starts when it returns.

    Raises:
        FlashsaleError: a generator died or hangs.
    """
    parts = load.shared_among(process_count)
    generators: list[Process] = []
    told = [0] * len(parts)

    def tell(index: int, count: int) -> None:
        told[index] = count
        if progress is not None:
            progress(sum(told))

    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            for part in parts:
                generator = await _start(part)
                generators.append(generator)
            for generator in generators:
                await _line(generator)
        if signal is not None:
            await signal()
        for generator in generators:
            assert generator.stdin is not None
            generator.stdin.write(b"go\n")
        async with asyncio.timeout(load.timeout_s + _GRACE_S):
            measured = await asyncio.gather(
                *(_collect(generator, index, tell) for index, generator in enumerate(generators))
            )
    except TimeoutError:
        raise FlashsaleError("a load generator hangs") from None
    finally:
        for generator in generators:
            if generator.returncode is None:
                generator.kill()
            await generator.wait()
    return Result(measured, connection_count=load.connection_count)


async def _start(load: Load) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.generator",
        msgspec.json.encode(load).decode(),
        stdin=PIPE,
        stdout=PIPE,
        env=child_environment(),
        limit=_LINE_SIZE_MAX,
    )


async def _collect(generator: Process, index: int, tell: Callable[[int, int], None]) -> Measured:
    while True:
        line = await _line(generator)
        if line.startswith(b"{"):
            assert generator.stdin is not None
            generator.stdin.close()
            await generator.wait()
            return msgspec.json.decode(line, type=Measured)
        tell(index, int(line))


async def _line(generator: Process) -> bytes:
    assert generator.stdout is not None
    line = await generator.stdout.readline()
    if not line.endswith(b"\n"):
        raise FlashsaleError("a load generator ended before its time")
    return line
