"""The limits of a request from its key to its end, also when its client goes away."""

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.gateway.errors import RateLimited
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from tests.unit.limits.conftest import Clock

QUOTA = Quota(requests_per_minute=60, tokens_per_minute=1000, concurrent=1)
FIRST, SECOND = Holder("key", "first"), Holder("key", "second")


class Slow(MemoryLimiter):
    """Stops before it answers, until it is let go on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(30, clock)
        self.go_on, self.asked = asyncio.Event(), asyncio.Event()
        self.settled = asyncio.Event()
        self.renewed: list[Holder] = []

    async def reserve(self, claim: Claim) -> Decision:
        decision = await super().reserve(claim)
        self.asked.set()
        await self.go_on.wait()
        return decision

    async def settle(self, holder: Holder, used: int) -> None:
        self.asked.set()
        await self.go_on.wait()
        await super().settle(holder, used)
        self.settled.set()

    async def renew(self, holders: Sequence[Holder]) -> None:
        self.renewed = list(holders)
        self.asked.set()


@pytest.fixture
def limiter(clock: Clock) -> MemoryLimiter:
    return MemoryLimiter(30, clock)


async def tokens_left(limiter: MemoryLimiter) -> int:
    decision = await limiter.reserve(Claim(SECOND, QUOTA))
    assert decision.refusal is None
    assert decision.tokens
    return decision.tokens.remaining


async def test_a_request_is_charged_for_what_it_used(limiter: MemoryLimiter) -> None:
    reservation = await RequestLimits(limiter, 30).open(FIRST, QUOTA)
    assert ("x-ratelimit-remaining-requests", "59") in reservation.headers
    await reservation.reserve_tokens(300)
    await reservation.reserve_tokens(200)
    assert ("x-ratelimit-remaining-tokens", "500") in reservation.headers
    await reservation.settle(120)
    assert await tokens_left(limiter) == 880


async def test_a_refusal_is_an_answer_with_headers(limiter: MemoryLimiter) -> None:
    limits = RequestLimits(limiter, 30)
    reservation = await limits.open(FIRST, QUOTA)
    with pytest.raises(RateLimited, match="1 requests running"):
        await limits.open(SECOND, QUOTA)
    with pytest.raises(RateLimited) as refused:
        await reservation.reserve_tokens(1001)
    assert (b"x-ratelimit-remaining-requests", b"60") in refused.value.headers
    assert (b"x-should-retry", b"false") in refused.value.headers
    await reservation.settle(0)
    assert await tokens_left(limiter) == 1000


async def test_a_client_that_leaves_while_it_is_charged_is_not_charged(clock: Clock) -> None:
    limiter = Slow(clock)
    opening = asyncio.create_task(RequestLimits(limiter, 30).open(FIRST, QUOTA))
    await limiter.asked.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    limiter.go_on.set()
    decision = await limiter.reserve(Claim(SECOND, QUOTA))
    assert decision.refusal is None
    assert decision.requests
    assert decision.requests.remaining == 60


async def test_a_client_that_leaves_while_it_is_settled_is_settled(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    limits = RequestLimits(limiter, 30)
    reservation = await limits.open(FIRST, QUOTA)
    await reservation.reserve_tokens(500)
    limiter.go_on.clear()
    limiter.asked.clear()
    ending = asyncio.create_task(reservation.settle(100))
    await limiter.asked.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    limiter.go_on.set()
    await limiter.settled.wait()
    assert await tokens_left(limiter) == 900


async def test_open_requests_are_renewed_and_no_others(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    limits = RequestLimits(limiter, lease_s=0.004)
    await limits.open(FIRST, QUOTA)
    with pytest.raises(RateLimited):
        await limits.open(SECOND, QUOTA)
    limiter.asked.clear()
    renewing = asyncio.create_task(limits.run())
    await limiter.asked.wait()
    assert limiter.renewed == [FIRST]
    renewing.cancel()
