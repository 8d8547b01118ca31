"""The limits of each request, from its key to its end: what the gateway calls."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn

from serve_app.gateway.errors import RateLimited
from serve_app.gateway.limits.headers import limit_headers, rate_limited
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Limiter, Quota


class RequestLimits:
    """The limits of all open requests of one gateway."""

    def __init__(self, limiter: Limiter, lease_s: float) -> None:
        """`lease_s`: the lease time of `limiter`, in seconds."""
        self._limiter = limiter
        self._lease_s = lease_s
        self._open: set[Holder] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, holder: Holder, quota: Quota) -> "Reservation":
        """Charge one request and take a slot. What it returns must be settled or released.

        Raises:
            RateLimited: the key has no request or no slot left.
        """
        self._open.add(holder)
        try:
            decision = await self.claim(Claim(holder, quota, requests=1))
        except RateLimited:
            self._open.discard(holder)
            raise
        except BaseException:
            # The limiter may have charged it without our hearing of it.
            await self.end(holder, self._limiter.release(holder))
            raise
        return Reservation(self, self._limiter, holder, quota, decision)

    async def run(self) -> NoReturn:
        """Renew the leases of open requests for ever."""
        while True:
            await asyncio.sleep(self._lease_s / 4)
            await self._limiter.renew(list(self._open))

    async def claim(self, claim: Claim) -> Decision:
        """Raises RateLimited where the limiter refuses."""
        decision = await self._limiter.reserve(claim)
        if decision.refusal:
            raise rate_limited(decision, decision.refusal)
        return decision

    async def end(self, holder: Holder, call: Coroutine[Any, Any, None]) -> None:
        """Carry out the last call for a request, also when the caller is cancelled meanwhile."""
        self._open.discard(holder)
        task = asyncio.create_task(call)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)


class Reservation:
    """What one open request holds. Only the first of `settle` and `release` has an effect."""

    def __init__(
        self, requests: RequestLimits, limiter: Limiter, holder: Holder, quota: Quota, decision: Decision
    ) -> None:
        self._requests, self._limiter = requests, limiter
        self._holder, self._quota, self._decision = holder, quota, decision

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The limits as the last claim left them, for the answer."""
        return limit_headers(self._decision)

    async def reserve_tokens(self, tokens: int) -> None:
        """Charge prompt tokens plus the most that may be generated; once for each prompt of the request.

        Raises:
            RateLimited: the key has not as many tokens left. The request is no longer charged as one, and it must
                still be settled.
        """
        self._decision = await self._requests.claim(Claim(self._holder, self._quota, tokens=tokens))

    async def settle(self, used: int) -> None:
        """The request has ended, however: charge the tokens of all its prompts and outputs, and free the slot."""
        await self._requests.end(self._holder, self._limiter.settle(self._holder, used))

    async def release(self) -> None:
        """The request was refused elsewhere before it ran: give everything back."""
        await self._requests.end(self._holder, self._limiter.release(self._holder))
