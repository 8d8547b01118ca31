"""Serve's health check of a replica is the engine core's own."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.config import load_model
from serve_app.replica import deployment
from serve_app.replica.deployment import Replica
from serve_app.replica.engine import Engine
from serve_app.vllm_seam import EngineDeadError


class Core:
    """An engine core that computes nothing, and dies when it is told to."""

    def __init__(self) -> None:
        self.resources = SimpleNamespace(engine_dead=False)

    async def get_output_async(self) -> None:
        await asyncio.Event().wait()

    def shutdown(self, timeout: float | None = None) -> None:
        return


async def test_a_replica_is_as_healthy_as_its_engine_core(monkeypatch: pytest.MonkeyPatch) -> None:
    core: Any = Core()
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="replica-1"))
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(deployment, "start_engine", lambda model: Engine(core, config=Any, vitals=Any))
    monkeypatch.setattr(deployment, "listen_on_node_address", lambda: None)
    monkeypatch.setenv("VLLM_CHAT_DIE_WITH_PARENT", "")  # which it sets, restored after the test
    replica = Replica(load_model("demo"))
    await replica.check_health()
    core.resources.engine_dead = True
    with pytest.raises(EngineDeadError):
        await replica.check_health()
