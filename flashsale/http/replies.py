"""What goes back to an HTTP client: values, made of bytes when they are sent."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


class Reply(Struct, frozen=True):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})

    def as_bytes(self, *more: tuple[bytes, bytes]) -> bytes:
        """Return it as it goes over the wire, with more headers.

        Raises:
            ValueError: a header would end its line.
        """
        lines = [_STATUS_LINES[self.status]]
        lines += [b"%b: %b" % header for header in (*more, *self.headers)]
        head = b"\r\n".join(lines)
        if head.count(b"\n") >= len(lines) or head.count(b"\r") >= len(lines):
            raise ValueError("a header has more than one line")
        return b"%b\r\n\r\n%b" % (head, self.body)


def json_reply(status: int, value: object, *, retry_after_s: float = 0, headers: Headers | None = None) -> Reply:
    """Return a value as JSON."""
    return _reply(status, JSON, _encode(value), retry_after_s, headers)


def problem(
    status: int, kind: str, detail: str, *, retry_after_s: float = 0, more: Mapping[str, object] | None = None
) -> Reply:
    """Return what went wrong as RFC 9457 has it: {"type", "title", "status", "detail"} and whatever tells more.

    Args:
        status: of HTTP.
        kind: a word that programs may go by; the type is `urn:flashsale:<kind>`.
        detail: one sentence for a person.
        retry_after_s: when it is worth another try; 0 when that is not known.
        more: further members.
    """
    value = {
        "type": f"urn:flashsale:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(more or {}),
    }
    return _reply(status, _PROBLEM, _encode(value), retry_after_s)


def _reply(
    status: int, kind: tuple[bytes, bytes], body: bytes, retry_after_s: float, headers: Headers | None = None
) -> Reply:
    made = [kind, (b"content-length", b"%d" % len(body)), *(headers or ())]
    if retry_after_s:
        made.append((b"retry-after", b"%d" % max(1, -(-retry_after_s // 1))))
    return Reply(status, made, body)
