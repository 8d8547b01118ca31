"""Limits while the shared limiter is down or slow: nobody waits for it, and each gateway keeps to its share."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter

from serve_app.gateway.limits.breaker import Breaker
from serve_app.gateway.limits.limiter import PATIENCE_S, Claim, Decision, Holder, Limiter, Quota
from serve_app.gateway.limits.memory import MemoryLimiter

T = TypeVar("T")

# Renewals are off the path of requests and may be many.
RENEW_S = 5.0
# Turns of the event loop that an answer needs which came in time, when the loop itself was late.
LATE_TURNS = 8


class FallbackLimiter:
    """A shared limiter that no request waits for longer than its patience, with a local one for when it would.

    The local one decides by each limit divided by the number of gateways, at least 1. Figures in its decisions
    are those of the share. What ends while the shared limiter is away is not settled there: its slot comes free
    when its lease ends, and its reserved tokens stay charged.
    """

    def __init__(
        self,
        shared: Limiter,
        local: MemoryLimiter,
        *,
        gateways: int,
        failures: tuple[type[Exception], ...],
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        shared: asked first.
        local: asked when `shared` gives no answer.
        gateways: how many gateways share the limits.
        failures: what `shared` raises when it cannot answer.
        registry: where `vllm_chat_limiter_fallback_total` is registered.
        clock: seconds, for the breaker.
        """
        self._shared, self._local, self._gateways = shared, local, gateways
        self._failures: tuple[type[Exception], ...] = (TimeoutError, *failures)
        self._breaker = Breaker(clock)
        self._fallbacks = Counter(
            "vllm_chat_limiter_fallback",
            "Claims that this gateway decided by its share, because the shared limiter was down or slow.",
            registry=registry,
        )

    async def reserve(self, claim: Claim) -> Decision:
        decision = await self._ask(lambda: self._shared.reserve(claim), claim.patience_s)
        if decision is None:
            self._fallbacks.inc()
            decision = await self._local.reserve(share(claim, self._gateways))
        return decision

    # A request may hold something in both: claimed before and after the shared limiter went away, or claimed
    # there without this gateway's hearing of it. So its end is told to both; who does not know it does nothing.

    async def settle(self, holder: Holder, used: int) -> None:
        await self._local.settle(holder, used)
        await self._ask(lambda: self._shared.settle(holder, used))

    async def release(self, holder: Holder) -> None:
        await self._local.release(holder)
        await self._ask(lambda: self._shared.release(holder))

    async def renew(self, holders: Sequence[Holder]) -> None:
        await self._local.renew(holders)
        await self._ask(lambda: self._shared.renew(holders), RENEW_S)

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, T]], limit_s: float = PATIENCE_S) -> T | None:
        """The shared limiter's answer, or None if there is none in time."""
        if not self._breaker.admits():
            return None
        try:
            answer = await _within(limit_s, call())
        except self._failures as error:
            self._breaker.failed(error)
            return None
        self._breaker.succeeded()
        return answer


async def _within(limit_s: float, call: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.timeout`, but an answer that is there counts, even if this event loop is late to look at it."""
    task = asyncio.create_task(call)
    try:
        await asyncio.wait([task], timeout=limit_s)
        for _ in range(LATE_TURNS):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        raise TimeoutError
    finally:
        task.cancel()


def share(claim: Claim, gateways: int) -> Claim:
    """The claim under one gateway's part of the limits.

    One that fits the whole limit but not the part asks for the whole part; the rest is charged when it is settled.
    """
    whole = claim.quota
    part = Quota(*(None if limit is None else max(1, limit // gateways) for limit in whole))
    tokens = claim.tokens
    if whole.tokens_per_minute is not None and part.tokens_per_minute is not None and tokens <= whole.tokens_per_minute:
        tokens = min(tokens, part.tokens_per_minute)
    return claim._replace(quota=part, tokens=tokens)
