"""Health and reflection, which are no part of a sale: their handlers, and how many streams of them there may be.

Such a stream may be silent for as long as its client likes, and so could take the room of all other calls. Their
handlers take and return bytes, as those of OrderService do: to the library an unreadable message would be a bug, which
it prints.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from flashsale.domain.answers import BUSY
from flashsale.grpc.defects import tell_defect
from flashsale.grpc.health import NAME, Health
from flashsale.grpc.orders import as_bytes
from flashsale.grpc.outcomes import TOO_SLOW, UNREADABLE, Refusal, refuse, refuse_with
from flashsale.grpc.receiving import receive_next
from flashsale.grpc.sending import send


class Borrowed:
    """Those services, for one worker."""

    def __init__(self, service: str, *, stream_count_max: int, frame_timeout_s: float, write_timeout_s: float) -> None:
        """Tell of a service, which is serving.

        Args:
            service: its full name.
            stream_count_max: streams at once; one beyond them is told that the server is busy.
            frame_timeout_s: for a message to come.
            write_timeout_s: a client that does not take a response for so long is parted from.
        """
        self._stream_count_max = stream_count_max
        self._stream_count = 0
        self._frame_timeout_s = frame_timeout_s
        self._write_timeout_s = write_timeout_s
        self._health = Health(service, frame_timeout_s=frame_timeout_s, write_timeout_s=write_timeout_s)
        self._reflection = reflection.aio.ReflectionServicer((service, NAME, reflection.SERVICE_NAME))
        once = grpc.stream_unary_rpc_method_handler
        self.handlers: dict[str, Any] = {
            f"/{NAME}/Check": once(self._health.check),
            f"/{NAME}/List": once(self._health.list),
            f"/{NAME}/Watch": self._bounded(self._health.watch),
            f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": self._bounded(self._reflect),
        }
        """By path. To the library each takes a stream, so that it does not wait for a message by itself, for ever."""

    def retire(self) -> None:
        """Have health say NOT_SERVING, for good."""
        self._health.retire()

    def _bounded(self, behaviour: Callable[[Any, Any], Awaitable[None]]) -> Any:
        """Return a handler of streams that has room for so many; those count that have sent nothing yet."""

        async def serve(stream: Any, context: Any) -> None:
            if self._stream_count >= self._stream_count_max:
                refuse_with(context, BUSY)
                return
            self._stream_count += 1
            try:
                await behaviour(stream, context)
            finally:
                self._stream_count -= 1

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _reflect(self, stream: Any, context: Any) -> None:
        """Answer what is asked of the messages and services."""
        try:
            async with aclosing(self._reflection.ServerReflectionInfo(self._questions(context), context)) as answers:
                async for answer in answers:
                    if not await send(context, as_bytes(answer), self._write_timeout_s):
                        refuse(context, TOO_SLOW)
                        return
        except grpc.aio.BaseError:
            raise  # the client has gone: gRPC knows what to do
        except Exception:  # noqa: BLE001 - a bug, which is logged there
            tell_defect(context, "ServerReflectionInfo")

    async def _questions(self, context: Any) -> AsyncIterator[ServerReflectionRequest]:
        """Give what is asked, until there is no more or something is wrong with it, which the client is told."""
        while True:
            raw = await receive_next(context, self._frame_timeout_s)
            if raw is None:
                return
            if isinstance(raw, Refusal):
                refuse(context, raw)
                return
            try:
                question = ServerReflectionRequest.FromString(raw)
            except DecodeError:
                refuse(context, UNREADABLE)
                return
            yield question
