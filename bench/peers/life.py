"""The life of a peer: listen, print the line that launch.ServerProcess waits for, serve until SIGTERM."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

from flashsale.sockets import bind

Start = Callable[[socket.socket], Awaitable[None]]


async def live(start: Start, *, store: str) -> None:
    """Serve on a free port of loopback until a signal comes.

    Args:
        start: begins to serve on a bound socket.
        store: the store's address, for the line.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    await start(listening)
    gc.freeze()  # as the server does
    sys.stdout.write(f"Server initialized - Listening on 127.0.0.1:{port}, Redis: {store}\n")
    sys.stdout.flush()
    await stopping.wait()
