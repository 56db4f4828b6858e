"""Crash points: what is asked for, and that it happens there and nowhere else; tests/faults has what becomes of it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flashsale
from flashsale import crash
from flashsale.errors import ConfigError

CRASH = """
from flashsale import crash
crash.arm()
for number in range(1, 10):
    crash.crash_point("after-script")
    crash.crash_point("after-commit")
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    ("value", "reached"),
    [("", 9), ("before-reply", 9), ("after-script", 0), ("after-commit:1", 0), ("after-commit:4", 3)],
)
def test_a_process_dies_where_and_when_it_was_told(environment: dict[str, str], value: str, reached: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH],
        env=environment | {crash.VARIABLE: value},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert len(done.stdout.split()) == reached
    assert done.returncode == (0 if reached == 9 else -signal.SIGKILL)


@pytest.mark.parametrize(
    "value",
    ["nowhere", "after-read:0", "after-read:x", "after-read:", ":1", "after-read:1:1", "after-read:" + "9" * 5000],
)
def test_what_is_no_label_is_refused_with_a_sentence_that_names_them(value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        crash.arm({crash.VARIABLE: value})
    assert str(refused.value).startswith(f"{crash.VARIABLE} is '{value}'; it must be one of after-read, ")
    assert all(label in str(refused.value) for label in crash.LABELS)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_process_with_a_wrong_label_does_not_start(environment: dict[str, str], tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flashsale", command, "--home", str(tmp_path)],
        env=environment | {crash.VARIABLE: "nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'nowhere'; it must be one of after-read" in done.stderr
    assert not any(tmp_path.iterdir())


def test_each_label_is_one_place_in_the_code() -> None:
    sources = Path(flashsale.__file__).parent.rglob("*.py")
    found = [label for path in sources for label in re.findall(r'crash_point\("([^"]+)"\)', path.read_text())]
    assert sorted(found) == sorted(crash.LABELS)
