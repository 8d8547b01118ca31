"""The limits of each request, from its key to its end: what the gateway calls."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from serve_app.gateway.errors import RateLimited
from serve_app.gateway.limits.headers import limit_headers, rate_limited
from serve_app.gateway.limits.limiter import PATIENCE_S, Claim, Decision, Holder, Limiter, Quota

T = TypeVar("T")


class RequestLimits:
    """The limits of all open requests of one gateway."""

    def __init__(self, limiter: Limiter, lease_s: float) -> None:
        """`lease_s`: the lease time of `limiter`, in seconds."""
        self._limiter = limiter
        self._lease_s = lease_s
        self._open: set[Holder] = set()
        self._calls: set[asyncio.Task[Any]] = set()

    async def open(self, holder: Holder, quota: Quota) -> "Reservation":
        """Charge one request and take a slot. What it returns must be settled or released.

        Raises:
            RateLimited: the key has no request or no slot left.
        """
        reservation = Reservation(self, self._limiter, holder, quota)
        self._open.add(holder)
        try:
            await reservation.claim(requests=1)
        except RateLimited:
            self._open.discard(holder)
            raise
        except BaseException:
            # The limiter may have charged it without our hearing of it.
            await reservation.release()
            raise
        return reservation

    async def run(self) -> NoReturn:
        """Renew the leases of open requests for ever."""
        while True:
            await asyncio.sleep(self._lease_s / 4)
            await self._limiter.renew(list(self._open))

    def forget(self, holder: Holder) -> None:
        """No longer renew the lease of a request."""
        self._open.discard(holder)

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Carry out a call to the limiter to its end, whatever becomes of who waits for it."""
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task


class Reservation:
    """What one open request holds. Only the first of `settle` and `release` has an effect.

    Its calls to the limiter follow one another, so that none that is under way is overtaken by the last. Together
    they keep the request waiting for `PATIENCE_S` at most.
    """

    def __init__(self, requests: RequestLimits, limiter: Limiter, holder: Holder, quota: Quota) -> None:
        self._requests, self._limiter = requests, limiter
        self._holder, self._quota = holder, quota
        self._decision = Decision(None, None, None)
        self._patience_s = PATIENCE_S
        self._turn = asyncio.Lock()
        self._asked = 0
        self._ending: asyncio.Task[None] | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The limits as the last claim left them, for the answer."""
        return limit_headers(self._decision)

    async def reserve_tokens(self, tokens: int) -> None:
        """Charge prompt tokens plus the most that may be generated, of all prompts and choices at once.

        Several at a time, as of the texts of one request, are charged in as few claims as they can.

        Raises:
            RateLimited: the key has not as many tokens left. The request is no longer charged as one, and it must
                still be settled.
        """
        if self._quota.tokens_per_minute is not None:
            self._asked += tokens
            await self.claim()

    async def claim(self, requests: int = 0) -> None:
        """Charge so many requests, and the tokens that were asked for and are not charged yet; see `reserve_tokens`."""
        await asyncio.shield(self._requests.start(self._claim(requests)))
        if self._decision.refusal:
            raise rate_limited(self._decision, self._decision.refusal)

    async def settle(self, used: int) -> None:
        """The request has ended, however: charge the tokens of all its prompts and outputs, and free the slot."""
        await self._end(lambda: self._limiter.settle(self._holder, used))

    async def release(self) -> None:
        """The request was refused elsewhere before it ran: give everything back."""
        await self._end(lambda: self._limiter.release(self._holder))

    async def _claim(self, requests: int) -> None:
        async with self._turn:
            tokens, self._asked = self._asked, 0
            if self._decision.refusal or not (requests or tokens):
                return
            began = asyncio.get_running_loop().time()
            claim = Claim(self._holder, self._quota, requests, tokens, self._patience_s)
            self._decision = await self._limiter.reserve(claim)
            self._waited(began)

    async def _end(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._ending is None:
            self._requests.forget(self._holder)
            self._ending = self._requests.start(self._last(call))
        if not self._ending.done():
            began = asyncio.get_running_loop().time()
            await asyncio.wait([self._ending], timeout=self._patience_s)
            self._waited(began)

    async def _last(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._turn:
            await call()

    def _waited(self, began: float) -> None:
        self._patience_s = max(0.0, self._patience_s - (asyncio.get_running_loop().time() - began))
