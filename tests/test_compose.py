"""docker-compose.yml and tools/Dockerfile, as far as they run without Docker: their commands, on real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashsale.launch import ServerProcess

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "tools" / "Dockerfile"
PATIENCE_S = 30.0
PORT = 8080  # of the server, within its container


def parse(text: str) -> dict[str, Any]:
    """Read the part of YAML that the file keeps to: nested mappings, lists of scalars, flow lists that are JSON."""
    root: dict[str, Any] = {}
    open_at: list[tuple[int, Any]] = [(-1, root)]  # (indentation, container)
    pending: tuple[dict[str, Any], str] | None = None  # a key whose value is on the lines below
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert "\t" not in line
        indentation = len(line) - len(line.lstrip(" "))
        assert indentation % 2 == 0, line
        while open_at[-1][0] >= indentation:
            open_at.pop()
            pending = None
        if pending is not None:
            container, key = pending
            container[key] = [] if line.lstrip().startswith("- ") else {}
            open_at.append((indentation - 1, container[key]))
            pending = None
        inside = open_at[-1][1]
        if line.lstrip().startswith("- "):
            assert isinstance(inside, list), line
            inside.append(scalar(line.strip().removeprefix("- ")))
            continue
        match = re.fullmatch(r" *([\w-]+):(?: (.+))?", line)
        assert match is not None, line
        assert isinstance(inside, dict), line
        assert match[1] not in inside, f"{match[1]} twice"
        inside[match[1]] = None if match[2] is None else scalar(match[2])
        if match[2] is None:
            pending = (inside, match[1])
    return root


def scalar(text: str) -> Any:
    if text[0] in '["':
        return json.loads(text)
    return text.split(" #")[0].strip()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = parse(COMPOSE.read_text())["services"]
    return found


@pytest.fixture
def redis_port(services: dict[str, Any], start_store: Callable[..., int]) -> int:
    """A real store started with the very flags of the file."""
    program, *flags = services["redis"]["command"]
    assert program == "redis-server"
    return start_store(*flags)


def is_healthy(services: dict[str, Any], port: int) -> bool:
    """Run the server's health check as Docker would, on another port."""
    kind, program, *arguments = services["server"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    assert sum(argument.count(str(PORT)) for argument in arguments) == 1
    assert not any("$" in argument for argument in arguments), "compose would put a variable there"
    command = [sys.executable, *(argument.replace(str(PORT), str(port)) for argument in arguments)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE_S, check=False).returncode == 0


def test_the_file_has_what_it_must(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "profiles" not in service} == {"redis", "server"}
    assert services["redis"]["image"] == "redis:7-alpine"
    assert services["redis"]["volumes"] == ["redis-data:/data"]
    named = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert named == set(parse(COMPOSE.read_text())["volumes"])
    assert "ports" not in services["redis"], "the store is nobody's but the server's"
    server = services["server"]
    assert (ROOT / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert server["environment"] == {"LISTEN_ADDR": f":{PORT}", "REDIS_ADDR": "redis:6379"}
    assert server["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert server["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert int(server["stop_grace_period"].removesuffix("s")) > 10
    assert int(server["ulimits"]["nofile"]) == 20_000


def test_a_server_with_that_environment_sells_from_a_store_with_those_flags_and_is_healthy(
    services: dict[str, Any], redis_port: int
) -> None:
    settings = {
        "LISTEN_ADDR": services["server"]["environment"]["LISTEN_ADDR"].replace(str(PORT), "0"),
        "REDIS_ADDR": services["server"]["environment"]["REDIS_ADDR"].replace("redis:6379", f"localhost:{redis_port}"),
    }
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | settings
    environment["FLASHSALE_ORDERS"] = "false"  # one process, which can be stopped as a whole
    assert services["server"]["command"] == ["serve"]
    with ServerProcess(environment=environment, log=subprocess.DEVNULL) as server:
        assert is_healthy(services, server.port)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert not is_healthy(services, server.port), "it hangs"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert is_healthy(services, server.port)
        port = server.port
    assert not is_healthy(services, port), "it is gone"


def test_the_way_through_kafka_has_what_it_must(services: dict[str, Any]) -> None:
    names = {name for name, service in services.items() if service.get("profiles") == ["kafka"]}
    assert names == {"kafka", "postgres", "relay", "worker"}
    assert not any("ports" in services[name] for name in names), "they are nobody's but each other's"
    settings = services["kafka"]["environment"]
    assert services["kafka"]["volumes"] == [f"kafka-data:{settings['KAFKA_LOG_DIRS']}"]
    assert settings["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka:9092"
    for name in ("relay", "worker"):
        assert services[name]["build"] == services["server"]["build"]
        assert "kafka:9092" in services[name]["command"]
    account = services["postgres"]["environment"]
    url = f"postgresql://{account['POSTGRES_USER']}:{account['POSTGRES_PASSWORD']}@postgres/{account['POSTGRES_DB']}"
    assert services["worker"]["environment"] == {"DATABASE_URL": url}
    assert services["relay"]["environment"] == {"REDIS_ADDR": services["server"]["environment"]["REDIS_ADDR"]}


def test_the_image_has_every_file_it_needs_and_does_not_run_as_root(services: dict[str, Any]) -> None:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert words[0] == ["FROM", "python:3.12-slim"]
    copied = {source for first, *paths in words if first == "COPY" for source in paths[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "flashsale"} <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
    order = [first for first, *_ in words]
    assert any(line.startswith("RUN pip install --no-cache-dir '.[kafka,postgres]' ") for line in lines)
    assert order.index("RUN") < order.index("USER") < order.index("ENTRYPOINT")
    assert words[order.index("USER")][1] != "root"
    assert json.loads(lines[order.index("ENTRYPOINT")].removeprefix("ENTRYPOINT ")) == ["flashsale"]
    assert f"EXPOSE {PORT}" in lines
