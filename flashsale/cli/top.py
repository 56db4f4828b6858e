"""The command that shows a server at work."""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashsale import onlooker
from flashsale.config import HTTP_WORDS, Config, load_config, split_address
from flashsale.errors import ConfigError, ConnectionLostError, ProtocolError

if TYPE_CHECKING:
    from rich.console import Console

    from flashsale.cli.picture import Seen

_RETRY_PAUSE_S = 1.0
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - of a server that listens there


@click.command(short_help="Show a server at work, live.")
@click.option("--connect", metavar="HOST:PORT", help="Where a server speaks HTTP.  [default: where `serve` would]")
@click.option("--once", is_flag=True, help="Print one picture and end, as when the output is not a terminal.")
@click.option("--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="A TOML settings file.")
def top(*, connect: str | None, once: bool, config_path: Path | None) -> None:
    """Show a server at work, live, until q or Ctrl-C: rates, outcomes, latencies, stock, workers."""
    host, port = _address(connect, load_config(config_path, os.environ))
    try:
        from rich.console import Console

        from flashsale.cli.picture import Seen
    except ModuleNotFoundError as error:
        raise ConfigError(f"`top` needs {error.name}: install 'flashsale[top]'") from error
    console = Console(highlight=False, markup=False, soft_wrap=False)
    seen = Seen(address=f"{host}:{port}")
    if once or not console.is_terminal:
        asyncio.run(_print_once(console, seen, host, port))
        return
    with suppress(KeyboardInterrupt):
        asyncio.run(_show(console, seen, host, port))


def _address(connect: str | None, config: Config) -> tuple[str, int]:
    """Return where the server speaks HTTP."""
    if connect is None and config.http == "off":
        raise ConfigError("the settings say that no HTTP is spoken: say with --connect where it is")
    host, port = split_address(connect or (config.listen if config.http in HTTP_WORDS else config.http))
    if not port:
        raise ConfigError("port 0 is any that is free: say with --connect which one it was")
    return _EVERYWHERE.get(host, host), port


async def _print_once(console: "Console", seen: "Seen", host: str, port: int) -> None:
    from flashsale.cli.picture import draw

    async with aclosing(onlooker.follow(host, port)) as pictures:
        seen.add(await anext(pictures))
    console.print(draw(seen, console.width, None))


async def _show(console: "Console", seen: "Seen", host: str, port: int) -> None:
    """Show what comes until q is pressed."""
    from rich.live import Live as Screen

    from flashsale.cli.picture import draw

    with Screen(console=console, screen=True, auto_refresh=False) as screen:

        def redraw() -> None:
            screen.update(draw(seen, console.width, console.height), refresh=True)

        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, redraw)
        redraw()
        following = asyncio.create_task(_follow(seen, host, port, redraw))
        with _on_q(following.cancel), suppress(asyncio.CancelledError):
            await following


async def _follow(seen: "Seen", host: str, port: int, redraw: Callable[[], None]) -> None:
    """Take pictures for as long as it runs, from a server that comes back too."""
    while True:
        try:
            async for picture in onlooker.follow(host, port):
                seen.add(picture)
                redraw()
        except (ConnectionLostError, ProtocolError) as error:
            seen.trouble = f"{error}; trying again"
        redraw()
        await asyncio.sleep(_RETRY_PAUSE_S)


@contextmanager
def _on_q(act: Callable[[], object]) -> Iterator[None]:
    """Do something when q is pressed, if somebody sits at a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(keyboard)

    def read() -> None:
        if {*os.read(keyboard, 64)} & {*b"qQ"}:
            act()

    tty.setcbreak(keyboard)  # keys come at once, and are not shown
    loop.add_reader(keyboard, read)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
