"""A client in the words of HTTP/2 alone, for what no library would send: it takes what it likes, when it likes."""

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from tests.grpc.client import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
ACKNOWLEDGED = END_STREAM = 1
END_HEADERS = 4
CANCEL = struct.pack(">I", 8)
INITIAL_WINDOW_SIZE = 4
WINDOW_SIZE_MAX = 2**31 - 1
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(raw: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(raw)) + raw


def head(path: str) -> bytes:
    """Return the head of a call, each field as a literal."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    pairs = ((name.encode(), value.encode(errors="surrogateescape")) for name, value in fields.items())
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


class Frames:
    """A connection."""

    def __init__(self, port: int, *, window: int = 65_535, buffer_size: int | None = None) -> None:
        self.socket = socket.socket()
        if buffer_size is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self._buffer = b""
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.socket.sendall(frame(kind, flags, stream, payload))

    def call(self, stream: int, path: str, raw: bytes | None = None, *, last: bool = True) -> None:
        """Begin a call, with one message or none; the last of it or not."""
        self.send(HEADERS, END_HEADERS, stream, head(path))
        if raw is not None:
            self.send(DATA, END_STREAM if last else 0, stream, message(raw))

    def open_window(self, stream: int, size: int) -> None:
        """Take so many more bytes."""
        self.send(WINDOW, 0, stream, struct.pack(">I", size))

    def take(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Give the frames that come, each as kind, flags, stream and payload, until the connection ends."""
        while True:
            while len(self._buffer) >= 9 and len(self._buffer) >= (end := 9 + int.from_bytes(self._buffer[:3])):
                kind, flags = self._buffer[3:5]
                stream, payload = int.from_bytes(self._buffer[5:9]), self._buffer[9:end]
                self._buffer = self._buffer[end:]
                if kind in {SETTINGS, PING} and not flags & ACKNOWLEDGED:
                    self.send(kind, ACKNOWLEDGED, 0, payload if kind == PING else b"")
                yield kind, flags, stream, payload
            try:
                data = self.socket.recv(65_536)
            except ConnectionError:
                return
            if not data:
                return
            self._buffer += data

    def end_of(self, stream: int) -> list[tuple[int, bytes]]:
        """Return the kinds and payloads of what comes for a stream, up to its end."""
        heard = []
        for kind, flags, number, payload in self.take():
            if number == stream:
                heard.append((kind, payload))
                if kind == RESET or (kind in {DATA, HEADERS} and flags & END_STREAM):
                    break
        return heard


def block(port: int) -> Frames:
    """Return a connection of which nothing is read any more, with a server that has much to say on it."""
    frames = Frames(port, window=WINDOW_SIZE_MAX, buffer_size=4096)
    frames.open_window(0, WINDOW_SIZE_MAX - 65_535)
    asked = ServerReflectionRequest(file_containing_symbol="flashsale.v1.OrderService").SerializeToString()
    frames.call(1, REFLECTION, asked, last=False)
    waits = since = 0
    patience = time.monotonic() + PATIENCE_S
    while time.monotonic() < patience:
        frames.socket.sendall(frame(DATA, 0, 1, message(asked)) * 20)
        time.sleep(0.02)  # else the requests fill the server's window before it has read them
        now = unsent(port, frames.socket.getsockname()[1])
        if now != waits:
            waits, since = now, time.monotonic()
        elif now and time.monotonic() - since > 0.5:
            return frames
    raise AssertionError("the server never stopped")


def unsent(port: int, to_port: int) -> int:
    """Return how many bytes of a server the kernel has not got rid of."""
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:  # where gRPC's are, with any address
        _, ours, theirs, _, queues, *_ = line.split()
        if (int(ours.split(":")[1], 16), int(theirs.split(":")[1], 16)) == (port, to_port):
            return int(queues.split(":")[0], 16)
    return 0
