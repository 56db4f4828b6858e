"""Which requests have an id, who is told it, and which of their answers are in the log."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.server import ServerState

from flashsale import logs
from flashsale.http.identity import HEADER, LINE_COUNT_MAX, TOLD, Identified, Teller
from flashsale.http.replies import Receive, Reply, Scope, Send
from flashsale.http.session import HttpSession, Places, make_config

Lines = list[tuple[str, str]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged meanwhile: (request id, message)."""
    found: Lines = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((logs.request_id.get(), record.getMessage()))

    handler, logger = Keep(), logging.getLogger("flashsale")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


class BugError(Exception):
    """Of an application."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/bug":
        raise BugError
    logging.getLogger("flashsale.part").warning("at work")
    reply = Reply(scope["status"], [(b"x", b"y")], b"")
    await (scope["teller"].tell(scope, reply) if reply.status in TOLD else reply).send(send)


async def ask(path: str, given: bytes | None = None, status: int = 200, teller: Teller | None = None) -> list[bytes]:
    """Return the ids in the headers of an answer, as a task of its own asks."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    headers = [(b"host", b"h")] if given is None else [(b"host", b"h"), (HEADER, given)]
    scope: dict[str, Any] = {
        "method": "POST",
        "path": path,
        "status": status,
        "headers": headers,
        "client": ("10.0.0.1", 5),
    }
    scope["teller"] = teller or Teller()
    await asyncio.create_task(Identified(application, hot={"/hot"})(scope, receive, send))
    start, body = sent
    assert (b"x", b"y") in start["headers"]
    assert body["type"] == "http.response.body"
    return [value for name, value in start["headers"] if name == HEADER]


async def test_the_clients_own_id_is_kept_and_told(lines: Lines) -> None:
    for path in ("/hot", "/cold"):
        assert await ask(path, b"0f8b:c/=+_-.A") == [b"0f8b:c/=+_-.A"]
    assert lines == [("0f8b:c/=+_-.A", "at work")] * 2
    assert logs.request_id.get() == ""


@pytest.mark.parametrize("given", [b"", b"a b", b"a\nb", b'"', b"x" * 65, "é".encode(), None])
async def test_else_it_is_a_fresh_one_of_which_a_crowd_is_told_nothing(lines: Lines, given: bytes | None) -> None:
    [first], [second] = await ask("/cold", given), await ask("/cold", given)
    assert len(first) == 24
    assert first != second
    assert await ask("/hot", given) == []
    assert [about for about, _ in lines] == [first.decode(), second.decode(), ""]


async def test_what_the_server_could_not_do_is_logged_and_who_took_himself_for_the_operator(lines: Lines) -> None:
    for status in (200, 404, 409, 429, 401, 403, 500, 503):
        await ask("/hot", b"r", status)
    logged = [message for about, message in lines if message != "at work"]
    assert logged == [f"POST /hot from 10.0.0.1 is answered with {status}" for status in (401, 403, 500, 503)]


async def test_a_crowd_is_told_its_id_where_there_is_a_line_about_it(lines: Lines) -> None:
    [told] = await ask("/hot", None, 503)
    assert lines == [("", "at work"), (told.decode(), "POST /hot from 10.0.0.1 is answered with 503")]


async def test_the_code_of_a_hold_is_in_no_line(lines: Lines) -> None:
    await ask("/v1/holds/a-code/confirm", None, 503)
    assert lines[-1][1] == "POST /v1/holds/*** from 10.0.0.1 is answered with 503"


async def test_there_are_few_lines_a_second(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("flashsale.http.identity.time.monotonic", lambda: now)
    teller = Teller()
    told = [await ask("/hot", None, 503, teller) for _ in range(LINE_COUNT_MAX + 7)]
    assert sum(map(len, told)) == LINE_COUNT_MAX
    now = 6.0
    await ask("/hot", None, 503, teller)
    logged = [message for _, message in lines if message != "at work"]
    assert len(logged) == LINE_COUNT_MAX + 2
    assert logged[-2] == "7 more requests were answered like that in that second"


async def test_one_that_waited_for_another_has_not_its_id() -> None:
    seen = []

    async def keep(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(logs.request_id.get())
        await Reply(204, [], b"").send(send)

    config, state, places = make_config(Identified(keep, hot={"/hot"})), ServerState(), Places(bool, bool)
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpSession(config, state, places, body_size_max=1), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET /cold HTTP/1.1\r\nHost: x\r\nX-Request-Id: of-cold\r\n\r\n")
    writer.write(b"GET /hot HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    writer.write_eof()
    await reader.read()
    writer.close()
    server.close()
    assert seen == ["of-cold", "", ""]


async def test_a_mistake_here_is_logged_with_an_id_too() -> None:
    seen = []

    async def run() -> None:
        with pytest.raises(BugError):
            await Identified(application, hot={"/bug"})(
                {"method": "POST", "path": "/bug", "headers": []},
                None,
                None,  # type: ignore[arg-type]
            )
        seen.append(logs.request_id.get())

    await asyncio.create_task(run())
    assert len(seen[0]) == 24
