"""A clock that tests move, and a real Redis."""

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from serve_app.gateway.limits.memory import MemoryLimiter
from tests.redis_server import RedisServer, running_redis


class Clock:
    """Seconds, of whole milliseconds."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> float:
        return self.ms / 1000


class Elsewhere:
    """Calls a limiter as an actor is called: what goes in and out is pickled, and nothing happens at once."""

    def __init__(self, limiter: MemoryLimiter) -> None:
        self._limiter = limiter

    async def __call__(self, method: str, *arguments: Any) -> Any:
        sent = pickle.loads(pickle.dumps(arguments))  # noqa: S301
        await asyncio.sleep(0)
        return pickle.loads(pickle.dumps(await getattr(self._limiter, method)(*sent)))  # noqa: S301


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    yield from running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis, for tests that leave it running."""
    with redis.Redis(port=shared_redis.port) as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return shared_redis


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to stop and to kill."""
    yield from running_redis(tmp_path)
