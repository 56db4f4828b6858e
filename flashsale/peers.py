"""Who a client is, as the limits know it: an address, also of one that comes through proxies."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from flashsale.errors import InvalidValueError

_HOPS_MAX = 16
"""Proxies between a client and the server that are looked at."""
_IPV6_PREFIX = 64
"""Bits: what one customer is given, who has all the addresses behind it."""

Address = IPv4Address | IPv6Address


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Return what the limits call the client at an address: of IPv6 its /64; what is no address stays as it is."""
    found = _read(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((int(found), _IPV6_PREFIX), strict=False))
    return address if found is None else str(found)


class Proxies:
    """Those who are believed when they say for whom they ask."""

    def __init__(self, networks: str = "") -> None:
        """Believe nobody but these.

        Args:
            networks: such as `10.0.0.0/8, 192.0.2.7, fd00::/8`.

        Raises:
            InvalidValueError: one of them is none.
        """
        names = [name.strip() for name in networks.split(",")] if networks else []
        try:
            self._networks = [ip_network(name) for name in names]
        except ValueError:
            raise InvalidValueError(f"{networks!r} names no networks: give such as 10.0.0.0/8,192.0.2.7") from None

    def client_of(self, peer: str, forwarded: Sequence[str]) -> str:
        """Return the client that asks, as `client_of` has it.

        From the right, each hop was written by the one behind it: the first that is not trusted is the client.

        Args:
            peer: the address at the other end of the connection.
            forwarded: the values of X-Forwarded-For, in order.
        """
        if not self._networks or not forwarded or not self.trust(peer):
            return client_of(peer)
        client = peer
        for hop in reversed(",".join(forwarded).rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]):
            address = _read(_without_port(hop.strip()))
            if address is None:
                break  # whoever wrote that is as far as anybody is known
            client = str(address)
            if not self._trusts(address):
                break
        return client_of(client)

    def trust(self, peer: str) -> bool:
        """Whether that address is one of theirs."""
        return self._trusts(_read(peer))

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _read(text: str) -> Address | None:
    """Return the address that a text is; one of IPv4 that is written as IPv6 is one of IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _without_port(hop: str) -> str:
    """Return a hop without the port that some proxies write behind it."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
