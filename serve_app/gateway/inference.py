"""A request on a model route, from its body to its row in the usage ledger."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gateway import ticket as tickets
from serve_app.gateway.admission import Admission
from serve_app.gateway.aliases import conversation_of
from serve_app.gateway.body import ClientLeft, read_body, replay
from serve_app.gateway.call import Call
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.deadlines import client_deadline
from serve_app.gateway.errors import GatewayError, ModelFailed, ModelLoading, Overloaded, TaskNotSupported
from serve_app.gateway.frontend import Frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.models import Model, Models, Name
from serve_app.gateway.policy.check import Asked, Checked, Policy, for_model
from serve_app.gateway.replies import JSON, style_of
from serve_app.gateway.response import CLIENT_LEFT, Answer
from serve_app.gateway.routes import ModelRoute
from serve_app.gateway.rows import INTERNAL, row_of
from serve_app.gateway.ticket import Ticket
from serve_app.gateway.translate import internal_error
from serve_app.ledger.row import Finish, Row
from serve_app.ledger.writer import Ledger

logger = logging.getLogger("ray.serve")

# After these another model can answer, where there is one to fall back on.
UNAVAILABLE = (ModelLoading, ModelFailed, Overloaded)
# Headers by which a client would choose ids, priority or a replica in vLLM; ours take their place.
STEERING = frozenset({b"x-request-id", b"x-session-id", b"x-vllm-priority", b"x-data-parallel-rank", b"content-length"})


class _Request(NamedTuple):
    route: ModelRoute
    scope: Scope
    receive: Receive
    send: Send
    body: bytes
    deadline: float | None
    """When the client must have its first token, in the event loop's time."""


class Inference:
    """Answers the model routes of one gateway."""

    def __init__(self, models: Models, policy: Policy, ledger: Ledger | None, config: GatewayConfig) -> None:
        self._models = models
        self._policy = policy
        self._ledger = ledger
        self._config = config

    async def answer(self, call: Call, route: ModelRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, settle its limits and write its row, however it ends.

        Raises:
            GatewayError: the request ended before vLLM's front end had it.
            ClientLeft: the client did not wait for that.
        """
        try:
            await self._answer(call, route, scope, receive, send)
        except GatewayError as error:
            call.error, call.status = error, error.status
            raise
        except ClientLeft:
            call.client_left = True
            raise
        except Exception:  # the caller logs it, and answers
            call.error = internal_error(call.request_id)
            call.status = call.status or INTERNAL
            raise
        finally:
            await self._account(call, scope["path"])

    def note_refusal(self, caller: Caller, path: str, request_id: str, error: BaseException) -> None:
        """Write the row of a request that the key's limits did not let in, or that ended before they could."""
        finish: Finish = "abort" if isinstance(error, asyncio.CancelledError) else "error"
        status = CLIENT_LEFT if finish == "abort" else INTERNAL
        if isinstance(error, GatewayError):
            finish, status = "refused", error.status
        if self._ledger is not None:
            self._ledger.add(
                Row(
                    time=datetime.now(UTC),
                    request_id=request_id,
                    key_id=caller.id,
                    model="",
                    route=path,
                    duration_s=0.0,
                    finish=finish,
                    attempts=0,
                    status=status,
                )
            )

    async def _answer(self, call: Call, route: ModelRoute, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        self._policy.check_content(route, headers)
        body = await read_body(receive, self._policy.body_limit(route), self._config.deadlines.body_s)
        read = asyncio.get_running_loop().time()
        asked = await self._policy.read(route, headers, body)
        # Before all else, which could tell a model out of the key's scope from one that is not there.
        names = self._models.candidates(
            asked.model, call.caller, lambda: conversation_of(call.caller.id, headers, asked.fields)
        )
        call.model = names[0].id
        call.caller.require_endpoint(scope["path"])
        request = _Request(route, scope, receive, send, body, client_deadline(headers, call.started, read))
        for name in names[:-1]:
            if await self._ask(call, request, asked, name, last=False):
                return
            asked = await self._policy.read(route, headers, body)  # the check has changed it
        await self._ask(call, request, asked, self._models.last_of(names), last=True)

    async def _ask(self, call: Call, request: _Request, asked: Asked, name: Name, *, last: bool) -> bool:
        """Have a model answer. False: it cannot now, and the client, which has been sent nothing, may ask another."""
        route, scope, headers = request.route, request.scope, request.scope["headers"]
        model, call.model = name.model, name.id
        body = request.body
        if asked.model is not None or not route.model_required:
            asked, body = for_model(asked, headers, body, name.id)
        checked = await self._policy.check(route, headers, body, asked, call.caller)
        if not last and not self._models.ready(name):
            model.wake()
            return False
        self._models.check(name)
        if model.frontend is not None:
            _check_route(route, model, model.frontend)
        call.ticket = ticket = Ticket(
            model.config.id,
            call.caller,
            lambda: _admission(model),
            call.reservation,
            call.quota,
            deadline=request.deadline,
            bounded=checked.bounded,
            prompts=checked.prompts,
            choices=checked.choices,
            up_since=lambda: self._models.up_since(model),
            before=call.ticket,
        )
        answer = Answer(
            request.send,
            self._config.deadlines,
            ticket,
            lambda: ticket.refusal,
            request_id=call.request_id,
            style=style_of(scope["path"]),
            streams=asked.streams,
            elsewhere=lambda error: not last and isinstance(error, UNAVAILABLE),
            before_end=call.settle,
        )
        ticket.on_refusal = answer.fail
        token = tickets.current.set(ticket)
        try:
            inner = _inner_scope(route, scope, checked.body, call.request_id)
            app = self._app(call, ticket, route, model, checked)
            await answer.run(app, inner, replay(checked.body, request.receive))
        finally:
            tickets.current.reset(token)
            ticket.close()
            call.status, call.error, call.client_left = answer.status, answer.error, answer.client_left
        return not answer.is_for_others

    def _app(self, call: Call, ticket: Ticket, route: ModelRoute, model: Model, checked: Checked) -> ASGIApp:
        """The model's front end, which it may have to wait for."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                call.frontend = frontend = await model.opened()
                _check_route(route, model, frontend)
                frontend.reading.check(checked, self._config.policy, call.caller.limits.context)
                ticket.check()
            except GatewayError as refusal:
                ticket.refuse(refusal)
            else:
                await frontend.answer(scope, receive, send)

        return app

    async def _account(self, call: Call, path: str) -> None:
        used = call.usage()
        # The row first: Serve cancels a request whose client has left, and can do so at any `await`.
        if self._ledger is not None:
            self._ledger.add(row_of(call, path, used))
        await call.settle()


def _admission(model: Model) -> Admission:
    assert model.frontend is not None  # noqa: S101  it has just made tokens of the prompt
    return model.frontend.admission


def _check_route(route: ModelRoute, model: Model, frontend: Frontend) -> None:
    if route.path not in frontend.paths:
        raise TaskNotSupported(f"The model `{model.config.id}` does not support {route.path}.", param="model")


def _inner_scope(route: ModelRoute, scope: Scope, body: bytes, request_id: str) -> Scope:
    headers = [pair for pair in scope["headers"] if pair[0] not in STEERING]
    headers += [(b"content-length", str(len(body)).encode()), (b"x-request-id", request_id.encode())]
    if not route.multipart:
        headers = [*(pair for pair in headers if pair[0] != b"content-type"), JSON]
    path = route.path.encode()
    return {**scope, "path": route.path, "raw_path": path, "root_path": "", "query_string": b"", "headers": headers}
