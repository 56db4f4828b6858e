"""The document of the HTTP door says what it does: requests are made up from it, answers compared with it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.routing import Route

from flashsale.domain.schedules import Schedule
from flashsale.feed import Feed
from flashsale.http.openapi import OPERATIONS, make_document
from flashsale.http.services import Services
from flashsale.http.site import Site
from flashsale.launch import ServerProcess
from flashsale.metrics import Board
from flashsale.sampling import Sampler
from flashsale.store.ledger import RedisLedger
from flashsale.store.schedules import RedisSchedules

OTHERS = {"/", "/openapi.json", "/metrics", "/live"}
"""What is no part of it: for people and for machines that are not buyers."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)  # not positive_data_acceptance: JSON Schema takes 1.0 for an integer, and the server does not


async def test_every_route_is_in_the_document(store_url: str) -> None:
    async def nobody(*_: object) -> None:
        raise AssertionError

    feed = Feed(reading=RedisLedger(store_url), following=RedisLedger(store_url))
    board = Board(1)
    site = Site(
        Services(
            ask=nobody,  # type: ignore[arg-type]
            feed=feed,
            current_sale=lambda _: None,
            reopen=nobody,  # type: ignore[arg-type]
            sampler=Sampler(board, board.slots[0], nobody),  # type: ignore[arg-type]
            draining=asyncio.Event(),
        )
    )
    routes = {
        (method, route.path)
        for route in site.routes
        if isinstance(route, Route) and route.methods is not None
        for method in route.methods - {"HEAD"}
        if route.path not in OTHERS
    }
    assert routes == {(operation.method, operation.path) for operation in OPERATIONS}
    await feed.close()


def test_the_document_is_whole() -> None:
    document = json.loads(make_document("1.2.3"))
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", "1.2.3")
    named = set(document["components"]["schemas"])
    used = set()
    text = json.dumps(document)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        used.add(part.partition('"')[0])
    assert used == named
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert "200" in operation["responses"] or "201" in operation["responses"]


@pytest.mark.timeout(120)
def test_made_up_requests_get_the_answers_of_the_document(
    server: ServerProcess, module_home: Path, open_sale: Callable[..., str], tmp_path: Path
) -> None:
    open_sale(1_000, name="p")

    async def add() -> None:
        schedules = RedisSchedules(f"unix://{module_home}/valkey.sock")
        await schedules.add(Schedule(name="hourly", every_s=3_600, item_count=10_000, limit=10, numbered=True))
        await schedules.close()

    asyncio.run(add())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.http_port}/openapi.json"),
            *("--phases", "coverage,fuzzing", "--max-examples", "4", "--seed", "1", "--continue-on-failure"),
            *("--checks", ",".join(CHECKS), "--exclude-path-regex", "stream|events|reset", "--no-color"),
        ],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6_000:]
