"""The gateway's ASGI app: key, route, model, and then the model's own front end."""

import logging
from collections.abc import Awaitable

import msgspec
from starlette.types import Message, Receive, Scope, Send

from serve_app.gateway import reports
from serve_app.gateway.auth import BearerKey
from serve_app.gateway.body import ClientLeft, model_and_body, read_body, replay
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import (
    JSON,
    GatewayError,
    MethodNotAllowed,
    NotFound,
    TaskNotSupported,
    send_bytes,
    send_error,
)
from serve_app.gateway.models import Models
from serve_app.gateway.routes import HEALTH, METRICS, MODEL_LISTS, MODEL_PREFIX, MODEL_ROUTES, ModelRoute
from serve_app.telemetry.metrics import CONTENT_TYPE

logger = logging.getLogger("ray.serve")

# Headers by which vLLM or Serve would let a client choose ids, priority or a replica.
STEERING_HEADERS = frozenset(
    {b"x-request-id", b"x-session-id", b"x-vllm-priority", b"x-data-parallel-rank", b"content-length"}
)


class GatewayApp:
    """Answers every request that reaches a gateway replica."""

    def __init__(self, models: Models, key: BearerKey, config: GatewayConfig) -> None:
        self._models = models
        self._key = key
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        try:
            await self._route(scope, receive, response)
        except ClientLeft:
            return
        except GatewayError as error:
            await send_error(error, response, [])
        except Exception:  # the boundary to the client: it learns an id, the log learns the rest
            request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            logger.exception("request %s failed", request_id)
            if response.started:
                raise
            await send_error(GatewayError(f"The request failed inside the service ({request_id})."), response, [])

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == HEALTH:
            _require(scope, "GET", "HEAD")
            health = reports.health(self._models)
            return await _send_json(send, health, status=200 if health.model_loaded else 503)
        self._key.require(scope["headers"])
        if (route := MODEL_ROUTES.get(path)) is not None:
            _require(scope, "POST")
            return await self._to_model(route, scope, receive, send)
        if path in MODEL_LISTS:
            _require(scope, "GET", "HEAD")
            return await _send_json(send, reports.model_list(self._models))
        if path.startswith(MODEL_PREFIX):
            _require(scope, "GET", "HEAD")
            model = self._models.get(path.removeprefix(MODEL_PREFIX))
            return await _send_json(send, reports.model_card(model))
        if path == METRICS:
            _require(scope, "GET", "HEAD")
            text = reports.metrics(self._models)
            return await send_bytes(200, text, send, [(b"content-type", CONTENT_TYPE.encode())])
        raise NotFound(f"There is no route {path[:256]}.")

    async def _to_model(self, route: ModelRoute, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, self._config.max_body_bytes)
        name, body = await model_and_body(route, scope["headers"], body)
        model = self._models.get(name)
        frontend = self._models.ready(model)
        if route.path not in frontend.paths:
            raise TaskNotSupported(f"The model `{model.config.id}` does not support {route.path}.", param="model")
        headers = [pair for pair in scope["headers"] if pair[0] not in STEERING_HEADERS]
        headers.append((b"content-length", str(len(body)).encode()))
        inner = {
            **scope,
            "path": route.path,
            "raw_path": route.path.encode(),
            "root_path": "",
            "headers": headers,
        }
        await frontend.answer(inner, replay(body, receive), send, self._config.busy_from)


class _Response:
    """A `send` that knows whether the answer has begun."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    def __call__(self, message: Message) -> Awaitable[None]:
        self.started = True
        return self._send(message)


def _require(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        raise MethodNotAllowed(f"{scope['path']} takes {allowed}.", headers=[("allow", allowed)])


async def _send_json(send: Send, value: msgspec.Struct, status: int = 200) -> None:
    await send_bytes(status, msgspec.json.encode(value), send, [JSON])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
