"""The k6 scripts, run by node on a small stand-in for k6's own modules, against a real server."""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from flashsale.domain.schedules import EVERY_MAX_S, Schedule
from flashsale.store.admin import Admin

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "tools/k6").glob("*.js"))
NODE = shutil.which("node")
if NODE is None and os.environ.get("FLASHSALE_REQUIRE_DATABASES"):
    pytest.fail("node is not installed, and CI must have it")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node, which is not installed here")


@pytest.fixture
def run(tmp_path, server):
    """Run the scenarios of a script: run("loadtest.js", 3, RATE="10")."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/k6").symlink_to(ROOT / "tests/tools/k6")
    shutil.copy(ROOT / "tests/tools/k6/run.js", tmp_path)

    def run_script(name, count, **settings):
        shutil.copy(ROOT / "tools/k6" / name, tmp_path)
        done = subprocess.run(
            [NODE, "run.js", f"./{name}", str(count)],
            cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
            env=os.environ | {"BASE_URL": f"http://127.0.0.1:{server.http_port}"} | settings,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_script


def operate(module_home, call):
    async def calling():
        async with Admin(f"unix://{module_home}/valkey.sock") as admin:
            return await call(admin)

    return asyncio.run(calling())


def read_stats(server):
    """Return how far the current sale is, once there is one."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
        connection.request("GET", "/stats")
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        if answer.status == 200:
            return {name: int(value) for name, value in told["stats"].items()}
        assert (answer.status, told["message"]) == (404, "no active sale")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_rush_is_the_one_that_is_told_of(run, server, module_home):
    schedule = Schedule(name="hourly", every_s=EVERY_MAX_S, item_count=10_000, limit=2, numbered=True)
    operate(module_home, lambda admin: admin.schedules.add(schedule))
    before = read_stats(server)
    told = run("loadtest.js", 50)
    scenarios = told["options"]["scenarios"]
    assert {name: scenario["rate"] for name, scenario in scenarios.items()} == {
        "normal": 7_000, "heavy": 1_000, "purchases": 1_000, "invalid": 1_000,
    }  # fmt: skip
    assert {scenario["executor"] for scenario in scenarios.values()} == {"constant-arrival-rate"}
    assert {failed for _, failed in told["checked"].values()} == {0}
    answered = Counter((path, status) for _, path, status, _ in told["asked"])
    assert all(expected for _, _, _, expected in told["asked"])
    assert answered["/checkout", 429] > 0
    assert answered["/checkout", 400] + answered["/purchase", 400] == 50
    assert answered["/purchase", 200] == told["checked"]["purchase: purchased"][0] > 40
    after = read_stats(server)
    assert after["items_sold"] - before["items_sold"] == answered["/purchase", 200]
    assert before["current_inventory"] - after["current_inventory"] == answered["/checkout", 200]


def test_the_rate_of_the_rush_may_be_set(run):
    scenarios = run("loadtest.js", 0, RATE="200", DURATION="5s")["options"]["scenarios"]
    assert sum(scenario["rate"] for scenario in scenarios.values()) == 200
    assert {scenario["duration"] for scenario in scenarios.values()} == {"5s"}


def test_the_attack_buys_what_there_is(run, module_home, product_id):
    operate(module_home, lambda admin: admin.init(product_id, 7))
    told = run("attack.js", 20, PRODUCT=product_id)
    assert told["counted"] == {"sold": 7, "sold_out": 13}
    assert told["checked"] == {"sold or sold out": [20, 0]}
    assert {(method, path) for method, path, _, _ in told["asked"]} == {("POST", "/api/purchase")}
    assert all(expected for _, _, _, expected in told["asked"])
    stages = told["options"]["scenarios"]["attack"]["stages"]
    assert {stage["target"] for stage in stages} == {200, 500}
    status = operate(module_home, lambda admin: admin.status(product_id))
    assert (status.sold, status.remaining_stock) == (7, 0)


def test_every_script_is_run_here():
    assert SCRIPTS == ["attack.js", "loadtest.js"]
