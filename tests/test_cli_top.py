import builtins
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from codecs import getincrementaldecoder
from collections import Counter
from contextlib import ExitStack, contextmanager
from io import StringIO

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from flashsale.cli.picture import HEIGHT_MIN, WIDTH_MIN, Seen, draw
from flashsale.launch import ServerProcess
from flashsale.live import ProductView, Snapshot, WorkerView
from tests.command_line import call_here
from tests.conftest import PATIENCE_S, kept_port
from tests.test_onlooker import TOLD

TERM = {"TERM": "xterm-256color"}
HOSTILE = "[red]x[/red]\x1b[2J\u202e"


def shown(seen, width, height):
    """Return the lines of a picture, as they are on a terminal without colours."""
    console = Console(file=StringIO(), width=width, height=height or HEIGHT_MIN, markup=False, highlight=False)
    console.print(draw(seen, width, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def seen_after(*pictures):
    seen = Seen(address="127.0.0.1:8080")
    for picture in pictures:
        seen.add(picture)
    return seen


def test_a_picture_tells_everything():
    lines = shown(seen_after(msgspec.structs.replace(TOLD, rate=100.0), TOLD), 80, 24)
    text = "\n".join(lines)
    assert re.search(r"^flashsale  127.0.0.1:8080 .*● live  \d\d:\d\d:\d\d$", lines[0])
    assert re.search(r"^Answers +912/s +▁█$", text, re.MULTILINE)
    assert re.search(r"^Sales +12/s +██$", text, re.MULTILINE)
    assert "p50 1.1 ms  p99 –  store 0.6 ms  queue 12  batch 12  tcp 20  http 3" in text
    assert re.search(r"■ Sold out +900/s +99% +20,000 +■ Success +12/s +1% +1,000", text)
    assert re.search(r"^p +█+▓+░+ +3 +90 +7$", text, re.MULTILINE)
    assert re.search(r"^0 +123 +912/s +– +23 +12 s$", text, re.MULTILINE)


def test_a_bar_is_as_long_as_what_it_stands_for():
    [line] = [line for line in shown(seen_after(TOLD), 120, 40) if line.startswith("p ")]
    counted = Counter(line)
    width = counted["█"] + counted["▓"] + counted["░"]
    for sign, units in (("█", 90), ("▓", 7), ("░", 3)):
        assert abs(counted[sign] - width * units / 100) <= 1


RATES = st.floats(0, 1e9)
COUNTS = st.integers(0, 10**14)
NAMES = st.text(min_size=1, max_size=30)
PICTURES = st.builds(
    Snapshot,
    at=st.floats(0, 1e11),
    rate=RATES,
    outcomes=st.dictionaries(NAMES, RATES, max_size=12),
    totals=st.dictionaries(NAMES, COUNTS, max_size=12),
    p50_ms=st.none() | RATES,
    p99_ms=st.none() | RATES,
    connections=st.dictionaries(NAMES, COUNTS, max_size=4),
    queue=COUNTS,
    batch=RATES,
    store_up=st.booleans(),
    store_round_trip_ms=st.none() | RATES,
    products=st.lists(st.builds(ProductView, NAMES, COUNTS, COUNTS, COUNTS, COUNTS, NAMES, COUNTS), max_size=20),
    workers=st.lists(st.builds(WorkerView, COUNTS, COUNTS, RATES, st.none() | RATES, COUNTS, RATES), max_size=20),
)


@settings(max_examples=10)
@given(st.lists(PICTURES, min_size=1, max_size=2), st.integers(WIDTH_MIN, 200), st.integers(HEIGHT_MIN, 60))
def test_whatever_is_told_fits_the_terminal(pictures, width, height):
    lines = shown(seen_after(*pictures), width, height)
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)


@settings(max_examples=10)
@given(PICTURES, st.integers(1, WIDTH_MIN), st.integers(1, HEIGHT_MIN))
def test_a_terminal_that_is_too_small_gets_what_fits(picture, width, height):
    assert all(cell_len(line) <= width for line in shown(seen_after(picture), width, height))


def test_more_than_there_is_room_for_is_counted():
    products = [ProductView(f"p{number:03}", 10, 10, 0, 0, "open", 0) for number in range(100)]
    workers = [WorkerView(number, 100 + number, 1.0, None, 1, 1.0) for number in range(10)]
    seen = seen_after(msgspec.structs.replace(TOLD, products=products, workers=workers))
    text = "\n".join(shown(seen, 80, 24))
    listed = len(re.findall(r"^p\d{3} ", text, re.MULTILINE))
    running = len(re.findall(r"^\d +1\d\d ", text, re.MULTILINE))
    assert f"… and {100 - listed} more" in text
    assert f"… {10 - running} more" in text
    assert min(listed, running) >= 2
    whole = "\n".join(shown(seen, 80, None))
    assert len(re.findall(r"^p\d{3} ", whole, re.MULTILINE)) == 100


def test_what_can_be_bought_is_above_what_cannot():
    told = [
        ProductView("a", 5, 0, 5, 0, "open", 0),
        ProductView("b", 5, 5, 0, 0, "closed", 0),
        ProductView("c", 5, 5, 0, 0, "open", 0),
        ProductView("d", 5, 5, 0, 0, "not_open", 0),
    ]
    lines = shown(seen_after(msgspec.structs.replace(TOLD, products=told)), 80, 24)
    found = [re.match(r"([a-d]) .*?\d +\d +\d ?(.*)$", line) for line in lines]
    assert [match.groups() for match in found if match] == [
        ("c", ""),
        ("a", "sold out"),
        ("b", "closed"),
        ("d", "not open"),
    ]


def test_names_from_strangers_are_text():
    products = [ProductView(HOSTILE, 1, 1, 0, 0, "open", 0)]
    text = "\n".join(shown(seen_after(msgspec.structs.replace(TOLD, products=products)), 160, 40))
    assert r"[red]x[/red]\x1b[2J" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_store_that_is_away_is_told():
    away = msgspec.structs.replace(TOLD, store_up=False, products=[])
    text = "\n".join(shown(seen_after(TOLD, away), 80, 24))
    assert "● no store" in text
    assert "the store is away: nothing is sold until it is back" in text
    assert re.search(r"^p +█+▓+░+ +3 +90 +7$", text, re.MULTILINE)  # as it was


def test_nothing_on_sale():
    text = "\n".join(shown(seen_after(msgspec.structs.replace(TOLD, products=[], totals={}, outcomes={})), 80, 24))
    assert "Nothing is on sale: flashsale init iphone15 100" in text
    assert "No answers yet" in text


# The command


def test_one_picture_of_a_server(server, environment):
    done = call_here(["top", "--once", "--connect", f"127.0.0.1:{server.port}"], environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"flashsale  127.0.0.1:{server.port}")
    assert re.search(rf"^0 +{server.pid} ", done.stdout, re.MULTILINE)
    # where there is no terminal there is one picture too, of the server in the settings
    done = call_here(["top"], environment | {"LISTEN_ADDR": f":{server.port}"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing is on sale" in done.stdout


def test_what_cannot_be_shown_is_told_in_a_sentence(environment, tmp_path):
    settings = tmp_path / "flashsale.toml"
    settings.write_text('http = "off"')
    for arguments, code, words in (
        (["--connect", "127.0.0.1:1"], 1, "cannot reach a server at 127.0.0.1:1: Connection refused"),
        (["--connect", "here"], 2, "'here' is not an address: give HOST:PORT, or :PORT for all interfaces"),
        (["--connect", ":0"], 2, "port 0 is any that is free: say with --connect which one it was"),
        (["--config", str(settings)], 2, "the settings say that no HTTP is spoken: say with --connect where it is"),
    ):
        done = call_here(["top", "--once", *arguments], environment)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{words}\n")


def test_without_the_library_it_says_what_to_install(environment, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    done = call_here(["top", "--once"], environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "`top` needs rich: install 'flashsale[top]'\n"


class Terminal:
    """`flashsale top` on a terminal of its own."""

    def __init__(self, port, environment):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", HEIGHT_MIN, WIDTH_MIN, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs, self.said = theirs, ""
        self.decode = getincrementaldecoder("utf-8")().decode
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flashsale", "top", "--connect", f"127.0.0.1:{port}"],
            env={name: value for name, value in environment.items() if name not in {"COLUMNS", "LINES"}} | TERM,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - Ctrl-C is for it
        )

    def until(self, words):
        """Read until these words are on the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.said:
            assert time.monotonic() < deadline, (words, self.said)
            self.said += self.decode(os.read(self.ours, 65_536))
        self.said = self.said.partition(words)[2]

    def end(self, key):
        """Press a key and return the exit code."""
        os.write(self.ours, key)
        self.until("\x1b[?1049l")  # back from the alternate screen
        return self.process.wait(PATIENCE_S)


@contextmanager
def showing(port, environment):
    terminal = Terminal(port, environment)
    try:
        yield terminal
        assert termios.tcgetattr(terminal.theirs) == terminal.before
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)
        os.close(terminal.theirs)


def test_it_is_live_until_ctrl_c(server, environment):
    with showing(server.port, environment) as terminal:
        terminal.until("live")
        terminal.until(str(server.pid))
        terminal.until("live")  # a second later
        assert terminal.end(b"\x03") == 0


def test_it_waits_for_a_server_that_went_away_until_q(home, environment):
    flags = ["--home", str(home), "--listen", f"127.0.0.1:{kept_port()}"]
    with ExitStack() as stack:

        def start():
            return stack.enter_context(ServerProcess(flags, environment=environment, log=subprocess.DEVNULL))

        first = start()
        terminal = stack.enter_context(showing(first.port, environment))
        terminal.until("live")
        first.stop()
        terminal.until("no connection")
        terminal.until("trying again")
        again = start()
        terminal.until("live")
        terminal.until(str(again.pid))
        fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.until("highest")  # for which there is room now
        assert terminal.end(b"q") == 0
