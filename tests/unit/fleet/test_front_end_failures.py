"""A gateway that can hear no tokens any more says so, instead of failing every request and blaming its replicas."""

import asyncio
from typing import cast

import msgspec
import openai
import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.frontend import FrontendFailed
from serve_app.gateway.models import Model, Models
from serve_app.vllm_seam import EngineCoreOutputs
from tests.answers import ask
from tests.unit.fleet.bed import Bed, running_bed


class Opened(Model):
    """A model whose front end is there already."""

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed.model.config, bed.model.handle)
        self.frontend = bed.model.frontend

    async def open(self, *_: object) -> None:
        self.opened.set()


class Calm(dict[str, object]):
    """Plays a watch of Serve's controller that finds nothing new."""

    def __init__(self, bed: Bed) -> None:
        super().__init__({bed.handle.deployment_name: bed.models.replicas(bed.model)})

    async def run(self, on_look: object) -> None:
        await asyncio.Event().wait()


def running(bed: Bed) -> "asyncio.Task[None]":
    models = Models([Opened(bed)], cast("FleetWatch", Calm(bed)), GatewayConfig(), bed.quarantine)
    return asyncio.create_task(models.run("127.0.0.1"))


async def test_when_a_message_of_a_replica_cannot_be_read(config: VllmConfig, model: ModelConfig) -> None:
    async with running_bed(config, model, 1) as bed:
        models = running(bed)
        (line,) = bed.handle.replicas[0].replica._sender._lines.values()
        line.socket.send_multipart([b"no header"])
        async with asyncio.timeout(20):
            with pytest.raises(ExceptionGroup) as failure:
                await models
        assert failure.group_contains(msgspec.DecodeError)


async def test_when_vllm_stumbles_over_a_step(
    config: VllmConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble() -> EngineCoreOutputs:
        raise AssertionError

    async with running_bed(config, model, 1) as bed:
        assert bed.model.frontend is not None
        bed.model.frontend.check()
        monkeypatch.setattr(bed.fleet, "get_output_async", stumble)
        with pytest.raises(openai.InternalServerError):
            await ask(bed.client, "[[answer: one]]", stream=True)
        with pytest.raises(FrontendFailed):
            bed.model.frontend.check()
