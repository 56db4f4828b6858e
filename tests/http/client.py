"""A client of the HTTP door, and one that writes its own bytes."""

import asyncio
import http.client
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from flashsale.store.admin import Admin

PATIENCE_S = 30.0


def operate_in(home: Path, call: Callable[[Admin], Awaitable[Any]]) -> Any:
    """Have the operator do something with the embedded store in a directory; return what the call returns."""

    async def run() -> Any:
        async with Admin(f"unix://{home}/valkey.sock") as admin:
            return await call(admin)

    return asyncio.run(run())


class Answered(Struct):
    """What came back."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Http:
    """A client that keeps its connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def ask(self, method: str, url: str, body: object = None, **headers: str) -> Answered:
        """Ask; a body that is not bytes is sent as JSON. Underscores in names of headers are hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            named.setdefault("content-type", "application/json")
        self._connection.request(method, url, body, named)
        answer = self._connection.getresponse()
        return Answered(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def close(self) -> None:
        self._connection.close()


class Raw:
    """A client whose bytes are anything at all."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> bytes:
        """Return all that comes until the server ends the connection."""
        parts = []
        while part := self.socket.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)

    def read_until(self, end: bytes) -> bytes:
        """Return what comes up to this."""
        got = b""
        while not got.endswith(end):
            part = self.socket.recv(1 << 16)
            assert part, got
            got += part
        return got

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
