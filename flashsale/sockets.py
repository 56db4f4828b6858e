"""What the doors ask of the system: addresses to listen on, descriptors, and how a connection ends."""

import asyncio
import logging
import os
import resource
import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from flashsale.errors import ConfigError, ListenError

LISTEN_BACKLOG = 65_535
"""Asked for; the kernel cuts it to net.core.somaxconn. With uvloop's default of 100, 10,000 clients at once hang."""

_EVERYWHERE = {"::", "0.0.0.0"}  # noqa: S104 - what the system calls it
_DESCRIPTORS_KEPT = 64  # for the store, the listeners, files
_NO_LINGER = struct.pack("ii", 1, 0)

# A subscriber may send nothing for as long as it likes, so the kernel asks whether it is still there.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

_log = logging.getLogger(__name__)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to the address, not yet listening; an empty host means all interfaces.

    Args:
        host: a name or an address.
        port: 0 lets the kernel choose.
        shared: let several processes bind it, each with a socket of its own (SO_REUSEPORT).

    Raises:
        ListenError: the address cannot be had.
    """
    last_error: OSError | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    # for all interfaces prefer the IPv6 socket, which takes IPv4 clients too
    found.sort(key=lambda entry: entry[0] != socket.AF_INET6 if not host else 0)
    for family, kind, protocol, _, address in found:
        listening = None
        try:
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
            listening.setblocking(False)  # noqa: FBT003 - the socket API has no keyword for it
            listening.bind(address)
        except OSError as error:
            last_error = error
            if listening is not None:
                listening.close()
            continue
        return listening
    reason = last_error.strerror if last_error else "no such address"
    raise ListenError(f"cannot listen on {host}:{port}: {reason}")


def connection_count_allowed(wanted: int) -> int:
    """Return how many connections this process may have; raise ConfigError if that is none."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or wanted <= limit - _DESCRIPTORS_KEPT:
        return wanted
    if limit <= _DESCRIPTORS_KEPT:
        raise ConfigError(f"the descriptor limit of {limit} leaves none for connections: raise it with `ulimit -n`")
    allowed = limit - _DESCRIPTORS_KEPT
    _log.warning("at most %d connections at once instead of %d: the descriptor limit is %d", allowed, wanted, limit)
    return allowed


def keep_alive(transport: asyncio.Transport) -> None:
    """Have the kernel find out when the client is gone without a word."""
    found = transport.get_extra_info("socket")
    if found is not None and not transport.is_closing():
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):  # not everywhere under this name
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def reset(transport: asyncio.Transport) -> None:
    """Drop a client now, with a reset: the kernel need not keep for it what it does not take."""
    link = transport.get_extra_info("socket")
    if link is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def tell_ready(environment: Mapping[str, str] = os.environ) -> None:
    """Tell systemd that the service is up, if it has started this process and wants to know (sd_notify(3))."""
    path = environment.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(b"READY=1", address)
    except OSError as error:
        _log.warning("systemd cannot be told that the server is up: %s", error.strerror)


class Port:
    """An address that the workers of a server listen on, kept while they come and go; a context manager."""

    def __init__(self, host: str, port: int) -> None:
        """Take the address, not yet listening; port 0 lets the kernel choose.

        It is taken alone first: sharing a port is refused to whoever already has it for himself, but would quietly
        succeed with another server of several workers.

        Raises:
            ListenError: the address cannot be had.
        """
        alone = bind(host, port)
        self.host, self.number = host, int(alone.getsockname()[1])
        self.address = alone.getsockname()[0]
        alone.close()
        self._kept = bind(host, self.number, shared=True)  # never listens

    def bind(self) -> socket.socket:
        """Return a socket bound to it, for one worker."""
        return bind(self.host, self.number, shared=True)

    def overlaps(self, other: "Port") -> bool:
        """Whether clients of the other address may come in here."""
        addresses = {self.address, other.address}
        return self.number == other.number and (len(addresses) == 1 or not addresses.isdisjoint(_EVERYWHERE))

    @property
    def is_loopback(self) -> bool:
        """Whether it is out of reach for others."""
        return self.host in {"127.0.0.1", "::1", "localhost"}

    def __str__(self) -> str:
        """Return HOST:PORT."""
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""
        self._kept.close()
