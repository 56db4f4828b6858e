"""What an HTTP request carries, read and checked: bodies, parameters, ids."""

import re
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from flashsale.http.replies import Receive, Reply, Scope, problem

T = TypeVar("T")

PARAMETER_COUNT_MAX = 32

_FIELD = re.compile(r"`\$\.(\w+)`$")
_MISSING = re.compile(r"missing required field `(\w+)`$")
_INVALID_JSON = problem(400, "invalid-json", "the body is not the JSON that is expected here")
_WRONG_TYPE = problem(415, "unsupported-media-type", "the body must be application/json")


class RefusedError(Exception):
    """The request is answered already: with `reply`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class GoneError(Exception):
    """Nobody is there any more to answer."""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the body.

    Raises:
        RefusedError: it is announced as something else than JSON.
        GoneError: the client has gone before its end.
    """
    for name, value in scope["headers"]:
        if name == b"content-type":
            if not is_json(value):
                raise RefusedError(_WRONG_TYPE)
            break
    return await read_to_end(receive)


async def read_to_end(receive: Receive) -> bytes:
    """Return the body, whatever it is, or nothing; its size is bounded by the session.

    Also where none is asked for, nothing is done before its end: the session may yet refuse the request for it.

    Raises:
        GoneError: the client has gone before its end, or was refused.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise GoneError
    return body


def is_json(content_type: bytes) -> bool:
    """Whether a Content-Type says JSON."""
    if content_type == b"application/json":
        return True
    kind, _, charset = content_type.lower().partition(b";")
    return kind.strip() == b"application/json" and charset.strip() in {b"", b"charset=utf-8", b'charset="utf-8"'}


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Return what the body says.

    Raises:
        RefusedError: it is not JSON, or a field of it is wrong; the answer names it.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec skips unknown fields without looking whether they are UTF-8
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors; deep nesting is the other
        for what, pattern in ("invalid", _FIELD), ("missing", _MISSING):
            if field := pattern.search(str(error)):
                wrong = problem(400, f"{what}-field", f"{what} {field[1]}", more={"field": field[1]})
                raise RefusedError(wrong) from None
        raise RefusedError(_INVALID_JSON) from None


def parameters(scope: Scope) -> dict[str, str]:
    """Return the parameters in the URL, of several of one name the first.

    Raises:
        RefusedError: they are too many, or no UTF-8.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=PARAMETER_COUNT_MAX,
        )
    except ValueError:
        raise RefusedError(problem(400, "bad-request", "the parameters in the URL cannot be read")) from None
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def segment(raw: str) -> str:
    """Return what a percent-encoded part of a path says.

    Raises:
        RefusedError: it is no UTF-8.
    """
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise RefusedError(problem(400, "bad-request", "the path is not UTF-8")) from None


def header(scope: Scope, wanted: bytes) -> str | None:
    """Return a header of a request, of several of one name the first; None when there is none of that name."""
    return next(iter(headers(scope, wanted)), None)


def headers(scope: Scope, wanted: bytes) -> list[str]:
    """Return all headers of a name."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def peer(scope: Scope) -> str:
    """Return the address of the client; empty when the system does not say."""
    client = scope["client"]
    return client[0] if client else ""
