"""What a client of the gRPC door is told."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

PATIENCE_S = 30.0


def refused(call: Callable[..., Any], request: Any) -> tuple[str, str, dict[str, Any]]:
    """Return code, words and metadata of a call that must not be fulfilled."""
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=PATIENCE_S)
    return error.value.code().name, error.value.details(), dict(error.value.trailing_metadata())
