"""What the limits mean, in short stories that hold for every limiter; test_machine.py compares them at length."""

from collections.abc import AsyncIterator

import pytest

from serve_app.gateway.limits.actor import ActorLimiter
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Limiter, Quota, Refusal
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.redis import RedisLimiter, connect
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock, Elsewhere

QUOTA = Quota(requests_per_minute=60, tokens_per_minute=1000, concurrent=2)
FIRST, SECOND, THIRD = (Holder("key", name) for name in ("first", "second", "third"))


@pytest.fixture(params=["memory", "actor", "redis"])
async def limiter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Limiter]:
    if request.param == "memory":
        yield MemoryLimiter(30, clock)
    elif request.param == "actor":
        yield ActorLimiter(Elsewhere(MemoryLimiter(30, clock)))
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        async with connect(server.url) as client:
            yield RedisLimiter(client, 30, clock)


def remaining(decision: Decision) -> tuple[int, int]:
    assert decision.requests
    assert decision.tokens
    return decision.requests.remaining, decision.tokens.remaining


async def look(limiter: Limiter) -> tuple[int, int]:
    """Requests and tokens left, by a claim for nothing."""
    decision = await limiter.reserve(Claim(Holder("key", "look"), QUOTA._replace(concurrent=None)))
    await limiter.release(Holder("key", "look"))
    return remaining(decision)


async def test_a_request_is_charged_in_two_claims_and_settled(limiter: Limiter) -> None:
    assert remaining(await limiter.reserve(Claim(FIRST, QUOTA, requests=1))) == (59, 1000)
    assert remaining(await limiter.reserve(Claim(FIRST, QUOTA, tokens=400))) == (59, 600)
    await limiter.settle(FIRST, 150)
    assert await look(limiter) == (59, 850)
    await limiter.settle(FIRST, 150)
    await limiter.release(FIRST)
    assert await look(limiter) == (59, 850)


async def test_what_was_used_beyond_the_reservation_is_a_debt(limiter: Limiter, clock: Clock) -> None:
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=900))
    await limiter.settle(FIRST, 1500)
    assert await look(limiter) == (59, -500)
    refused = await limiter.reserve(Claim(SECOND, QUOTA, tokens=100))
    assert refused.refusal == Refusal("tokens", 1000, 100, 36_000)
    clock.ms += 36_000
    assert remaining(await limiter.reserve(Claim(SECOND, QUOTA, tokens=100))) == (60, 0)


async def test_a_refused_second_claim_gives_the_first_back(limiter: Limiter) -> None:
    quota = QUOTA._replace(concurrent=1)
    await limiter.reserve(Claim(FIRST, quota, requests=1))
    decision = await limiter.reserve(Claim(FIRST, quota, tokens=1001))
    assert decision.refusal == Refusal("tokens", 1000, 1001, None)
    assert remaining(decision) == (60, 1000)
    assert (await limiter.reserve(Claim(SECOND, quota, requests=1))).refusal is None


async def test_tokens_that_may_have_been_used_stay_until_they_are_settled(limiter: Limiter) -> None:
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=700))
    decision = await limiter.reserve(Claim(FIRST, QUOTA, tokens=700))
    assert remaining(decision) == (60, 300)
    await limiter.settle(FIRST, 500)
    assert await look(limiter) == (60, 500)


async def test_a_refused_claim_charges_nothing(limiter: Limiter) -> None:
    decision = await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=1001))
    assert remaining(decision) == (60, 1000)
    for holder in (FIRST, SECOND):
        await limiter.reserve(Claim(holder, QUOTA, requests=1))
    decision = await limiter.reserve(Claim(THIRD, QUOTA, requests=1, tokens=10))
    assert decision.refusal == Refusal("concurrent", 2, 1, 1000)
    assert remaining(decision) == (58, 1000)


async def test_the_limit_with_the_longest_wait_refuses(limiter: Limiter) -> None:
    quota = Quota(requests_per_minute=1, tokens_per_minute=1000, concurrent=1)
    await limiter.reserve(Claim(FIRST, quota, requests=1, tokens=1000))
    decision = await limiter.reserve(Claim(SECOND, quota, requests=1, tokens=500))
    assert decision.refusal == Refusal("requests", 1, 1, 60_000)


async def test_a_released_request_was_never_there(limiter: Limiter) -> None:
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=400))
    await limiter.release(FIRST)
    await limiter.release(FIRST)
    await limiter.settle(FIRST, 400)
    assert await look(limiter) == (60, 1000)


async def test_what_was_given_back_is_not_given_back_again(limiter: Limiter) -> None:
    await limiter.reserve(Claim(SECOND, QUOTA, requests=1))
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=700))
    await limiter.reserve(Claim(FIRST, QUOTA, tokens=700))
    assert await look(limiter) == (59, 300)
    await limiter.release(FIRST)
    assert await look(limiter) == (59, 1000)


async def test_nothing_is_given_back_beyond_the_limit(limiter: Limiter, clock: Clock) -> None:
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=700))
    clock.ms += 29_999
    await limiter.renew([FIRST])
    clock.ms += 29_999
    assert remaining(await limiter.reserve(Claim(FIRST, QUOTA, tokens=1001))) == (60, 1000)
    await limiter.settle(FIRST, 0)
    assert await look(limiter) == (60, 1000)


async def test_slots_of_a_gateway_that_died_come_free(limiter: Limiter, clock: Clock) -> None:
    for holder in (FIRST, SECOND):
        await limiter.reserve(Claim(holder, QUOTA, requests=1))
    clock.ms += 20_000
    await limiter.renew([FIRST, THIRD])
    clock.ms += 9_999
    assert (await limiter.reserve(Claim(THIRD, QUOTA))).refusal == Refusal("concurrent", 2, 1, 1000)
    clock.ms += 1
    assert (await limiter.reserve(Claim(THIRD, QUOTA))).refusal is None
    await limiter.renew([SECOND])
    assert (await limiter.reserve(Claim(SECOND, QUOTA))).refusal == Refusal("concurrent", 2, 1, 1000)


async def test_keys_have_nothing_in_common(limiter: Limiter) -> None:
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=1000))
    decision = await limiter.reserve(Claim(Holder("other", "first"), QUOTA, requests=1, tokens=1000))
    assert decision.refusal is None


async def test_a_key_without_limits_always_passes(limiter: Limiter) -> None:
    for n in range(20):
        claim = Claim(Holder("key", str(n)), Quota(), requests=1, tokens=10**9)
        assert await limiter.reserve(claim) == Decision(None, None, None)
