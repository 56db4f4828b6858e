"""What a log line looks like, and what never stands in one."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from unittest.mock import patch

import pytest

from flashsale.errors import ConfigError
from flashsale.logs import (
    FRAME_COUNT_MAX,
    HIDDEN,
    TEXT_SIZE_MAX,
    LogFormat,
    Redactor,
    TextFormatter,
    json_formatter,
    request_id,
)

CODE = "Zk3_b-QpX0m9LrT7vYw2Ag.iphone15"
TOKEN = CODE.partition(".")[0]


def record(message: str, *values: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("flashsale.part", logging.WARNING, "part.py", 1, message, values, None)
    made.__dict__.update(more)
    return made


@pytest.fixture(params=LogFormat)
def line(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a record as a line, in either format."""
    redact = Redactor(["store-word", "a"])
    formatter = json_formatter(redact) if request.param is LogFormat.JSON else TextFormatter(redact)
    return lambda *words, **more: formatter.format(record(*words, **more))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"no hold has the code {CODE}", TOKEN),
        (f"/v1/holds/{CODE}/confirm", TOKEN),
        ("GET /purchase?code=short-one&user_id=ann", "short-one"),
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("{'authorization': 'Basic YW5uOnB3'}", "YW5uOnB3"),
        ("bearer abc123", "abc123"),
        ("cannot reach redis://:pw1@db.example:6379/0", "pw1"),
        ("cannot reach postgresql://ann:p:w@h/n", "p:w"),
        ("?password=pw2&x=1", "pw2"),
        ('{"token": "pw3"}', "pw3"),
        ("api_key=pw4", "pw4"),
        ("what was told to it, store-word, as it is", "store-word"),
    ],
)
def test_a_secret_does_not_show(line: Callable[..., str], text: str, secret: str) -> None:
    for shown in (line("%s", text), line(text.replace("%", "%%")), line("see below", exc_info=raised(text))):
        assert secret not in shown
        assert HIDDEN in shown


@pytest.mark.parametrize(
    "text",
    [
        "Server initialized - Listening on 127.0.0.1:8080, Redis: unix:///home/ann/valkey.sock (embedded)",
        "worker 12 ended with exit code 1; starting another",
        "product 'p' cannot be sold: a token is missing",
        "GET /v1/products/iphone15 from 10.0.0.1 is answered with 503",
        "ReadTimeout: at http://example.org/a.b?id=1",
    ],
)
def test_what_is_no_secret_stays(line: Callable[..., str], text: str) -> None:
    assert text in line("%s", text)


def raised(text: str, depth: int = 0) -> tuple[type[BaseException], BaseException, object]:
    """Return an exception as logging has it, from so deep a call, that another one has caused."""

    def fail(left: int) -> None:
        password = text  # noqa: F841 - a local variable that must not be shown
        if left:
            fail(left - 1)
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise RuntimeError(text) from cause

    try:
        fail(depth)
    except RuntimeError as error:
        return type(error), error, error.__traceback__
    raise AssertionError


def test_a_json_line_is_one_object_on_one_line() -> None:
    told = request_id.set("r-1")
    try:
        made = record("it failed:\n%s é\udcff", "why", exc_info=raised("deep", depth=40), status=503, password="pw5")
        text = json_formatter(Redactor()).format(made)
    finally:
        request_id.reset(told)
    assert "\n" not in text
    found = json.loads(text)
    assert list(found)[:6] == ["time", "level", "logger", "event", "pid", "request_id"]
    assert found["time"].endswith("+00:00")
    assert (found["level"], found["logger"], found["pid"]) == ("warning", "flashsale.part", made.process)
    assert (found["event"], found["request_id"]) == ("it failed:\nwhy é\udcff", "r-1")
    assert (found["status"], found["password"]) == (503, HIDDEN)
    error, cause = found["exception"]
    assert (error["exc_type"], error["exc_value"], cause["exc_type"]) == ("RuntimeError", "deep", "ValueError")
    assert len(error["frames"]) <= FRAME_COUNT_MAX + 1  # and one that says how many are left out
    assert "locals" not in text


def test_a_line_without_a_request_has_none_of_its_id(line: Callable[..., str]) -> None:
    assert "request" not in line("it failed")


def test_long_text_is_cut_behind_its_secrets() -> None:
    found = json.loads(
        json_formatter(Redactor(["s" * 50])).format(record("x" * (TEXT_SIZE_MAX - 10) + "s" * 50 + "y" * 100))
    )
    assert found["event"] == "x" * (TEXT_SIZE_MAX - 10) + HIDDEN + "y" * 7 + "…"


def test_a_text_line_names_the_request() -> None:
    told = request_id.set("r-1")
    try:
        text = TextFormatter(Redactor()).format(record("it failed"))
    finally:
        request_id.reset(told)
    assert text.endswith(" WARNING it failed (request r-1)")


def test_nobody_makes_two_lines_of_one_or_moves_the_cursor(line: Callable[..., str]) -> None:
    told = line("no product '%s'", "x\n2026-01-01 00:00:00,000 INFO all is well\x1b[2K\r")
    assert told.isprintable()
    assert "x\\n2026" in told


def test_json_without_what_makes_it_is_refused_with_a_sentence() -> None:
    sentence = r"^the log format 'json' needs structlog: install 'flashsale\[http\]', or use 'text'$"
    with patch.dict(sys.modules, {"structlog": None}), pytest.raises(ConfigError, match=sentence):
        json_formatter(Redactor())


PROGRAM = """
import logging, warnings
from flashsale.logs import LogFormat, LogLevel, complain, set_up
set_up(LogFormat({0!r}), LogLevel.INFO)
for name in ("flashsale.part", "uvicorn.error", "sqlalchemy.engine"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "%s", logging.getLevelName(level))
complain("no room")
warnings.warn("old")
raise SystemError("a mistake")
"""


def run(log_format: LogFormat, environment: Mapping[str, str]) -> list[str]:
    command = [sys.executable, "-W", "always", "-c", PROGRAM.format(log_format.value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


def test_a_process_whose_log_is_json_says_nothing_else_on_stderr(environment: dict[str, str]) -> None:
    found = [json.loads(line) for line in run(LogFormat.JSON, environment)]
    assert [(line["logger"], line["event"].partition("\n")[0]) for line in found[:5]] == [
        ("flashsale.part", "INFO"),
        ("flashsale.part", "WARNING"),
        ("uvicorn.error", "WARNING"),
        ("sqlalchemy.engine", "WARNING"),
        ("flashsale.logs", "no room"),
    ]
    assert found[5]["logger"] == "py.warnings"
    assert found[6]["level"] == "critical"
    assert found[6]["exception"][0]["exc_value"] == "a mistake"
    assert len(found) == 7


def test_a_process_whose_log_is_text_says_why_it_ends_as_it_is(environment: dict[str, str]) -> None:
    lines = run(LogFormat.TEXT, environment)
    assert lines[4] == "no room"
    assert lines[0].endswith(" INFO INFO")
    assert lines[-1] == "SystemError: a mistake"
