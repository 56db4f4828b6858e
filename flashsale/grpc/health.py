"""Health: whether buyers should be sent here, in the words of grpc.health.v1.

The library's own servicer holds a lock while a watcher takes a response: one that takes none would keep the server from
telling anybody else, and from its end. Here nobody waits for a watcher.
"""

import asyncio
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListResponse

from flashsale.grpc.orders import as_bytes
from flashsale.grpc.outcomes import TOO_SLOW, UNREADABLE, Refusal, refuse
from flashsale.grpc.receiving import receive
from flashsale.grpc.sending import send

NAME = "grpc.health.v1.Health"
_UNKNOWN_SERVICE = "unknown service"


class Health:
    """The health of one worker. Belongs to one event loop."""

    def __init__(self, service: str, *, frame_timeout_s: float, write_timeout_s: float) -> None:
        """Say SERVING, of that service and of the server.

        Args:
            service: its full name.
            frame_timeout_s: for a request to come.
            write_timeout_s: a watcher that does not take a response for so long is parted from.
        """
        self._statuses = dict.fromkeys(("", service), HealthCheckResponse.SERVING)
        self._changed = asyncio.Event()
        self._frame_timeout_s = frame_timeout_s
        self._write_timeout_s = write_timeout_s

    def retire(self) -> None:
        """Say NOT_SERVING, for good."""
        self._statuses = dict.fromkeys(self._statuses, HealthCheckResponse.NOT_SERVING)
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, stream: Any, context: Any) -> bytes:
        """Answer with the status of a service."""
        service = await self._read(context)
        if isinstance(service, Refusal):
            return refuse(context, service)
        status = self._statuses.get(service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(_UNKNOWN_SERVICE)
            return b""
        return as_bytes(HealthCheckResponse(status=status))

    async def list(self, stream: Any, context: Any) -> bytes:
        """Answer with the status of every service; what is in the message does not matter."""
        raw = await receive(context, self._frame_timeout_s)
        if isinstance(raw, Refusal):
            return refuse(context, raw)
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return as_bytes(HealthListResponse(statuses=statuses))

    async def watch(self, stream: Any, context: Any) -> None:
        """Tell the status of a service, and each other that follows, until the client goes."""
        service = await self._read(context)
        if isinstance(service, Refusal):
            refuse(context, service)
            return
        told = None
        while True:
            changed = self._changed  # before the status is looked at, so that none is missed
            status = self._statuses.get(service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                told = status
                if not await send(context, as_bytes(HealthCheckResponse(status=status)), self._write_timeout_s):
                    refuse(context, TOO_SLOW)
                    return
            await changed.wait()

    async def _read(self, context: Any) -> str | Refusal:
        """Return the service that is asked for."""
        raw = await receive(context, self._frame_timeout_s)
        if isinstance(raw, Refusal):
            return raw
        try:
            service: str = HealthCheckRequest.FromString(raw).service
        except DecodeError:
            return UNREADABLE
        return service
