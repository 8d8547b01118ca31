"""Clients that race for one budget never get more of it than there is, by one token."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from serve_app.gateway.limits.actor import ActorLimiter
from serve_app.gateway.limits.limiter import Claim, Holder, Limiter, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.redis import RedisLimiter, connect
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock, Elsewhere

GATEWAYS = 6
EACH = 60


@pytest.fixture(params=["memory", "actor", "redis"])
async def gateways(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[list[Limiter]]:
    """The limiters of several gateways over one state, at a moment that does not pass."""
    if request.param == "memory":
        yield [MemoryLimiter(30, clock)] * GATEWAYS
    elif request.param == "actor":
        memory = MemoryLimiter(30, clock)
        yield [ActorLimiter(Elsewhere(memory)) for _ in range(GATEWAYS)]
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        async with contextlib.AsyncExitStack() as clients:
            yield [
                RedisLimiter(await clients.enter_async_context(connect(server.url)), 30, clock) for _ in range(GATEWAYS)
            ]


def claims(quota: Quota, requests: int = 0, tokens: int = 0) -> list[list[Claim]]:
    """What each gateway's clients claim."""
    return [
        [Claim(Holder("key", f"{gateway}-{n}"), quota, requests, tokens) for n in range(EACH)]
        for gateway in range(GATEWAYS)
    ]


async def granted(gateways: list[Limiter], claimed: list[list[Claim]]) -> list[Claim]:
    """Those of the claims that pass when all are made at once."""

    pairs = [(limiter, claim) for limiter, each in zip(gateways, claimed, strict=True) for claim in each]
    decisions = await asyncio.gather(*(limiter.reserve(claim) for limiter, claim in pairs))
    return [claim for (_, claim), decision in zip(pairs, decisions, strict=True) if decision.refusal is None]


async def left(limiter: Limiter, quota: Quota) -> tuple[int, int]:
    """What the key's buckets hold."""
    decision = await limiter.reserve(Claim(Holder("key", "observer"), quota))
    assert decision.requests
    assert decision.tokens
    return decision.requests.remaining, decision.tokens.remaining


async def test_for_tokens(gateways: list[Limiter]) -> None:
    quota = Quota(requests_per_minute=1000, tokens_per_minute=999)
    passed = await granted(gateways, claims(quota, requests=1, tokens=7))
    assert len(passed) == 999 // 7
    assert await left(gateways[0], quota) == (1000 - 142, 999 - 142 * 7)


async def test_for_requests(gateways: list[Limiter]) -> None:
    quota = Quota(requests_per_minute=100, tokens_per_minute=10_000)
    passed = await granted(gateways, claims(quota, requests=1, tokens=7))
    assert len(passed) == 100
    assert await left(gateways[0], quota) == (0, 10_000 - 700)


async def test_for_slots(gateways: list[Limiter]) -> None:
    quota = Quota(requests_per_minute=1000, tokens_per_minute=10_000, concurrent=5)
    for _ in range(3):
        passed = await granted(gateways, claims(quota, requests=1, tokens=7))
        assert len(passed) == 5
        await asyncio.gather(*(gateways[-1].settle(claim.holder, 7) for claim in passed))
    assert await left(gateways[0], quota) == (1000 - 15, 10_000 - 105)


async def test_settling_at_once_charges_each_once(gateways: list[Limiter]) -> None:
    quota = Quota(requests_per_minute=1000, tokens_per_minute=10_000)
    passed = await granted(gateways, claims(quota, requests=1, tokens=20))
    assert len(passed) == GATEWAYS * EACH
    ends = [limiter.settle(claim.holder, 3) for limiter in gateways[:3] for claim in passed]
    await asyncio.gather(*ends)
    assert await left(gateways[0], quota) == (1000 - 360, 10_000 - 360 * 3)
