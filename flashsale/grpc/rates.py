"""Who comes too often is answered before anybody is asked; what that is over gRPC is in the table of outcomes."""

from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from flashsale.domain.answers import Busy
from flashsale.domain.requests import Request, Subscribe
from flashsale.gating import Record, refuse
from flashsale.limiting import Gate
from flashsale.peers import Proxies

_FORWARDED = "x-forwarded-for"


class Rates(Struct, frozen=True):
    """The limits of a worker, as the gRPC door asks them."""

    gate: Gate
    proxies: Proxies
    """Those who are believed when they say for whom they ask."""
    record: Record
    """Is told of each that was refused."""

    def refuse(self, request: Request | Subscribe, context: Any) -> Busy | None:
        """Return the answer to a request that comes too often; None when it does not.

        Args:
            request: what is asked.
            context: the call's grpc.aio.ServicerContext.
        """
        forwarded = [value for name, value in context.invocation_metadata() if name == _FORWARDED]
        client = self.proxies.client_of(address_of(context.peer()), forwarded)
        return refuse(request, client, self.gate, self.record)


def address_of(peer: str) -> str:
    """Return the address in what gRPC calls a client: `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711`; else empty."""
    kind, _, place = peer.partition(":")
    return unquote(place).rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""
