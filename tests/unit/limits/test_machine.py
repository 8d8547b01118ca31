"""Every limiter does what the model does, step by step, whatever the steps."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from serve_app.gateway.limits.actor import ActorLimiter
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Level, Limiter, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.redis import RedisLimiter, connect
from tests.redis_server import RedisServer
from tests.unit.limits.conftest import Clock, Elsewhere
from tests.unit.limits.model import Model

LEASE_S = 30

HOLDERS = [Holder("one", "a"), Holder("one", "b"), Holder("one", "c"), Holder("two", "a")]
holders = st.sampled_from(HOLDERS)
quotas = st.builds(
    Quota,
    st.sampled_from([7, 2, 1, 600, None]),
    st.sampled_from([1000, 100, 10**9, None]),
    st.sampled_from([None, 1, 2]),
)
tokens = st.sampled_from([0, 1, 99, 100, 101, 600, 10**9]) | st.integers(0, 3000)
times = st.sampled_from([1, LEASE_S * 1000 - 1, LEASE_S * 1000, 60_000]) | st.integers(0, 20_000)


class LimiterMachine(RuleBasedStateMachine):
    """Runs one limiter beside the model."""

    def __init__(self, make: Callable[[Clock], Limiter]) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.limiter = make(self.clock)
        self.model = Model(LEASE_S)

    @initialize(one=quotas, two=quotas)
    def begin(self, one: Quota, two: Quota) -> None:
        self.quotas = {"one": one, "two": two}

    @rule(ms=times)
    def advance(self, ms: int) -> None:
        self.clock.ms += ms
        self.model.advance(ms)

    @rule(key=st.sampled_from(["one", "two"]), quota=quotas)
    def change_quota(self, key: str, quota: Quota) -> None:
        self.quotas[key] = quota

    @rule(holder=holders, requests=st.sampled_from([0, 1]), tokens=tokens)
    def reserve(self, holder: Holder, requests: int, tokens: int) -> None:
        quota = self.quotas[holder.key]
        decision = self.wait(self.limiter.reserve(Claim(holder, quota, requests, tokens)))
        expected = self.model.reserve(*holder, quota, {"requests": requests, "tokens": tokens})
        assert said(decision) == expected

    @rule(holder=holders, used=tokens)
    def settle(self, holder: Holder, used: int) -> None:
        self.wait(self.limiter.settle(holder, used))
        self.model.settle(*holder, used)

    @rule(holder=holders)
    def release(self, holder: Holder) -> None:
        self.wait(self.limiter.release(holder))
        self.model.release(*holder)

    @rule(renewed=st.lists(holders, unique=True))
    def renew(self, renewed: list[Holder]) -> None:
        self.wait(self.limiter.renew(renewed))
        for holder in renewed:
            self.model.renew(*holder)

    def wait(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.loop.close()


def said(decision: Decision) -> tuple[object, ...]:
    def seen(level: Level | None) -> tuple[int, int, int] | None:
        return level and (level.limit, level.remaining, level.reset_ms)

    refusal = decision.refusal
    wait = None if refusal is None else math.inf if refusal.wait_ms is None else refusal.wait_ms
    return refusal and refusal.limit, wait, seen(decision.requests), seen(decision.tokens)


class RedisMachine(LimiterMachine):
    """The same over an empty Redis."""

    def __init__(self, server: RedisServer) -> None:
        self.client = connect(server.url)
        super().__init__(lambda clock: RedisLimiter(self.client, LEASE_S, clock))
        self.wait(self.client.flushall())

    def teardown(self) -> None:
        self.wait(self.client.aclose())
        super().teardown()


def run(machine: Callable[[], LimiterMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # a factory is as good as a class
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_memory() -> None:
    run(lambda: LimiterMachine(lambda clock: MemoryLimiter(LEASE_S, clock)), 150)


def test_through_an_actor() -> None:
    run(lambda: LimiterMachine(lambda clock: ActorLimiter(Elsewhere(MemoryLimiter(LEASE_S, clock)))), 20)


def test_in_redis(redis_server: RedisServer) -> None:
    run(lambda: RedisMachine(redis_server), 40)
