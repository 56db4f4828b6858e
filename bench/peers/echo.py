"""The ceiling: sends every byte back. No server in this language on this event loop can be faster.

python -m bench.peers.echo
"""

import asyncio
import socket
from typing import cast

import uvloop

from bench.peers.life import live
from flashsale.sockets import LISTEN_BACKLOG


class Echo(asyncio.Protocol):
    """One client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


async def _start(listening: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(Echo, sock=listening, backlog=LISTEN_BACKLOG)


if __name__ == "__main__":
    uvloop.run(live(_start, store="none"))
