"""The client's side of `/live`: what a server tells of itself each second, over HTTP."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from flashsale.errors import ConnectionLostError, ProtocolError
from flashsale.live import Snapshot

EVENT_SIZE_MAX: Final = 1024 * 1024
"""Bytes of one picture; fifty products with the longest ids and 64 workers have a tenth of it."""
_LINE_SIZE_MAX = 16 * 1024
"""Bytes of a line of HTTP, and of its head."""
_READ_SIZE = 64 * 1024
_CONNECT_TIMEOUT_S = 5.0
SILENCE_MAX_S: Final = 10.0
"""A server that says nothing for so long is gone, or hangs."""

_decode = msgspec.json.Decoder(Snapshot).decode


async def follow(host: str, port: int) -> AsyncGenerator[Snapshot, None]:
    """Yield a picture of the server each second.

    Raises:
        ConnectionLostError: there is no server, it ended, or it says nothing any more.
        ProtocolError: what is there is no server of this kind.
    """
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=_LINE_SIZE_MAX)
    except OSError as error:  # also the time-out
        raise ConnectionLostError(f"cannot reach a server at {where}: {_reason(error)}") from error
    try:
        writer.write(f"GET /live HTTP/1.1\r\nhost: {where}\r\naccept: text/event-stream\r\n\r\n".encode())
        events = _Events(reader)
        await events.begin()
        while True:
            yield _decode(await events.next())
    except (msgspec.DecodeError, ValueError, asyncio.LimitOverrunError) as error:
        raise ProtocolError(f"what listens at {where} does not serve /live as this version knows it") from error
    except (EOFError, OSError) as error:
        raise ConnectionLostError(f"the server at {where} is gone: {_reason(error)}") from error
    finally:
        writer.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it says nothing"
    if not isinstance(error, OSError):
        return "it ended the connection"
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)  # asyncio's own text repeats the address


class _Events:
    """The body of an answer, event by event; raises ValueError when it is no stream of them, EOFError at its end."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._chunked = False
        self._waiting = b""

    async def begin(self) -> None:
        """Read what is ahead of the body."""
        async with asyncio.timeout(SILENCE_MAX_S):
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                if error.partial and not error.partial.startswith(b"HTTP/"[: len(error.partial)]):
                    raise ValueError("this is not HTTP") from error
                raise
        status, *lines = head.lower().split(b"\r\n")
        headers = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if status.split()[1:2] != [b"200"] or not headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            raise ValueError("this is not /live")
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"

    async def next(self) -> bytes:
        """Return the data of the next event that has any; all else is a comment."""
        data: list[bytes] = []
        while not data:
            event, end, rest = self._waiting.partition(b"\n\n")
            if end:
                self._waiting = rest
                data = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            elif len(event) > EVENT_SIZE_MAX:
                raise ValueError("an event is too large")
            else:
                self._waiting += await self._read()
        return b"\n".join(data)

    async def _read(self) -> bytes:
        async with asyncio.timeout(SILENCE_MAX_S):
            piece = await (self._read_chunk() if self._chunked else self._reader.read(_READ_SIZE))
        if not piece:
            raise EOFError
        return piece

    async def _read_chunk(self) -> bytes:
        """Return the next chunk (RFC 9112, 7.1); nothing at the end."""
        size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
        if not 0 <= size <= EVENT_SIZE_MAX:
            raise ValueError("a chunk is too large")
        return (await self._reader.readexactly(size + 2))[:-2]
