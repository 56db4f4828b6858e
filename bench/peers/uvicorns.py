"""The life of a peer that is a plain uvicorn server, set up as its documentation recommends for speed."""

import argparse
import gc
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from flashsale.config import split_address
from flashsale.sockets import LISTEN_BACKLOG, bind


class _Server(uvicorn.Server):
    """Says that it listens, in the words that launch.ServerProcess waits for."""

    announcement = ""

    async def startup(self, *arguments: object, **named: object) -> None:
        await super().startup(*arguments, **named)  # type: ignore[arg-type]
        gc.freeze()  # as the server that it is compared with does
        sys.stdout.write(self.announcement)
        sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """Return `listen` and `home`, as every server of the benchmark is given them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--home", required=True, type=Path)
    return parser.parse_args()


def live(application: Starlette, listen: str, *, store: str = "none") -> None:
    """Serve an application until SIGTERM.

    Args:
        application: answers.
        listen: HOST:PORT; port 0 lets the kernel choose.
        store: the store's address, for the line.
    """
    listening = bind(*split_address(listen))
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=LISTEN_BACKLOG,
    )
    server = _Server(config)
    port = listening.getsockname()[1]
    server.announcement = f"Server initialized - Listening on 127.0.0.1:{port}, Redis: {store}\n"
    server.run(sockets=[listening])
