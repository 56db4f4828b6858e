"""grpc.aio's server, in place of which another one goes on when a call has ended it.

The path of a call may be any bytes; grpc.aio takes it for UTF-8, and one call with another path would end the server
and every call that is under way. Here the calls that are under way end well, and new ones find the port open again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from grpc._cython import cygrpc

from flashsale.errors import ListenError

_OPEN_PAUSE_S = 0.1
"""Between two of them, so that those who end are few."""
_END_S = 10.0
"""For the calls of one that has ended; streams go on at the next one from where they were."""

_CANCEL_S = 0.5
"""For those that were cancelled; a connection whose client takes nothing holds its server up for longer."""

_log = logging.getLogger(__name__)


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    """One server."""

    def __init__(self, options: Sequence[tuple[str, int]], call_count_max: int, failed: Callable[[], None]) -> None:
        super().__init__(asyncio.get_running_loop(), None, (), None, tuple(options), call_count_max)
        self._failed = failed

    def _serving_task_crash_handler(self, task: "asyncio.Task[None]") -> None:
        """Called by grpc.aio when the task has ended that takes calls; its own handler cancels those it has taken."""
        if not task.cancelled() and task.exception() is not None:
            _log.debug("no more calls are taken", exc_info=task.exception())
            self._failed()


class Core:
    """Serves calls on one address until it is told to end. Belongs to one event loop."""

    def __init__(self, handlers: Any, options: Sequence[tuple[str, int]], *, call_count_max: int) -> None:
        """Serve nothing yet.

        Args:
            handlers: finds the handler of a call, as a grpc.GenericRpcHandler does.
            options: what gRPC's core is told; the port has to be shared.
            call_count_max: calls under way; one beyond them is told RESOURCE_EXHAUSTED.
        """
        self._handlers = handlers
        self._options = options
        self._call_count_max = call_count_max
        self._address = ""
        self._server: _Server | None = None
        self._failed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._servers: set[_Server] = set()
        """That one and those that have failed, with calls under way."""
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """Serve on HOST:PORT; raise ListenError when it cannot be had."""
        self._address = address
        await self._open()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; return when those under way have ended, which they have to after so many seconds.

        Soon after that it returns in any case: a client that takes nothing does not hold it up.

        It may be called again meanwhile, with less time.
        """
        if self._keeping is not None:
            self._keeping.cancel()
        ends = {self._begin_end(server, grace_s) for server in self._servers}
        if ends:
            await asyncio.wait(ends, timeout=grace_s + _CANCEL_S)

    async def _open(self) -> None:
        server = self._server = _Server(self._options, self._call_count_max, self._failed.set)
        server.add_generic_rpc_handlers((self._handlers,))
        try:
            opened = server.add_insecure_port(self._address.encode())
        except RuntimeError:
            opened = 0
        if not opened:
            raise ListenError(f"cannot listen on {self._address}: gRPC does not get it")
        await server.start()
        self._servers.add(server)

    def _begin_end(self, server: _Server, grace_s: float) -> asyncio.Task[None]:
        ending = asyncio.get_running_loop().create_task(self._end(server, grace_s))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def _end(self, server: _Server, grace_s: float) -> None:
        await _end(server, grace_s)
        self._servers.discard(server)

    async def _keep(self) -> None:
        """Put another server in the place of one that has failed, for ever."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            if self._server is not None:
                self._begin_end(self._server, _END_S)
            try:
                await self._open()
            except ListenError as error:
                _log.error("%s", error)
                self._failed.set()
            await asyncio.sleep(_OPEN_PAUSE_S)


async def _end(server: _Server, grace_s: float) -> None:
    """Have a server end; one that has failed says first with what."""
    with suppress(Exception):  # it was noted when it failed
        await server.shutdown(grace_s)
        return
    await server.shutdown(grace_s)
