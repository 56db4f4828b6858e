"""What an error from Redis says about the batch that met it: not executed, perhaps executed, or a defect of the keys.

A broken link is not decided here: whether anything was sent is known to the engine alone.
"""

import re

from redis.exceptions import RedisError, ResponseError

from flashsale.domain.batches import Ambiguous, Defective, NotExecuted

# Redis refuses these before the script's first write: nothing happened, and repeating is safe.
NOT_EXECUTED_CODES = frozenset(
    {
        "NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "OOM",
        "NOREPLICAS", "MISCONF", "BUSY", "NOAUTH", "NOPERM", "WRONGPASS",
    }
)  # fmt: skip
# After these the link itself is of no use: another server is the primary now, or this one will not let us in.
RECONNECT_CODES = frozenset({"READONLY", "MASTERDOWN", "MOVED"})
_DEFECT_CODE = "WRONGTYPE"  # found by the script's reads, before its first write

_CODE = re.compile(r"\b([A-Z]{2,})\b")


def error_code(error: RedisError) -> str:
    """Return the error's code, such as OOM, or ERR when it has none that is known here.

    redis-py takes the code off the text of some errors and keeps it in `status_code`; an error from inside a script
    carries the code somewhere in its text (Redis 6) or in front (Redis 7).
    """
    codes = [str(getattr(error, "status_code", None))]
    if isinstance(error, ResponseError):
        codes += _CODE.findall(str(error))
    return next((code for code in codes if code in NOT_EXECUTED_CODES or code == _DEFECT_CODE), "ERR")


def classify(error: RedisError) -> NotExecuted | Ambiguous | Defective:
    """Return what the error says about the batch; one that is not known here may have come after a write."""
    code = error_code(error)
    if code in NOT_EXECUTED_CODES:
        return NotExecuted(str(error))
    return Defective(str(error)) if code == _DEFECT_CODE else Ambiguous(str(error), alone=True)
