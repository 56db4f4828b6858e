"""The HTTP door as the server opens it."""

import asyncio
import logging
from email.utils import formatdate

from uvicorn.server import ServerState

from flashsale.http.identity import Identified
from flashsale.http.services import Services
from flashsale.http.session import HttpSession, Places, make_config
from flashsale.http.site import HOT, Site
from flashsale.server import TcpServer

_DATE_S = 1.0


class HttpDoor:
    """Makes the protocol of each client that speaks HTTP."""

    def __init__(self, services: Services, *, body_size_max: int) -> None:
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what clients do wrong fills no log
        self._config = make_config(Identified(Site(services), hot=HOT))
        self._state = ServerState()
        self._respond = services.respond
        self._draining = services.draining.is_set
        self._body_size_max = body_size_max
        self._keep_date()

    def make_session(self, server: TcpServer) -> HttpSession:
        """Return the protocol of one client."""
        places = Places(server.admit, server.forget, self._respond, self._draining)
        return HttpSession(self._config, self._state, places, body_size_max=self._body_size_max)

    def _keep_date(self) -> None:
        """Have answers bear the present date."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        asyncio.get_running_loop().call_later(_DATE_S, self._keep_date)
