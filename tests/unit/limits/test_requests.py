"""The limits of a request from its key to its end, also when its client goes away or the limiter does not answer."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client import CollectorRegistry

from serve_app.gateway.errors import RateLimited
from serve_app.gateway.limits import redis as shared_redis
from serve_app.gateway.limits.fallback import FallbackLimiter
from serve_app.gateway.limits.limiter import PATIENCE_S, Claim, Decision, Holder, Limiter, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.redis import RedisLimiter, connect
from serve_app.gateway.limits.requests import RequestLimits, Reservation
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock
from tests.virtual_time import now, run

QUOTA = Quota(requests_per_minute=60, tokens_per_minute=1000, concurrent=1)
FIRST, SECOND = Holder("key", "first"), Holder("key", "second")


class Slow(MemoryLimiter):
    """Stops before it answers, until it is let go on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(30, clock)
        self.go_on, self.asked = asyncio.Event(), asyncio.Event()
        self.ended = asyncio.Event()
        self.claims: list[Claim] = []
        self.renewed: list[Holder] = []

    async def reserve(self, claim: Claim) -> Decision:
        self.claims.append(claim)
        decision = await super().reserve(claim)
        self.asked.set()
        await self.go_on.wait()
        return decision

    async def settle(self, holder: Holder, used: int) -> None:
        self.asked.set()
        await self.go_on.wait()
        await super().settle(holder, used)
        self.ended.set()

    async def release(self, holder: Holder) -> None:
        await super().release(holder)
        self.ended.set()

    async def renew(self, holders: Sequence[Holder]) -> None:
        self.renewed = list(holders)
        self.asked.set()


class Distant(MemoryLimiter):
    """Takes so many seconds for the answer to each call."""

    def __init__(self, clock: Clock, *takes_s: float) -> None:
        super().__init__(30, clock)
        self._takes_s = iter(takes_s)
        self.calls: list[str] = []

    async def reserve(self, claim: Claim) -> Decision:
        self.calls.append("reserve")
        decision = await super().reserve(claim)
        await asyncio.sleep(next(self._takes_s))
        return decision

    async def settle(self, holder: Holder, used: int) -> None:
        self.calls.append("settle")
        await asyncio.sleep(next(self._takes_s))
        await super().settle(holder, used)


def with_fallback(shared: Limiter, clock: Clock) -> RequestLimits:
    limiter = FallbackLimiter(
        shared,
        MemoryLimiter(30, clock),
        gateways=2,
        failures=shared_redis.FAILURES,
        registry=CollectorRegistry(),
        clock=clock,
    )
    return RequestLimits(limiter, 30)


@pytest.fixture
def limiter(clock: Clock) -> MemoryLimiter:
    return MemoryLimiter(30, clock)


async def left(limiter: Limiter, quota: Quota = QUOTA) -> tuple[int, int]:
    """Requests and tokens that the key has left, when its slot is free."""
    decision = await limiter.reserve(Claim(SECOND, quota))
    assert decision.refusal is None
    assert decision.requests
    assert decision.tokens
    return decision.requests.remaining, decision.tokens.remaining


def limit_of(reservation: Reservation, name: str) -> int:
    return int(dict(reservation.headers)[f"x-ratelimit-limit-{name}"])


async def test_a_request_is_charged_for_what_it_used(limiter: MemoryLimiter) -> None:
    reservation = await RequestLimits(limiter, 30).open(FIRST, QUOTA)
    assert ("x-ratelimit-remaining-requests", "59") in reservation.headers
    await reservation.reserve_tokens(300)
    await reservation.reserve_tokens(200)
    assert ("x-ratelimit-remaining-tokens", "500") in reservation.headers
    await reservation.settle(120)
    await reservation.settle(500)
    await reservation.release()
    assert await left(limiter) == (59, 880)


async def test_a_refusal_is_an_answer_with_headers(limiter: MemoryLimiter) -> None:
    limits = RequestLimits(limiter, 30)
    reservation = await limits.open(FIRST, QUOTA)
    with pytest.raises(RateLimited, match="1 requests running"):
        await limits.open(SECOND, QUOTA)
    with pytest.raises(RateLimited) as refused:
        await reservation.reserve_tokens(1001)
    assert (b"x-ratelimit-remaining-requests", b"60") in refused.value.headers
    assert (b"x-should-retry", b"false") in refused.value.headers
    assert ("x-ratelimit-remaining-requests", "60") in reservation.headers
    await reservation.settle(0)
    assert await left(limiter) == (60, 1000)


async def test_a_key_without_a_limit_of_tokens_is_not_asked_for_any(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    reservation = await RequestLimits(limiter, 30).open(FIRST, Quota(requests_per_minute=60))
    await reservation.reserve_tokens(300)
    assert [(claim.requests, claim.tokens) for claim in limiter.claims] == [(1, 0)]
    await reservation.settle(120)
    assert limiter.ended.is_set()


async def test_texts_that_come_while_one_is_charged_are_charged_together_and_refused_together(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    reservation = await RequestLimits(limiter, 30).open(FIRST, QUOTA)
    limiter.go_on.clear()
    limiter.asked.clear()
    charging = [asyncio.create_task(reservation.reserve_tokens(10))]
    await limiter.asked.wait()
    charging += [asyncio.create_task(reservation.reserve_tokens(10)) for _ in range(89)]
    limiter.go_on.set()
    await asyncio.gather(*charging)
    assert [claim.tokens for claim in limiter.claims] == [0, 10, 890]
    refused = await asyncio.gather(*(reservation.reserve_tokens(60) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in refused] == [RateLimited] * 3
    await reservation.settle(900)
    assert await left(limiter) == (60, 100)


async def test_a_client_that_leaves_while_it_is_charged_is_not_charged(clock: Clock) -> None:
    limiter = Slow(clock)
    opening = asyncio.create_task(RequestLimits(limiter, 30).open(FIRST, QUOTA))
    await limiter.asked.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    limiter.go_on.set()
    await limiter.ended.wait()
    assert await left(limiter) == (60, 1000)


async def test_the_end_of_a_request_does_not_overtake_its_charge(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    reservation = await RequestLimits(limiter, 30).open(FIRST, QUOTA)
    limiter.go_on.clear()
    limiter.asked.clear()
    charging = asyncio.create_task(reservation.reserve_tokens(500))
    await limiter.asked.wait()
    charging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await charging
    await reservation.release()
    assert not limiter.ended.is_set()
    limiter.go_on.set()
    await limiter.ended.wait()
    assert await left(limiter) == (60, 1000)


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
    await limiter.ended.wait()
    assert await left(limiter) == (59, 900)


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


NEVER = 1e9
BOTH, SHARES_TOKENS, SHARES_ALL = (60, 1000), (60, 500), (30, 500)


@pytest.mark.parametrize(
    ("takes_s", "limits", "waited_s"),
    [
        ((0, 0, 0), BOTH, 0),
        ((0.02, 0.02, 0.005), BOTH, 0.045),
        ((0.02, 0.02, NEVER), BOTH, PATIENCE_S),
        ((0.03, 0.02, 0.03), BOTH, PATIENCE_S),
        ((0.03, 0.03, 0), SHARES_TOKENS, PATIENCE_S),
        ((0.001, NEVER, NEVER), SHARES_TOKENS, PATIENCE_S),
        ((0.06, 0, NEVER), (30, 1000), PATIENCE_S),
        ((NEVER, NEVER, NEVER), SHARES_ALL, PATIENCE_S),
    ],
)
def test_a_request_waits_once_for_all_that_it_asks(
    clock: Clock, takes_s: tuple[float, ...], limits: tuple[int, int], waited_s: float
) -> None:
    async def main() -> None:
        shared = Distant(clock, *takes_s)
        began = now()
        reservation = await with_fallback(shared, clock).open(FIRST, QUOTA)
        requests = limit_of(reservation, "requests")
        await reservation.reserve_tokens(400)
        assert (requests, limit_of(reservation, "tokens")) == limits
        await reservation.settle(100)
        assert now() - began == pytest.approx(waited_s)
        assert shared.calls == ["reserve", "reserve", "settle"]

    run(main())


async def test_what_ends_late_is_settled_nevertheless(clock: Clock) -> None:
    limiter = Slow(clock)
    limiter.go_on.set()
    reservation = await with_fallback(limiter, clock).open(FIRST, QUOTA)
    await reservation.reserve_tokens(400)
    limiter.go_on.clear()
    ending = asyncio.create_task(reservation.settle(100))
    await limiter.asked.wait()
    limiter.go_on.set()
    await ending
    assert await left(limiter) == (59, 900)


@pytest.fixture
async def redis_limits(mortal_redis: RedisServer, clock: Clock) -> AsyncIterator[RequestLimits]:
    """Those of a gateway that has used its Redis before."""
    async with connect(mortal_redis.url) as client:
        limits = with_fallback(RedisLimiter(client, 30), clock)
        while True:
            reservation = await limits.open(Holder("other", "first"), QUOTA)
            await reservation.settle(0)
            if limit_of(reservation, "requests") == 60:
                break
            clock.ms += 10_000
        yield limits


@pytest.mark.parametrize("hangs", [True, False])
async def test_requests_end_well_while_redis_hangs_or_is_down(
    redis_limits: RequestLimits, mortal_redis: RedisServer, hangs: bool
) -> None:
    if hangs:
        mortal_redis.send(signal.SIGSTOP)
    else:
        mortal_redis.kill()
    for left_of_share in (500, 400, 300, 200, 100):
        reservation = await redis_limits.open(FIRST, QUOTA)
        await reservation.reserve_tokens(100)
        assert dict(reservation.headers)["x-ratelimit-limit-requests"] == "30"
        assert dict(reservation.headers)["x-ratelimit-remaining-tokens"] == str(left_of_share - 100)
        with pytest.raises(RateLimited, match="1 requests running"):
            await redis_limits.open(SECOND, QUOTA)
        await reservation.settle(100)
    with pytest.raises(RateLimited, match="500 tokens a minute"):
        await (await redis_limits.open(FIRST, QUOTA)).reserve_tokens(1)
