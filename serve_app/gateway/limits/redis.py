"""The limiter that all gateways share through Redis: each call is one EVALSHA, atomic, by the server's clock.

Keys are `vc:limits:{<key id>}:<part>`: the braces keep one key's three parts on one node of a cluster.
Source: https://redis.io/docs/latest/commands/evalsha/. Redis 5 or newer.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Level, Quota, decide
from serve_app.gateway.limits.script import LUA

FAILURES: tuple[type[Exception], ...] = (RedisError, OSError)
"""What a call raises when Redis cannot be used."""

# Calls that one gateway has under way at once. More only wait inside Redis, which runs one at a time.
CALLS = 16


def connect(url: SecretStr) -> Redis:
    """A client that connects when it is first used and tries nothing twice: how long a call may take is not its say.

    `protocol=2` and no driver information save two round trips with each new connection.
    """
    return Redis.from_url(
        url.get_secret_value(),
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        max_connections=8 * CALLS,
    )


class RedisLimiter:
    """A `Limiter` over Redis. Each method raises one of `FAILURES` if Redis cannot be used."""

    def __init__(self, client: Redis, lease_s: float, clock: Callable[[], float] | None = None) -> None:
        """Args:
        client: see `connect`.
        lease_s: seconds that a request's hold lasts unless renewed.
        clock: seconds; None: Redis' own TIME, the one clock that all gateways share.
        """
        self._script = client.register_script(LUA)
        self._lease_ms = round(lease_s * 1000)
        self._clock = clock
        self._calls = asyncio.Semaphore(CALLS)

    async def reserve(self, claim: Claim) -> Decision:
        quota = claim.quota
        found = await self._run(
            "reserve",
            claim.holder.key,
            claim.holder.request,
            claim.requests,
            claim.tokens,
            *("" if limit is None else limit for limit in quota),
        )
        requests_before, tokens_before, slots, requests_after, tokens_after = found
        before = _levels(quota, requests_before, tokens_before)
        return Decision(decide(claim, *before, slots), *_levels(quota, requests_after, tokens_after))

    async def settle(self, holder: Holder, used: int) -> None:
        await self._run("settle", holder.key, holder.request, used)

    async def release(self, holder: Holder) -> None:
        await self._run("release", holder.key, holder.request)

    async def renew(self, holders: Sequence[Holder]) -> None:
        requests = defaultdict(list)
        for key, request in holders:
            requests[key].append(request)
        for key, of_key in requests.items():  # one by one: requests that start must not queue behind all of them
            await self._run("renew", key, *of_key)

    async def _run(self, operation: str, key: str, *arguments: str | int) -> list[int]:
        now = "" if self._clock is None else round(self._clock() * 1000)
        keys = [f"vc:limits:{{{key}}}:{part}" for part in ("buckets", "holds", "leases")]
        async with self._calls:
            answer: list[int] = await self._script(keys, [operation, now, self._lease_ms, *arguments])
        return answer


def _levels(quota: Quota, requests: int, tokens: int) -> tuple[Level | None, Level | None]:
    per_minute = ((quota.requests_per_minute, requests), (quota.tokens_per_minute, tokens))
    first, second = (None if limit is None else Level(limit, units) for limit, units in per_minute)
    return first, second
