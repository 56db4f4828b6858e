"""Health and reflection, which the library brings along: their handlers, and how many streams of them there may be.

Such a stream may be silent for as long as its client likes, and so could take the room of all other calls.
"""

import inspect
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from flashsale.domain.answers import BUSY
from flashsale.grpc import health
from flashsale.grpc.outcomes import refuse_with


class Borrowed:
    """Those services, for one worker. To them it is the server that they are added to."""

    def __init__(self, service: str, *, stream_count_max: int, frame_timeout_s: float, write_timeout_s: float) -> None:
        """Tell of a service, which is serving.

        Args:
            service: its full name.
            stream_count_max: streams at once; one beyond them is told that the server is busy.
            frame_timeout_s: for a request to come.
            write_timeout_s: a client that does not take a response for so long is parted from.
        """
        self.handlers: dict[str, Any] = {}
        """By path."""
        self._stream_count_max = stream_count_max
        self._stream_count = 0
        self._health = health.Health(service, frame_timeout_s=frame_timeout_s, write_timeout_s=write_timeout_s)
        once, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        told = {"Check": once(self._health.check), "List": once(self._health.list), "Watch": stream(self._health.watch)}
        self.add_registered_method_handlers(health.NAME, told)
        services = (service, health.NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(services), self)

    def retire(self) -> None:
        """Have health say NOT_SERVING, for good."""
        self._health.retire()

    # Called by generated code

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the same handlers come the other way."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the handlers of a service; gRPC is not to know each by itself, as it would wait for each by itself."""
        for name, handler in handlers.items():
            self.handlers[f"/{service}/{name}"] = self._bounded(handler) if handler.response_streaming else handler

    def _bounded(self, handler: Any) -> Any:
        """Return a handler of streams that has room for so many."""
        behaviour = handler.stream_stream or handler.unary_stream

        async def serve(request: Any, context: Any) -> None:
            if self._stream_count >= self._stream_count_max:
                refuse_with(context, BUSY)
                return
            self._stream_count += 1
            try:
                told = behaviour(request, context)
                if inspect.isasyncgen(told):
                    async for response in told:
                        await context.write(response)
                else:
                    await told
            finally:
                self._stream_count -= 1

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(serve, handler.request_deserializer, handler.response_serializer)
