"""What happens to a request before Serve sees it: the headers that would steer Serve are gone, its id is ours.

Serve's own `/-/routes`, which tells of applications without a key, is no route here.

Serve takes this as a callback for its own HTTP servers, named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which
`make run` and the image set. Without it the service works, but a client can choose its request id, switch off
Serve's cancellation and time-out for its own request, pick a replica, and read `/-/routes`.
Source: ray/serve/_private/http_util.py, configure_http_middlewares.
"""

import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gateway.errors import NoSuchRoute
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import send_error

SERVES_ROUTES = "/-/routes"
REQUEST_ID = b"x-request-id"
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

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            request_id = (REQUEST_ID, uuid.uuid4().hex.encode())
            if scope["type"] == "http" and scope["path"] == SERVES_ROUTES:
                await send_error(NoSuchRoute(), send, [*COMMON, request_id])
                return
            headers = [pair for pair in scope["headers"] if not _steers(pair[0])]
            scope = {**scope, "headers": [*headers, request_id]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Serve's callback."""
    return [Middleware(Edge)]


def _steers(name: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")  # Serve takes either
    return name in STEERING or name.startswith(STEERING_PREFIX)
