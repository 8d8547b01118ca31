"""The gateway's ASGI app: request id, route, key and limits, and then the answer."""

import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from serve_app.gateway import reports
from serve_app.gateway.body import ClientLeft
from serve_app.gateway.call import Call
from serve_app.gateway.edge import REQUEST_ID
from serve_app.gateway.errors import GatewayError, InsufficientScope, MethodNotAllowed, NoSuchRoute
from serve_app.gateway.headers import with_headers
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.keyring import Keyring
from serve_app.gateway.limits.limiter import Holder, Quota
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Models
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.replies import JSON, send_bytes, send_error, style_of
from serve_app.gateway.routes import (
    HEALTH,
    METRICS,
    MODEL_LISTS,
    MODEL_PREFIX,
    MODEL_ROUTES,
    USAGE,
)
from serve_app.gateway.translate import internal_error
from serve_app.ledger.usage import UsageReports
from serve_app.telemetry.metrics import CONTENT_TYPE

# What may go into logs and into the ids of answers.
SAFE_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class GatewayApp:
    """Answers every request that reaches a gateway replica."""

    models: Models
    keyring: Keyring
    limits: RequestLimits
    quota: Quota
    """Of a key without limits of its own."""
    inference: Inference
    """Answers the model routes."""
    policy: Policy
    usage: UsageReports
    registries: list[CollectorRegistry]
    """The gateway's own metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "path": _path(scope)}
        request_id = _request_id(scope)
        calls: list[Call] = []
        send = with_headers(send, lambda: _limit_headers(calls))
        try:
            await self._route(scope, receive, send, request_id, calls)
        except ClientLeft:
            return
        except GatewayError as error:
            await send_error(error, send, [], style_of(scope["path"]))
        except Exception:  # the boundary to the client: it learns an id, the log learns the rest
            logger.exception("request %s failed", request_id)
            await send_error(internal_error(request_id), send, [], style_of(scope["path"]))

    async def _route(self, scope: Scope, receive: Receive, send: Send, request_id: str, calls: list[Call]) -> None:
        path: str = scope["path"]
        self.policy.check_head(scope["raw_path"] + scope["query_string"], scope["headers"])
        if path == HEALTH:
            _require(scope, "GET", "HEAD")
            health = reports.health(self.models)
            return await _send_json(send, health, status=200 if health.status in {"ok", "degraded"} else 503)
        address = scope["client"][0] if scope.get("client") else ""
        caller = self.keyring.authenticate(scope["headers"], address)
        if path == METRICS:
            _require(scope, "GET", "HEAD")
            if "admin" not in caller.features:
                raise InsufficientScope(path)
            text = reports.metrics(self.models, self.registries)
            return await send_bytes(200, text, send, [(b"content-type", CONTENT_TYPE.encode())])
        route = MODEL_ROUTES.get(path) if scope["method"] == "POST" else None
        try:
            call = await self._open(caller, request_id)
        except BaseException as error:
            if route is not None:
                self.inference.note_refusal(caller, path, request_id, error)
            raise
        calls.append(call)
        if route is not None:
            return await self.inference.answer(call, route, scope, receive, send)
        try:
            body = await self._read(scope, caller)
        finally:
            await call.reservation.settle(0)
        await _send_json(send, body)

    async def _open(self, caller: Caller, request_id: str) -> Call:
        own = caller.limits
        quota = Quota(
            own.requests_per_minute or self.quota.requests_per_minute,
            own.tokens_per_minute or self.quota.tokens_per_minute,
            own.concurrent or self.quota.concurrent,
        )
        # Without edge.py clients can choose request ids, and two requests of one id would share what they hold.
        reservation = await self.limits.open(Holder(caller.id, uuid.uuid4().hex), quota)
        return Call(request_id, caller, quota, reservation)

    async def _read(self, scope: Scope, caller: Caller) -> msgspec.Struct:
        """What the service says of itself to one of its callers."""
        path: str = scope["path"]
        caller.require_endpoint(path)
        if path in MODEL_ROUTES:
            _require(scope, "POST")
        if path in MODEL_LISTS:
            _require(scope, "GET", "HEAD")
            return reports.model_list(self.models.visible(caller))
        if path.startswith(MODEL_PREFIX):
            _require(scope, "GET", "HEAD")
            return reports.model_card(self.models.get(path.removeprefix(MODEL_PREFIX), caller))
        if path == USAGE:
            _require(scope, "GET", "HEAD")
            is_admin = "admin" in caller.features
            return await self.usage.answer(scope["query_string"], key_id=caller.id, is_admin=is_admin)
        raise NoSuchRoute


def _path(scope: Scope) -> str:
    """The path as it was sent: each route has one spelling. Only the id of a model may be percent-encoded in it."""
    sent: str = scope["raw_path"].decode("latin-1")
    return scope["path"] if sent.startswith(MODEL_PREFIX) else sent


def _request_id(scope: Scope) -> str:
    """The id that Serve answers with as `x-request-id`: ours (edge.py), or without that the client's or Serve's."""
    given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
    return given.decode("ascii") if SAFE_ID.fullmatch(given) else uuid.uuid4().hex


def _limit_headers(calls: list[Call]) -> list[tuple[bytes, bytes]]:
    """The limits of the key, once they are known."""
    return [(name.encode(), value.encode()) for call in calls for name, value in call.reservation.headers]


def _require(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        raise MethodNotAllowed(f"{scope['path']} takes {allowed}.", headers=[("allow", allowed)])


async def _send_json(send: Send, value: Any, status: int = 200) -> None:
    await send_bytes(status, msgspec.json.encode(value), send, [JSON])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
