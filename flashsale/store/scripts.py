"""The Lua scripts, read from the package beside this file."""

import hashlib
from importlib.resources import files

from msgspec import Struct


class Script(Struct, frozen=True):
    """A script's source and the SHA-1 by which Redis knows it."""

    source: bytes
    sha: str


def make_script(source: bytes) -> Script:
    """Return the script of that source."""
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


def _load(*names: str) -> Script:
    """Return the script of which these files are the parts."""
    lua = files("flashsale.store") / "lua"
    return make_script(b"\n".join((lua / f"{name}.lua").read_bytes() for name in names))


DECIDE = _load("frame", "ledger", "plain", "known", "holds", "rules", "operator", "decide", "apply")
INIT = _load("unmoved", "opening", "init")
RESET = _load("unmoved", "deleting", "reset")
DUE = _load("opening", "due")
RETIRE = _load("unmoved", "deleting", "retire")
SNAPSHOT = _load("snapshot")
REPAIR = _load("repair")
MOVED = _load("moved")
TRIM = _load("trim")
FREEZE = _load("freeze")
REBUILD = _load("rebuild")
