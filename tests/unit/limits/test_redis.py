"""What only Redis has: its script, its clock, its keys."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from serve_app.gateway.limits.limiter import Claim, Holder, Quota
from serve_app.gateway.limits.redis import RedisLimiter, connect
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock

QUOTA = Quota(requests_per_minute=60, tokens_per_minute=1000, concurrent=1)
FIRST, SECOND = Holder("key", "first"), Holder("key", "second")


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with connect(redis_server.url) as client:
        yield client


async def test_a_claim_over_all_limits_is_one_call(client: Redis) -> None:
    limiter = RedisLimiter(client, 30)
    await limiter.renew([FIRST])
    await client.config_resetstat()
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=100))
    stats = await client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert not {"cmdstat_eval", "cmdstat_script|load", "cmdstat_hello", "cmdstat_client|setinfo"} & stats.keys()


async def test_the_script_is_loaded_again_when_redis_has_lost_it(client: Redis) -> None:
    limiter = RedisLimiter(client, 30)
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1))
    await client.script_flush()
    assert (await limiter.reserve(Claim(FIRST, QUOTA, tokens=100))).refusal is None


async def test_the_keys_of_one_key_live_on_one_node_and_expire(client: Redis, clock: Clock) -> None:
    limiter = RedisLimiter(client, 30, clock)
    await limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=100))
    names: list[bytes] = await client.keys()  # type: ignore[assignment]
    assert sorted(names) == [b"vc:limits:{key}:buckets", b"vc:limits:{key}:holds", b"vc:limits:{key}:leases"]
    assert len({key_slot(name) for name in names}) == 1
    assert [name for name in names if not 0 < await client.pttl(name) <= 30_000] == []
    await limiter.settle(FIRST, 3000)
    assert await client.keys() == [b"vc:limits:{key}:buckets"]
    assert 30_000 < await client.pttl(b"vc:limits:{key}:buckets") <= 180_000


async def test_buckets_refill_by_the_time_of_redis(client: Redis) -> None:
    limiter, quota = RedisLimiter(client, 30), Quota(tokens_per_minute=60_000)
    await limiter.reserve(Claim(FIRST, quota, tokens=60_000))
    assert (await limiter.reserve(Claim(SECOND, quota, tokens=60_000))).refusal
    while (await limiter.reserve(Claim(SECOND, quota, tokens=20))).refusal:
        pass


async def test_leases_end_by_the_time_of_redis(client: Redis) -> None:
    limiter = RedisLimiter(client, 0.05)
    await limiter.reserve(Claim(FIRST, QUOTA))
    while (await limiter.reserve(Claim(SECOND, QUOTA))).refusal:
        pass
    await limiter.settle(FIRST, 1000)
    decision = await limiter.reserve(Claim(Holder("key", "third"), QUOTA._replace(concurrent=None)))
    assert decision.tokens
    assert decision.tokens.remaining == 1000
