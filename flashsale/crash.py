"""Kills this process at a labelled step, to see what becomes of its work; only when FLASHSALE_CRASH_AT says so.

A process that is started again counts anew. The table is the README's "Crash points".
"""

import logging
import os
import re
import signal
from collections.abc import Mapping

from flashsale.errors import ConfigError

VARIABLE = "FLASHSALE_CRASH_AT"
LABELS = {
    "after-read": "a server has taken the requests of a batch, and has not sent them to the store",
    "after-script": "the store's reply to a round of batches is there, and nobody is answered",
    "before-reply": "the answers of a batch are encoded, and not sent",
    "after-fetch": "a mover has read changes, and begun no transaction",
    "before-commit": "their rows are written, and not committed",
    "after-commit": "they are committed, which is not noted in the store",
    "after-note": "it is noted",
}
"""What has happened where a label stands, and what has not."""

_VALUE = re.compile(r"([a-z-]+)(?::([1-9][0-9]{0,8}))?")
_log = logging.getLogger(__name__)
_left: dict[str, int] = {}
"""How many times a label is still to be reached; empty unless the variable is set."""


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Read the variable: `label`, or `label:N` for the N-th time that it is reached.

    Raises:
        ConfigError: there is no such label, or N is no number from 1 on.
    """
    _left.clear()
    value = environment.get(VARIABLE, "")
    if not value:
        return
    match = _VALUE.fullmatch(value)
    if match is None or match[1] not in LABELS:
        raise ConfigError(f"{VARIABLE} is {value!r}; it must be one of {', '.join(LABELS)}, with :N for the N-th time")
    _left[match[1]] = int(match[2] or 1)
    _log.warning("%s is %s: each process is killed there", VARIABLE, value)


def crash_point(label: str) -> None:
    """Die as kill -9 has it, if this is where and when."""
    if _left and label in _left:
        _left[label] -= 1
        if not _left[label]:
            os.kill(os.getpid(), signal.SIGKILL)
