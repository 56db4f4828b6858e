"""The least that an endpoint can do: answers every purchase with the same JSON, as a Starlette route under uvicorn.

python -m bench.peers.starlette_constant --listen 127.0.0.1:0 --home DIRECTORY
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.peers.uvicorns import arguments, live

PLACED = "order placed successfully"


async def purchase(request: Request) -> JSONResponse:
    """Answer as if a unit had been sold."""
    order_id = "1a1fedc4163-0000000002-62e3873a-compared"  # as long as a real one
    return JSONResponse({"success": True, "message": PLACED, "order_id": order_id})


application = Starlette(routes=[Route("/api/purchase", purchase, methods=["POST"])])

if __name__ == "__main__":
    live(application, arguments().listen)
