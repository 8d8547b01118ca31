"""How moved requests wait: for their turn, and for a replica that can take them."""

import asyncio
from typing import Any

import grpc
import openai
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.fleet import client
from serve_app.fleet.channel import SinkGone
from tests.answers import ask
from tests.unit.fleet.bed import Response, running_bed, until

WORDS = "one two three four five six seven eight nine ten"
ANSWER = f"[[answer: {WORDS}]]"


async def test_a_lost_replica_makes_no_storm_and_no_move_is_dropped(config: VllmConfig, model: ModelConfig) -> None:
    """Each move waits for its turn, longer than a token may take; the deadline for that stands still."""
    deadlines = {"between_tokens_s": 0.6, "first_token_s": 0.6}
    async with running_bed(config, model, 1, deadlines=deadlines, failover={"tokens_per_s": 100}) as bed:
        contents = [f"[[answer: {WORDS} {number}]] [[pace: 40ms]]" for number in range(8)]
        streams = [asyncio.create_task(ask(bed.client, content, stream=True)) for content in contents]
        await until(lambda: len(bed.entries) == 8 and all(entry.tokens for entry in bed.entries), "all first tokens")
        open_requests = bed.entries
        survivor = await bed.start_replica()
        bed.handle.replicas[0].kill()
        await until(lambda: any(entry.moves for entry in open_requests), "the first move")
        carried = len(survivor.replica._courier.attempts)
        answers = await asyncio.gather(*streams)
        assert carried < 8
        assert [answer["choices"][0]["content"] for answer in answers] == [f"{WORDS} {n}" for n in range(8)]


BUSY = [DeploymentUnavailableError(DeploymentID("replica", "chat")), BackPressureError(1, 1)]
LOST = [
    ActorUnavailableError("gone", None),
    grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata()),
    RayTaskError("generate", "traceback", SinkGone("tcp://gateway"), ip="127.0.0.1").as_instanceof_cause(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("errors", [BUSY, *([error] for error in LOST)], ids=lambda errors: type(errors[0]).__name__)
async def test_a_call_that_fails_for_no_fault_of_its_request_is_made_again(
    config: VllmConfig, model: ModelConfig, errors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BUSY_S", 0.01)
    async with running_bed(config, model, 2) as bed:
        bed.handle.errors = list(errors)
        assert (await ask(bed.client, ANSWER, stream=True))["choices"][0]["content"] == WORDS
        await until(lambda: bed.ledger.rows, "the row")
        assert bed.handle.calls == len(errors) + 1
        assert bed.ledger.rows[-1].attempts == (1 if errors is BUSY else 2)


async def test_requests_wait_for_a_replica_while_there_is_none(config: VllmConfig, model: ModelConfig) -> None:
    async with running_bed(config, model, 1) as bed:
        bed.kill_at(3)
        stream = asyncio.create_task(ask(bed.client, ANSWER, stream=True))
        await until(lambda: bed.handle.calls == 2, "the second call")
        assert not bed.handle.living
        await bed.start_replica()
        assert (await stream)["choices"][0]["content"] == WORDS


async def test_a_call_that_cannot_even_be_made_ends_its_request(
    config: VllmConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Response:
        raise RuntimeError("no handle")

    async with running_bed(config, model, 1, deadlines={"first_token_s": 5}) as bed:
        with monkeypatch.context() as patch:
            patch.setattr(bed.handle, "remote", fail)
            with pytest.raises(openai.InternalServerError) as failure:
                await ask(bed.client, ANSWER, stream=True)
        assert (failure.value.status_code, bed.entries, bed.handle.calls) == (500, [], 0)
        assert (await ask(bed.client, ANSWER, stream=True))["choices"][0]["content"] == WORDS


async def test_the_figures_of_a_replica_that_is_taken_for_dead_count_no_longer(
    config: VllmConfig, model: ModelConfig
) -> None:
    """It may have said that it computes requests, and will never say otherwise."""
    async with running_bed(config, model, 2) as bed:
        stream = asyncio.create_task(ask(bed.client, f"{ANSWER} [[pace: 40ms]]", stream=True))
        await until(lambda: bed.entries and bed.entries[0].tokens, "the first token")
        assert bed.fleet._load._load
        bed.fleet._peers._lost(bed.entries[0])
        assert not bed.fleet._load._load
        assert (await stream)["choices"][0]["content"] == WORDS
