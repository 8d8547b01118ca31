"""One authenticated request: who sent it, under which id and limits, and what became of it."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serve_app.gateway.errors import GatewayError
from serve_app.gateway.frontend import Frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.limits.limiter import Quota
from serve_app.gateway.limits.requests import Reservation
from serve_app.gateway.ticket import Ticket
from serve_app.gateway.usage import Usage


@dataclass(slots=True)
class Call:
    """Filled in as the request goes through the gateway."""

    request_id: str
    caller: Caller
    quota: Quota
    reservation: Reservation
    arrived: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    """Seconds, monotonic clock."""
    model: str = ""
    frontend: Frontend | None = None
    ticket: Ticket | None = None
    status: int | None = None
    """What the client got; None: it left before that."""
    error: GatewayError | None = None
    client_left: bool = False

    def usage(self) -> Usage:
        """What the request has come to so far."""
        return self.ticket.usage() if self.ticket else Usage()

    async def settle(self) -> None:
        """Charge the caller's limits with what was used, and free its place. Calls after the first do nothing."""
        used = self.usage()
        if self.ticket and self.ticket.refusal and not used.attempts:
            await self.reservation.release()
        else:
            await self.reservation.settle(used.prompt_tokens + used.output_tokens)
