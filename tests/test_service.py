"""tools/flashsale.service: what systemd says of it, and that the server tells systemd when it is up."""

import configparser
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashsale.config import Config, load_config
from flashsale.launch import ServerProcess
from flashsale.sockets import tell_ready

UNIT = Path(__file__).parent.parent / "tools" / "flashsale.service"
README = UNIT.parent.parent / "README.md"


class _Keys(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture
def service() -> dict[str, str]:
    """The settings of the service."""
    unit = _Keys()
    unit.read_string(UNIT.read_text())
    return dict(unit["Service"])


def test_systemd_takes_the_unit(service: dict[str, str], tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze, which is not installed here")
    program = service["ExecStart"].split()[0]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, sys.executable))  # one that is there
    found = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_it_has_what_it_must(service: dict[str, str]) -> None:
    assert service["ExecStart"].split()[1:] == ["serve"]
    [home] = re.findall(r"FLASHSALE_HOME=%S/(\w+)", service["Environment"])
    assert service["StateDirectory"] == home
    assert service["EnvironmentFile"].startswith("-/etc/flashsale/")
    assert service["KillMode"] == "mixed", "or the store would be told to end while the server still answers"
    assert int(service["TimeoutStopSec"]) > 3 * Config().drain_timeout_s
    assert int(service["LimitNOFILE"]) > Config().connection_count_max
    assert set(service["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}
    assert load_config(environment={}).listen.startswith("127.0.0.1:"), "the unit opens nothing by itself"


def test_a_server_says_when_it_is_up(
    service: dict[str, str], home: Path, start_server: Callable[..., ServerProcess]
) -> None:
    assert service["Type"] == "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{home}/notify")
        manager.settimeout(30)
        start_server(NOTIFY_SOCKET=f"{home}/notify")
        assert manager.recv(100) == b"READY=1"


def test_it_says_so_at_an_abstract_address_too(home: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{home}/notify")
        manager.settimeout(30)
        tell_ready({"NOTIFY_SOCKET": f"@{home}/notify"})
        assert manager.recv(100) == b"READY=1"


def test_nobody_is_told_where_nobody_asks(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_ready({})
    tell_ready({"NOTIFY_SOCKET": "vsock:2:1"})
    assert caplog.messages == []
    tell_ready({"NOTIFY_SOCKET": f"{home}/nobody"})
    assert caplog.messages == ["systemd cannot be told that the server is up: No such file or directory"]


def test_no_value_of_the_files_that_are_shown_has_a_comment_behind_it() -> None:
    """To those who read them it would be a part of the value."""
    lines = [line for line in README.read_text().splitlines() if re.match("[A-Z_]+=", line) and " docker " not in line]
    assert {line.partition("=")[0] for line in lines} >= {"FLASHSALE_OPERATOR_TOKEN", "LISTEN_ADDR", "DATABASE_URL"}
    assert [line for line in lines if "#" in line] == []
