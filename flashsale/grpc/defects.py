"""A call that meets a bug gets the safe answer, and an id that its line in the log bears."""

import logging
import re
import secrets
from typing import Any

from flashsale import logs
from flashsale.grpc.outcomes import DEFECT, ID_KEY, refuse

_WELL_FORMED = re.compile(r"[A-Za-z0-9._:=/+-]{1,64}")  # as over HTTP
_FRESH_SIZE = 12  # bytes
_log = logging.getLogger(__name__)


def tell_defect(context: Any, call: str) -> bytes:
    """Log the exception that is being handled, and have the call end; return what its handler has to return.

    gRPC would tell the client what the exception was. The id is the client's own, if that is short and plain.

    Args:
        context: the call's grpc.aio.ServicerContext.
        call: its name.
    """
    given = dict(context.invocation_metadata()).get(ID_KEY)
    found = given if isinstance(given, str) and _WELL_FORMED.fullmatch(given) else secrets.token_hex(_FRESH_SIZE)
    logs.request_id.set(found)  # gRPC runs each call in a task, and so a context, of its own
    _log.exception("%s failed", call)
    return refuse(context, DEFECT, (*DEFECT.as_metadata(), (ID_KEY, found)))
