"""The shared limiter down, slow or stopped: the answer comes from this gateway's share."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serve_app.gateway.limits import redis as shared_redis
from serve_app.gateway.limits.breaker import FAILURES_TO_OPEN, OPEN_S
from serve_app.gateway.limits.fallback import FallbackLimiter, share
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Limiter, Quota, Refusal
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.redis import RedisLimiter, connect
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock

QUOTA = Quota(requests_per_minute=60, tokens_per_minute=1000, concurrent=8)
FIRST, SECOND = Holder("key", "first"), Holder("key", "second")


class Shared(MemoryLimiter):
    """A shared limiter that does as `mood` does before it answers."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(30, clock)
        self.calls = 0
        self.mood: Callable[[], asyncio.Future[None] | None] = lambda: None

    async def reserve(self, claim: Claim) -> Decision:
        self.calls += 1
        if (wait := self.mood()) is not None:
            await wait
            for _ in range(3):
                await asyncio.sleep(0)
        return await super().reserve(claim)


def broken() -> None:
    raise ConnectionRefusedError


class Setup:
    def __init__(self, shared: Limiter, clock: Clock) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self.limiter = FallbackLimiter(
            shared,
            MemoryLimiter(30, clock),
            gateways=2,
            failures=shared_redis.FAILURES,
            registry=self.registry,
            clock=clock,
        )

    async def limit(self, holder: Holder = FIRST) -> int:
        """The limit of requests that a claim met: 60 shared, 30 this gateway's."""
        decision = await self.limiter.reserve(Claim(holder, QUOTA, requests=1))
        assert decision.refusal is None
        assert decision.requests
        return decision.requests.limit

    async def until_limit_is(self, limit: int) -> None:
        """Claim until the answer is the shared limiter's, or the share's."""
        while True:
            self.clock.ms += int(OPEN_S * 1000)
            if await self.limit() == limit:
                return

    @property
    def fallbacks(self) -> float | None:
        return self.registry.get_sample_value("vllm_chat_limiter_fallback_total")


@pytest.fixture
def shared(clock: Clock) -> Shared:
    return Shared(clock)


@pytest.fixture
def setup(shared: Shared, clock: Clock) -> Setup:
    return Setup(shared, clock)


async def test_a_shared_limiter_that_answers_decides(setup: Setup) -> None:
    assert await setup.limit() == 60
    assert setup.fallbacks == 0


async def test_one_that_never_answers_is_not_waited_for(setup: Setup, shared: Shared) -> None:
    shared.mood = lambda: asyncio.get_running_loop().create_future()
    assert await setup.limit() == 30
    assert setup.fallbacks == 1


async def test_it_is_left_alone_after_failures_in_a_row_and_tried_again_later(
    setup: Setup, shared: Shared, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shared.mood = broken
    for _ in range(10):
        assert await setup.limit() == 30
    assert (shared.calls, setup.fallbacks) == (FAILURES_TO_OPEN, 10)
    clock.ms += int(OPEN_S * 1000)
    assert [await setup.limit(), await setup.limit()] == [30, 30]
    assert shared.calls == FAILURES_TO_OPEN + 1
    clock.ms += int(OPEN_S * 1000)
    shared.mood = lambda: None
    assert [await setup.limit(), await setup.limit()] == [60, 60]
    assert setup.fallbacks == 12
    assert [record.getMessage() for record in caplog.records] == [
        "the shared limiter fails (ConnectionRefusedError): this gateway keeps to its share",
        "the shared limiter answers again",
    ]


async def test_failures_between_answers_do_not_add_up(setup: Setup, shared: Shared) -> None:
    for _ in range(FAILURES_TO_OPEN):
        shared.mood = broken
        assert await setup.limit() == 30
        shared.mood = lambda: None
        assert await setup.limit() == 60


async def test_an_answer_in_time_counts_though_this_gateway_was_late(setup: Setup, shared: Shared) -> None:
    def held_up() -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        loop.call_later(0.001, answer.set_result, None)
        loop.call_soon(time.sleep, 0.2)
        return answer

    shared.mood = held_up
    assert await setup.limit() == 60
    assert setup.fallbacks == 0


async def test_a_request_ends_in_both_limiters(setup: Setup, shared: Shared) -> None:
    await setup.limiter.reserve(Claim(FIRST, QUOTA, requests=1, tokens=600))
    shared.mood = broken
    await setup.limiter.reserve(Claim(SECOND, QUOTA, requests=1, tokens=500))
    shared.mood = lambda: None
    await setup.limiter.renew([FIRST, SECOND])
    await setup.limiter.settle(FIRST, 100)
    await setup.limiter.settle(SECOND, 100)
    decision = await shared.reserve(Claim(FIRST, QUOTA))
    assert decision.tokens
    assert decision.tokens.remaining == 900
    shared.mood = broken
    decision = await setup.limiter.reserve(Claim(SECOND, QUOTA))
    assert decision.tokens
    assert decision.tokens.remaining == 400


@pytest.mark.parametrize(
    ("quota", "tokens", "expected", "asked"),
    [
        (Quota(60, 1000, 8), 100, Quota(15, 250, 2), 100),
        (Quota(60, 1000, 8), 900, Quota(15, 250, 2), 250),
        (Quota(60, 1000, 8), 1001, Quota(15, 250, 2), 1001),
        (Quota(3, None, 1), 100, Quota(1, None, 1), 100),
    ],
)
def test_a_share_is_the_limit_over_the_gateways(quota: Quota, tokens: int, expected: Quota, asked: int) -> None:
    claim = share(Claim(FIRST, quota, 1, tokens), 4)
    assert claim == Claim(FIRST, expected, 1, asked)


async def test_a_claim_larger_than_the_share_becomes_its_debt(clock: Clock) -> None:
    limiter = MemoryLimiter(30, clock)
    await limiter.reserve(share(Claim(FIRST, QUOTA, 1, 900), 4))
    await limiter.settle(FIRST, 900)
    refused = await limiter.reserve(share(Claim(SECOND, QUOTA, 1, 250), 4))
    assert refused.refusal == Refusal("tokens", 250, 250, 216_000)


@pytest.fixture
async def stopped_server() -> AsyncIterator[SecretStr]:
    """A server that takes connections and says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    yield SecretStr(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


async def test_a_server_that_says_nothing(stopped_server: SecretStr, clock: Clock) -> None:
    async with connect(stopped_server) as client:
        setup = Setup(RedisLimiter(client, 30), clock)
        assert {await setup.limit() for _ in range(5)} == {30}
        assert setup.fallbacks == 5


async def test_redis_stops_and_goes_on(mortal_redis: RedisServer, clock: Clock) -> None:
    async with connect(mortal_redis.url) as client:
        setup = Setup(RedisLimiter(client, 30), clock)
        await setup.until_limit_is(60)
        mortal_redis.send(signal.SIGSTOP)
        limits = await asyncio.gather(*(setup.limit(Holder("key", str(n))) for n in range(3)))
        assert limits == [30, 30, 30]
        mortal_redis.send(signal.SIGCONT)
        await setup.until_limit_is(60)


async def test_redis_dies_and_comes_back(mortal_redis: RedisServer, clock: Clock) -> None:
    async with connect(mortal_redis.url) as client:
        setup = Setup(RedisLimiter(client, 30), clock)
        await setup.until_limit_is(60)
        mortal_redis.kill()
        assert [await setup.limit(Holder("key", str(n))) for n in range(3)] == [30, 30, 30]
        mortal_redis.start()
        await setup.until_limit_is(60)
