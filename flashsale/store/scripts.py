"""The Lua scripts, read from the package beside this file."""

import hashlib
from importlib.resources import files

from msgspec import Struct


class Script(Struct, frozen=True):
    """A script's source and the SHA-1 by which Redis knows it."""

    source: bytes
    sha: str


def _load(name: str) -> Script:
    source = (files("flashsale.store") / "lua" / f"{name}.lua").read_bytes()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


PURCHASE = _load("purchase")
INIT = _load("init")
RESET = _load("reset")
