import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from bench.cli import cli
from bench.stage import child_environment, started_server, temporary_store
from flashsale import Client, Success
from flashsale.store import keys

ROOT = Path(__file__).parents[2]


def bench(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_lines(group):
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if os.getpgid(int(process.name)) == group:
                yield (process / "cmdline").read_bytes()


def assert_png(path):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 10_000


def test_default_run_sells_out_and_tells_all(tmp_path):
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "picture"]
    out = bench("--connections", 20, "--requests", 20, "--stock", 100, *files).stdout
    for name in [
        "Duration:",
        "Total Requests: 400",
        "Successful:     100",
        "Sold Out:       300",
        "Errors:         0",
        "Throughput:",
        "Avg Latency:",
        "Latency p50:",
        "Latency p90:",
        "Latency p99:",
        "Latency p99.9:",
        "Latency max:",
        "Oversell Check: PASSED (100 successes, 100 sold of 100, 100 distinct buyers)",
    ]:
        assert name in out
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["total_requests"], told["successful"], told["sold_out"], told["errors"]) == (400, 100, 300, 0)
    assert told["check"]["passed"]
    assert told["check"]["sale"]["distinct_buyer_count"] == 100
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99.9"] <= told["latency_ms"]["max"]
    assert sum(sum(sample) for sample in told["samples"]) == 400
    assert_png(tmp_path / "picture")


def test_a_running_server_is_attacked_in_open_and_closed_loop(tmp_path):
    with temporary_store() as (home, _), started_server(home) as server:
        attack = ["--connect", f"{server.host}:{server.port}", "--product", "p", "--connections", 10]
        refused = bench(*attack, "--requests", 5, code=1)
        assert "does not tell the stock of 'p'" in refused.stderr
        subprocess.run(
            [sys.executable, "-m", "flashsale", "init", "p", "70", "--home", str(home)],
            check=True, env=child_environment(), capture_output=True,
        )  # fmt: skip
        out = bench(*attack, "--duration", 0.5, "--rate", 100, "--processes", 2).stdout
        assert "Total Requests: 50\n" in out
        assert "PASSED (50 successes, 50 sold of 70, distinct buyers not checked" in out
        out = bench(*attack, "--requests", 5, "--pipeline", 5, "--home", home).stdout
        assert "PASSED (20 successes, 20 sold of 20, 20 distinct buyers)" in out


def test_purchases_of_several_units_before_the_run_are_no_fault():
    async def buy(port):
        async with Client("127.0.0.1", port) as client:
            for number in range(3):
                assert isinstance(await client.purchase("p", f"early_{number}", quantity=5), Success)

    with temporary_store() as (home, _), started_server(home) as server:
        subprocess.run(
            [sys.executable, "-m", "flashsale", "init", "p", "1000", "--home", str(home)],
            check=True, env=child_environment(), capture_output=True,
        )  # fmt: skip
        asyncio.run(buy(server.port))
        attack = ["--connect", f"{server.host}:{server.port}", "--product", "p", "--home", home]
        out = bench(*attack, "--connections", 10, "--requests", 20).stdout
    assert "PASSED (200 successes, 200 sold of 985, 200 distinct buyers)" in out


def test_a_dying_server_ends_the_run_and_is_counted(tmp_path):
    with temporary_store() as (home, store), started_server(home) as server:
        subprocess.run(
            [sys.executable, "-m", "flashsale", "init", "p", "100", "--home", str(home)],
            check=True, env=child_environment(), capture_output=True,
        )  # fmt: skip
        running = subprocess.Popen(
            [sys.executable, "-m", "bench", "--connect", f"{server.host}:{server.port}", "--product", "p",
             "--connections", "10", "--duration", "30", "--home", home, "--json", tmp_path / "r.json"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with Redis.from_url(store.url) as redis:
            wait_until(lambda: redis.llen(keys.key("p", "buyers")))
        server.kill()
        out, err = running.communicate(timeout=20)
    assert "CONNECTION_LOST 10" in out
    assert "10 requests failed: CONNECTION_LOST 10" in err
    assert running.returncode == 1
    assert json.loads((tmp_path / "r.json").read_text())["errors_by_kind"] == {"CONNECTION_LOST": 10}


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "bench", "--duration", "30"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: any(b"bench.generator" in line for line in command_lines(running.pid)))
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=20)
    assert running.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--requests", 1, "--duration", 1], "not both"),
        (["--rate", 10, "--pipeline", 2], "closed loop"),
        (["--connect", "127.0.0.1:1"], "go together"),
        (["--home", "/nowhere"], "go with --connect"),
        (["--stock", 1, "limits"], "go behind its name"),
        (["--connect", "foo", "--product", "p"], "'foo' is not an address"),
        (["--connect", "a..b:80", "--product", "p"], "'a..b:80' is not an address"),
        (["--connect", "", "--product", "p"], "'' is not an address"),
        (["--connect", ":1", "--product", "p", "--redis", ""], "--redis is empty"),
        (["--connect", ":1", "--product", "p", "--redis", "ftp://x"], "not a Redis address"),
        (
            ["--json", "/no/such/directory/r.json"],
            "cannot write '/no/such/directory/r.json': No such file or directory",
        ),
        (["--plot", "/no/such/directory/r.png"], "cannot write"),
        (["compare", "--json", "/proc/r.json"], "cannot write '/proc/r.json'"),
        (["checkout", "--json", "/no/such/directory/r.json"], "cannot write"),
    ],
)
def test_contradictions_are_refused(arguments, words):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert words in done.output


def test_a_file_for_the_figures_is_tried_and_not_left_behind(tmp_path):
    (tmp_path / "old.json").write_text("old")
    for name in ("new.json", "old.json"):
        done = CliRunner().invoke(cli, ["--json", str(tmp_path / name), "--requests", "1", "--duration", "1"])
        assert done.exit_code == 2
        assert "not both" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_compare_runs_all_peers(tmp_path):
    out = bench(
        "compare", "--duration", 0.1, "--rounds", 1, "--json", tmp_path / "c.json", "--plot", tmp_path / "c.png"
    ).stdout
    assert "(b) one EVALSHA per request" in out
    assert "Client CPU" in out
    assert "then (a)/(c) measures the client" in out
    told = json.loads((tmp_path / "c.json").read_text())
    assert [sorted(peers) for peers in told["cells"].values()] == [
        ["a", "b", "c", "d"],
        ["a", "b", "c", "d"],
        ["a", "b", "c"],
        ["a", "b", "d"],
        ["a", "b", "d"],
        ["a", "b"],
    ]
    assert all(
        cell["throughput_per_s"] > 0 for peers in told["cells"].values() for cells in peers.values() for cell in cells
    )
    assert len(told["targets"]) == 16
    assert_png(tmp_path / "c.png")
