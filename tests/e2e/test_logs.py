"""The whole log of a run in JSON: every process writes it, and no secret is in it."""

import asyncio
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flashsale.client import Client
from flashsale.domain.answers import Held
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin

PASSWORD = "the-word-of-the-store"
BEARER = "the-word-of-an-operator"
BODY = json.dumps({"request_id": "r", "user_id": "ann", "item_id": "p", "quantity": 1})
START = re.compile(r"Server initialized - Listening on 127\.0\.0\.1:\d+, Redis: \*\*\*@127\.0\.0\.1:\d+")


def ask(server: ServerProcess, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str | None]:
    """Return the status of an answer and the id of the request in it."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request(method, path, body, {"Authorization": f"Bearer {BEARER}"} | headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers["X-Request-Id"]


@pytest.fixture
def store(start_store: Callable[..., int]) -> Iterator[tuple[str, "redis.Redis"]]:
    """The URL of a store that takes a password, and a client of it."""
    port = start_store("--requirepass", PASSWORD)
    with redis.Redis(port=port, password=PASSWORD, retry=Retry(NoBackoff(), 0)) as client:
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}", client


async def test_every_process_logs_in_json_and_no_secret_is_in_it(
    home: Path, environment: dict[str, str], store: tuple[str, "redis.Redis"]
) -> None:
    url, client = store
    settings = {
        "FLASHSALE_ORDERS": "true",
        "FLASHSALE_HOME": str(home),
        "REDIS_URL": url,
        "FLASHSALE_STORE_DEADLINE_S": "0.3",
        "FLASHSALE_LOG_FORMAT": "json",
        "FLASHSALE_WORKERS": "2",
        "FLASHSALE_OPERATOR_TOKEN": BEARER,
    }
    flags = ["--listen", "127.0.0.1:0", "--durability", "relaxed", "--record-attempts"]
    async with Admin(url) as admin:
        await admin.init("p", 10)
    with (
        (home / "log").open("wb") as log,
        ServerProcess(flags, environment=environment | settings, log=log.fileno()) as server,
    ):
        async with Client(server.host, server.port) as buyer:
            held = await buyer.reserve("p", "ann")
            assert isinstance(held, Held)
            await buyer.confirm(held.code)
        await asyncio.to_thread(ask_much, server, held.code)
        client.shutdown(nosave=True)
        assert ask(server, "POST", "/api/purchase", BODY, **{"X-Request-Id": "too-late"})[0] in {500, 503}
        assert server.stop() == 0
    check(home / "log", held.code)


def ask_much(server: ServerProcess, code: str) -> None:
    assert ask(server, "POST", "/api/purchase", BODY) == (200, None)
    assert ask(server, "POST", "/api/purchase", BODY, **{"X-Request-Id": "again"}) == (409, "again")
    status, nowhere = ask(server, "GET", f"/nowhere?code={code}")
    assert (status, len(nowhere or "")) == (404, 24)
    assert ask(server, "POST", f"/v1/holds/{code}/confirm")[0] == 200
    forged = {"Authorization": "Bearer a-word-that-is-none", "X-Request-Id": "forged"}
    assert ask(server, "POST", "/reset?product_id=p", **forged) == (401, "forged")
    assert ask(server, "POST", "/reset?product_id=p", **{"X-Request-Id": "reset"}) == (200, "reset")


def check(log: Path, code: str) -> None:
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for secret in (PASSWORD, BEARER, "a-word-that-is-none", code, code.partition(".")[0]):
        assert secret not in text
    for line in lines:
        assert list(line)[:5] == ["time", "level", "logger", "event", "pid"], line
    assert any(START.fullmatch(line["event"]) for line in lines)
    about = {line["request_id"]: line["event"] for line in lines if "request_id" in line}
    assert re.fullmatch(r"POST /api/purchase from 127\.0\.0\.1 is answered with 50[03]", about.pop("too-late"))
    assert about == {
        "forged": "POST /reset from 127.0.0.1 is answered with 401",
        "reset": "the operator at 127.0.0.1 has reset product 'p' to 10 units",
    }
    assert {"flashsale.app", "flashsale.store.engine", "flashsale.orders.carrier"} <= {line["logger"] for line in lines}
    assert len({line["pid"] for line in lines if line["event"] == "stopped"}) == 2
    assert len({line["pid"] for line in lines}) >= 4  # and the supervisor, and the mover


def test_why_it_does_not_start_is_a_line_of_the_log(home: Path, environment: dict[str, str]) -> None:
    settings = environment | {"FLASHSALE_LOG_FORMAT": "json", "FLASHSALE_ORDERS": "true"}
    for flags in (["--workers", "2"], []):
        command = [sys.executable, "-m", "flashsale", "serve", "--home", str(home), "--listen", "192.0.2.1:9", *flags]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=50)
        assert (done.returncode, done.stdout) == (1, "")
        [line] = map(json.loads, done.stderr.splitlines())
        assert "cannot listen on 192.0.2.1:9" in line["event"]
