"""`flashsale` with a shorter session in its group, so that one that is killed is missed soon.

With KILLED_BEFORE_COMMIT it dies as by kill -9 when the database has something and the brokers are to be told.
"""

import os
import signal

from flashsale.cli import main
from flashsale.kafka import brokers
from flashsale.kafka.inbox import Inbox

brokers._SESSION_S = 1.5


async def die(inbox: Inbox, _timeout_s: float = 0) -> None:
    if any(place.done_offset > 0 for place in inbox._partitions.values()):
        os.kill(os.getpid(), signal.SIGKILL)


if "KILLED_BEFORE_COMMIT" in os.environ:
    Inbox._commit = die  # type: ignore[method-assign]
main()
