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
import yaml

from flashsale.config import load_config
from flashsale.launch import ServerProcess
from flashsale.logs import LogFormat, LogLevel

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "tools" / "Dockerfile"
PATIENCE_S = 30.0
PORT, GRPC_PORT = 8080, 50051  # of a server, within its container


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
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
    always = {"redis", "postgres", "server", "balancer"}
    assert {name for name, service in services.items() if "profiles" not in service} == always
    assert services["redis"]["image"] == "redis:7-alpine"
    assert services["redis"]["volumes"] == ["redis-data:/data"]
    named = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith("./")} == set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    for name in named:
        assert not name.startswith("./") or (ROOT / name).is_file()
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "balancer": [f"127.0.0.1:{PORT}:{PORT}", f"127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"],
        "prometheus": ["127.0.0.1:9090:9090"],
    }, "all else is nobody's but each other's"
    server = services["server"]
    assert (ROOT / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert server["depends_on"] == {name: {"condition": "service_healthy"} for name in ("redis", "postgres")}
    assert server["deploy"]["replicas"] >= 2
    assert server["ulimits"]["nofile"] == 20_000
    for name in always:
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > 10
        assert services[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_the_server_has_the_settings_it_must(services: dict[str, Any]) -> None:
    given = services["server"]["environment"]
    account = services["postgres"]["environment"]
    url = f"postgresql://{account['POSTGRES_USER']}:{account['POSTGRES_PASSWORD']}@postgres/{account['POSTGRES_DB']}"
    variables = {name: value for name, value in given.items() if "$" in value}
    assert variables == {
        "FLASHSALE_ORDERS": "${FLASHSALE_ORDERS:-true}",
        "FLASHSALE_OPERATOR_TOKEN": "${FLASHSALE_OPERATOR_TOKEN:-}",  # there is no secret in the file
        "LOG_LEVEL": "${LOG_LEVEL:-info}",
    }
    config = load_config(environment={name: said(value) for name, value in given.items()})
    assert (config.listen, config.grpc, config.http) == (f":{PORT}", f":{GRPC_PORT}", "shared")
    assert (config.redis, config.database, config.orders) == ("redis:6379", url, True)
    assert (config.log_format, config.log_level) == (LogFormat.JSON, LogLevel.INFO)
    assert config.operator_token is None
    assert config.rate_user is not None
    assert config.rate_client is None, "all come from the balancer"


def said(value: str) -> str:
    """Return a value as compose has it when the shell says nothing."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)


def test_a_server_with_that_environment_sells_from_a_store_with_those_flags_and_is_healthy(
    services: dict[str, Any], redis_port: int, home: Path
) -> None:
    settings = {name: said(value) for name, value in services["server"]["environment"].items()}
    settings |= {
        "LISTEN_ADDR": settings["LISTEN_ADDR"].replace(str(PORT), "0"),
        "FLASHSALE_GRPC": settings["FLASHSALE_GRPC"].replace(str(GRPC_PORT), "0"),
        "REDIS_ADDR": settings["REDIS_ADDR"].replace("redis:6379", f"localhost:{redis_port}"),
    }
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "LOG_LEVEL", "PORT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | settings
    environment["FLASHSALE_ORDERS"] = "false"  # one process, which can be stopped as a whole
    assert services["server"]["command"] == ["serve"]
    with (
        (home / "log").open("wb") as log,
        ServerProcess(environment=environment, log=log.fileno()) as server,
    ):
        assert is_healthy(services, server.port)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert not is_healthy(services, server.port), "it hangs"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert is_healthy(services, server.port)
        port = server.port
        assert server.stop() == 0
    assert not is_healthy(services, port), "it is gone"
    events = [json.loads(line)["event"] for line in (home / "log").read_text().splitlines()]
    assert events[-1] == "stopped"


def test_the_way_through_kafka_has_what_it_must(services: dict[str, Any]) -> None:
    names = {name for name, service in services.items() if service.get("profiles") == ["kafka"]}
    assert names == {"kafka", "relay", "worker"}
    settings = services["kafka"]["environment"]
    assert services["kafka"]["volumes"] == [f"kafka-data:{settings['KAFKA_LOG_DIRS']}"]
    assert settings["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka:9092"
    of_server = services["server"]["environment"]
    for name, where in (("relay", "REDIS_ADDR"), ("worker", "DATABASE_URL")):
        assert services[name]["build"] == services["server"]["build"]
        assert "kafka:9092" in services[name]["command"]
        of_both = (where, "FLASHSALE_LOG_FORMAT", "LOG_LEVEL")
        assert services[name]["environment"] == {variable: of_server[variable] for variable in of_both}


def test_every_server_is_scraped(services: dict[str, Any]) -> None:
    prometheus = services["prometheus"]
    assert prometheus["profiles"] == ["metrics"]
    source, target, mode = prometheus["volumes"][0].split(":")
    assert (mode, f"--config.file={target}") == ("ro", prometheus["command"][0])
    [job] = yaml.safe_load((ROOT / source).read_text())["scrape_configs"]
    [found] = job["dns_sd_configs"]
    assert (found["names"], found["type"], found["port"]) == (["server"], "A", PORT)
    assert job["metrics_path"] == "/metrics"


def test_the_image_has_every_file_it_needs_and_does_not_run_as_root(services: dict[str, Any]) -> None:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert words[0] == ["FROM", "python:3.12-slim"]
    copied = {source for first, *paths in words if first == "COPY" for source in paths[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "flashsale"} <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
    order = [first for first, *_ in words]
    assert any(line.startswith("RUN pip install --no-cache-dir '.[http,grpc,top,kafka,postgres]' ") for line in lines)
    assert order.index("RUN") < order.index("USER") < order.index("ENTRYPOINT")
    assert words[order.index("USER")][1] != "root"
    assert json.loads(lines[order.index("ENTRYPOINT")].removeprefix("ENTRYPOINT ")) == ["flashsale"]
    assert f"EXPOSE {PORT} {GRPC_PORT}" in lines
