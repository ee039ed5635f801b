"""Who may come in: plain HTTP pages, and what is checked before a websocket opens."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from .server_metrics import CONTENT_TYPE, ServerMetrics


class Handshake:
    """Answers `/healthz` and `/metrics`, and refuses connections: `process_request` of `websockets`.

    Args:
        api_key: what clients send as `Authorization: Api-Key KEY`, for `/metrics` too. None: anybody may come in.
        is_full: whether there is no room for one more client.
    """

    def __init__(self, metrics: ServerMetrics, api_key: str | None, is_full: Callable[[], bool]) -> None:
        self._metrics, self._is_full = metrics, is_full
        self._expected = None if api_key is None else f"Api-Key {api_key}".encode()

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """None to open the websocket, or the HTTP answer that there is instead."""
        path = urlsplit(request.path).path
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._knows_the_key(request.headers):
            self._metrics.errors.labels("unauthorised").inc()
            told = "The API key is missing or wrong: send Authorization: Api-Key KEY\n"
            return connection.respond(HTTPStatus.UNAUTHORIZED, told)
        if path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self._metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if _is_from_another_page(request.headers):
            self._metrics.errors.labels("foreign_origin").inc()
            return connection.respond(HTTPStatus.FORBIDDEN, "Web pages of other places may not connect\n")
        if self._is_full():
            self._metrics.errors.labels("full").inc()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The server has as many clients as it takes\n")
        return None

    def _knows_the_key(self, headers: Headers) -> bool:
        if self._expected is None:
            return True
        given = headers.get_all("Authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode(errors="replace"), self._expected)


def _is_from_another_page(headers: Headers) -> bool:
    """Whether a browser connects for a page that is not from here: any page can reach a server on this machine.

    A page whose address is a name is never from here: whoever owns a name can let it mean this machine ("DNS
    rebinding"), after which page and server have the same one.
    """
    hosts = headers.get_all("Host")
    try:
        pages = [urlsplit(origin) for origin in headers.get_all("Origin")]
        for page in pages:
            if page.hostname != "localhost":
                ipaddress.ip_address(page.hostname or "")
    except ValueError:  # no address
        return True
    return any(page.netloc not in hosts for page in pages)


__all__ = ["Handshake"]
