"""What happens to a request before Serve sees it: the headers that would steer Serve are gone, its id is ours.

Serve's own `/-/routes`, which tells of applications without a key, is no route here, and what Serve answers itself,
in plain text, gets the shape of all answers.

Serve takes this as a callback for its own HTTP servers, named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which
`make run` and the image set. Without it the service works, but a client can choose its request id, switch off
Serve's cancellation and time-out for its own request, pick a replica, read `/-/routes`, and take its time.
Source: ray/serve/_private/http_util.py, configure_http_middlewares.
"""

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from serve_app.gateway import connection
from serve_app.gateway.cors import early_origins, marks_of
from serve_app.gateway.errors import DeadlineExceeded, GatewayError, GatewayUnavailable, Headers, NoSuchRoute
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import send_error, style_of
from serve_app.gateway.translate import internal_error
from serve_app.ray_seam import behind_haproxy

logger = logging.getLogger("ray.serve")

SERVES_ROUTES = "/-/routes"
REQUEST_ID = b"x-request-id"
FORWARDED_FOR = b"x-forwarded-for"
TRUSTED_PROXIES = "FORWARDED_ALLOW_IPS"
STEERING = frozenset(
    {
        REQUEST_ID,
        b"serve-multiplexed-model-id",
        b"x-request-disconnect-disabled",
        b"x-request-timeout-seconds",
        b"x-session-id",
    }
)
STEERING_PREFIX = b"x-serve-"


class Edge:
    """The outermost layer of each of Serve's HTTP servers."""

    def __init__(self, app: ASGIApp, origins: frozenset[bytes] = frozenset(), proxies: str | None = None) -> None:
        """Args:
        app: Serve's.
        origins: of CORS_ORIGINS.
        proxies: addresses of proxies in front of HAProxy, in uvicorn's form; None: there is no HAProxy.
        """
        self._behind_haproxy = proxies is not None
        self._app: Any = app if proxies is None else ProxyHeadersMiddleware(app, proxies)  # type: ignore[arg-type]
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, scope, self._origins)
        if scope["path"] == SERVES_ROUTES:
            await answer.refuse(NoSuchRoute())
            return
        headers = [pair for pair in scope["headers"] if not _steers(pair[0])]
        headers.append((REQUEST_ID, answer.request_id))
        scope = {**scope, "headers": headers}
        if self._behind_haproxy:
            _take_client(scope)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.begun:
                raise
            logger.exception("request %s failed", answer.request_id.decode())
        if not answer.begun:
            await answer.refuse(internal_error(answer.request_id.decode()))


class _Answer:
    """What one request is answered."""

    def __init__(self, send: Send, scope: Scope, origins: frozenset[bytes]) -> None:
        self.request_id = uuid.uuid4().hex.encode()
        self.begun = False
        self._send = send
        self._style = style_of(scope["path"])
        self._marks = marks_of(scope["headers"], origins)
        self._replaced = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on what the gateway says. What Serve itself says gets our headers, or if an error, our words."""
        if message["type"] == "http.response.start":
            self.begun = True
            if COMMON[0] not in message.get("headers", ()):
                if message["status"] >= 400:
                    self._replaced = True
                    return self.refuse(_instead_of(message["status"], self.request_id.decode()))
                message = {**message, "headers": [*message.get("headers", ()), *COMMON, *self._marks]}
        return asyncio.sleep(0) if self._replaced else self._send(message)

    async def refuse(self, error: GatewayError) -> None:
        headers: Headers = [*COMMON, (REQUEST_ID, self.request_id), *self._marks]
        await send_error(error, self._send, headers, self._style)


def middlewares() -> list[Middleware]:
    """Serve's callback."""
    # uvicorn would take clients on this machine at their word about where they come from.
    os.environ.setdefault(TRUSTED_PROXIES, "")
    connection.install()
    proxies = os.environ[TRUSTED_PROXIES] if behind_haproxy() else None
    return [Middleware(Edge, origins=early_origins(), proxies=proxies)]


def _steers(name: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")  # Serve takes either
    return name in STEERING or name.startswith(STEERING_PREFIX)


def _take_client(scope: Scope) -> None:
    """HAProxy has put the client's address behind what the client itself says of it."""
    headers: Headers = scope["headers"]
    for place, (name, value) in reversed(list(enumerate(headers))):
        if name == FORWARDED_FOR:
            scope["client"] = (value.decode("latin-1"), 0)
            del headers[place]
            return


def _instead_of(status: int, request_id: str) -> GatewayError:
    """What is answered where Serve itself would have answered with this status."""
    if status == 408:
        return DeadlineExceeded("The request")
    # 404: the application is not there yet.
    return GatewayUnavailable() if status in {404, 429, 503} else internal_error(request_id)
