"""A gateway that can hear no tokens any more says so, instead of failing every request and blaming its replicas."""

from typing import cast

import msgspec
import openai
import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.frontend import FrontendFailed
from serve_app.gateway.roster import Roster
from serve_app.vllm_seam import EngineCoreOutputs
from tests.answers import ask
from tests.unit.fleet.bed import Bed, running_bed, until


async def test_when_a_message_of_a_replica_cannot_be_read(config: VllmConfig, model: ModelConfig) -> None:
    async with running_bed(config, model, 1) as bed:
        roster = roster_of(bed)
        roster._make_room()
        (line,) = bed.handle.replicas[0].replica._sender._lines.values()
        line.socket.send_multipart([b"no header"])
        await until(bed.fleet._hearing.done, "the end of reading")
        with pytest.raises(ExceptionGroup) as failure:
            roster._make_room()
        assert failure.group_contains(msgspec.DecodeError)


async def test_when_vllm_stumbles_over_a_step(
    config: VllmConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble() -> EngineCoreOutputs:
        raise AssertionError

    async with running_bed(config, model, 1) as bed:
        monkeypatch.setattr(bed.fleet, "get_output_async", stumble)
        with pytest.raises(openai.InternalServerError):
            await ask(bed.client, "[[answer: one]]", stream=True)
        with pytest.raises(FrontendFailed):
            roster_of(bed)._make_room()


def roster_of(bed: Bed) -> Roster:
    """What looks after the models of a gateway, and ends it by what it raises."""
    return Roster(bed.models, cast("FleetWatch", None), GatewayConfig(), bed.quarantine)
