"""A real Redis for tests, as long as they need it."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr


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


def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A Redis that ends with the test; the test is skipped where there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(binary, folder)
    try:
        yield server
    finally:
        server.kill()
