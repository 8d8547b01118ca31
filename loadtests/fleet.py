"""Starts this service with several replicas of a small model, for `chaos` and `soak`."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx

from loadtests.cpu import adopt_orphans
from loadtests.running import SystemFailedError, running
from loadtests.systems import service
from loadtests.target import Target
from serve_app.config import load_model

Engine = Literal["scripted", "demo"]
PACE: dict[Engine, str] = {"scripted": "[[pace: 100ms]]", "demo": ""}
"""What a prompt needs for an answer that takes its time."""
START_S = 600.0
POLL_S = 1.0


@contextlib.contextmanager
def running_fleet(engine: Engine, replicas: int, port: int) -> Iterator[Target]:
    """Runs the service for the length of the block, once all replicas answer. Its logs stay if anything failed.

    `port`: the first of the ports to use. Raises SystemFailedError.
    """
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))  # Ray's sockets need a short path
    system = service(settings(engine, replicas), folder, port)
    try:
        with running(system, folder / "log", START_S):
            wait_for_all(system.target, replicas)
            yield system.target
    except SystemFailedError as error:
        raise SystemFailedError(f"{error}\nIts logs are in {folder}.") from None
    shutil.rmtree(folder, ignore_errors=True)


def settings(engine: Engine, replicas: int) -> dict[str, Any]:
    """Of the demo model, or of the scripted engine in its place. Neither reserves CPUs: a small machine has few."""
    demo = {**load_model("demo").model_dump(), "num_cpus": 0, "replicas": replicas}
    return demo if engine == "demo" else {**demo, "id": "scripted", "engine": "scripted"}


def wait_for_all(target: Target, replicas: int) -> None:
    """Returns once so many replicas answer. Raises SystemFailedError."""
    url = target.base_url.removesuffix("/v1") + "/api/healthz"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        models = httpx.get(url, timeout=30, trust_env=False).json()["details"]["models"]
        if models[0]["replicas"]["running"] == replicas:
            return
        time.sleep(POLL_S)
    raise SystemFailedError("Its replicas did not all start in time.")
