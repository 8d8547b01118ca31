"""A request on a model route, from its body to its row in the usage ledger."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from starlette.types import Receive, Scope, Send

from serve_app.gateway import ticket as tickets
from serve_app.gateway.body import ClientLeft, model_of_form, read_body, replay
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.deadlines import client_deadline
from serve_app.gateway.errors import BadRequest, GatewayError, ModelNotFound, TaskNotSupported, style_of
from serve_app.gateway.frontend import Frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.limits.limiter import Quota
from serve_app.gateway.limits.requests import Reservation
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.response import CLIENT_LEFT, Answer
from serve_app.gateway.routes import ModelRoute
from serve_app.gateway.ticket import Ticket
from serve_app.ledger.row import Finish, Row
from serve_app.ledger.writer import Ledger

# Headers by which a client would choose ids, priority or a replica in vLLM or Serve; ours take their place.
STEERING = frozenset({b"x-request-id", b"x-session-id", b"x-vllm-priority", b"x-data-parallel-rank", b"content-length"})


@dataclass(slots=True)
class Call:
    """One authenticated request: who sent it, under which id and limits, and what became of it."""

    request_id: str
    caller: Caller
    quota: Quota
    reservation: Reservation
    arrived: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    model: str = ""
    status: int | None = None
    error: GatewayError | None = None
    ticket: Ticket | None = None
    frontend: Frontend | None = None
