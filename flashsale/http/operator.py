"""`POST /reset`: the one thing that an operator may do over HTTP, and who counts as one."""

import hmac
import ipaddress
import logging
from urllib.parse import urlsplit

from msgspec import Struct

from flashsale.domain.ids import check_product_id
from flashsale.errors import (
    FlashsaleError,
    InvalidValueError,
    OutcomeUnknownError,
    ProductNotFoundError,
    RefusedError,
)
from flashsale.http.asks import RefusedError as AnsweredError
from flashsale.http.asks import header, parameters, peer, read_to_end
from flashsale.http.replies import Receive, Reply, Scope, json_reply, problem
from flashsale.http.services import Services

_NO_TOKEN = problem(401, "unauthorized", "this takes the operator's token: Authorization: Bearer TOKEN")
_NOT_YOURS = problem(403, "forbidden", "this takes the operator's token, and the server was given none")
_log = logging.getLogger(__name__)
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})


RESET = "inventory reset"


class ResetDone(Struct, frozen=True):
    """What was opened anew, and its units."""

    success: bool
    message: str
    product_id: str
    remaining_stock: int


class Operator:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reset(self, scope: Scope, receive: Receive) -> Reply:
        """Open a sale anew, with the units and on the terms it had at first."""
        await read_to_end(receive)
        self._check_operator(scope)
        product_id = parameters(scope).get("product_id")
        try:
            if product_id is not None:
                check_product_id(product_id)
            name, units = await self._services.reopen(product_id)
        except InvalidValueError as error:
            return problem(400, "bad-request", str(error))
        except ProductNotFoundError as error:
            return problem(404, "product-not-found", str(error))
        except RefusedError as error:
            return problem(409, "refused", str(error))
        except OutcomeUnknownError as error:
            return problem(504, "unknown", str(error))
        except FlashsaleError as error:
            return problem(503, "unavailable", str(error), retry_after_s=1)
        _log.info("the operator at %s has reset product '%s' to %d units", peer(scope), name, units)
        done = ResetDone(success=True, message=RESET, product_id=name, remaining_stock=units)
        return json_reply(200, done)

    def _check_operator(self, scope: Scope) -> None:
        """Raise AnsweredError unless it is the operator who asks: by his token, or from this machine."""
        given, token = header(scope, b"authorization"), self._services.operator_token
        if given is not None:
            scheme, _, said = given.partition(" ")
            if token and scheme.lower() == "bearer" and hmac.compare_digest(said.encode("latin-1"), token.encode()):
                return
            raise AnsweredError(_NO_TOKEN)
        if not is_local(scope) or self._services.proxies.trust(peer(scope)):
            raise AnsweredError(_NO_TOKEN if token else _NOT_YOURS)


def is_local(scope: Scope) -> bool:
    """Whether a program on this machine asks on its own account.

    A proxy here, which asks for others, says so in a header. A web page of somebody else that has this machine's
    browser ask gives itself away by its origin, or by the name that it had resolved to this machine.
    """
    if not _is_loopback(peer(scope)) or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    host, origin = header(scope, b"host") or "", header(scope, b"origin")
    try:
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
