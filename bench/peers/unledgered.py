"""The same server, but its script writes no ledger: beside it one sees what the ledger costs.

    python -m bench.peers.unledgered --listen 127.0.0.1:0 --home DIRECTORY

Everything else is as it is, also the list of changes that the script makes; only the one XADD of each batch is missing.
"""

import sys

from flashsale.cli import main
from flashsale.errors import FlashsaleError
from flashsale.store import scripts

_APPEND = b"local function append("


def without_ledger(source: bytes) -> bytes:
    """Return the decision script with an `append` that does nothing; raises FlashsaleError if it has none."""
    before, found, after = source.partition(_APPEND)
    arguments, _, body = after.partition(b"\n")
    if not found:
        raise FlashsaleError("the script has no function 'append' that could be left out")
    return before + found + arguments + b"\n  do return nil end\n" + body


if __name__ == "__main__":
    scripts.DECIDE = scripts.make_script(without_ledger(scripts.DECIDE.source))
    sys.argv[1:1] = ["serve"]
    main()
