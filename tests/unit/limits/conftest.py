"""A clock that tests move, and a real Redis."""

import asyncio
import pickle
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from serve_app.gateway.limits.memory import MemoryLimiter


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


class RedisServer:
    """A redis-server on a free port of the loopback, without persistence."""

    def __init__(self, binary: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no"]
        self.url = SecretStr(f"redis://127.0.0.1:{self.port}/0")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port, socket_timeout=5)
        for _ in range(10_000):
            try:
                client.ping()
            except redis.ConnectionError:
                assert self._process.poll() is None
            else:
                break
        client.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    yield from _running(tmp_path_factory.mktemp("redis"))


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
    yield from _running(tmp_path)


def _running(folder: Path) -> Iterator[RedisServer]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(binary, folder)
    try:
        yield server
    finally:
        server.kill()
