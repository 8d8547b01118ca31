"""A replica over an engine core that answers nothing: what it tells its gateway, what it aborts, when it exits."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackEncoder

from serve_app.config import ModelConfig
from serve_app.fleet.channel import Header, SinkGone, TokenReceiver
from serve_app.replica import deployment
from serve_app.replica.deployment import Replica
from serve_app.replica.engine import Engine
from serve_app.replica.leaving import Terminated
from serve_app.replica.vitals import Vitals
from serve_app.settings import ConfigError
from serve_app.vllm_seam import EngineDeadError, LoRARequest

PATIENCE_S = 20


class Core:
    """An engine core whose outputs a test puts there."""

    def __init__(self) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self.outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self.added: list[str] = []
        self.aborted: list[str] = []
        self.adapters: list[LoRARequest] = []

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        if lora_request.lora_name == "broken":
            raise ValueError("LoRA rank 64 is greater than\nmax_lora_rank 16.")
        self.adapters.append(lora_request)
        return True

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self.added.append(request.request_id)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self.outputs.get()

    def shutdown(self, timeout: float | None = None) -> None:
        pass


class Process:
    """What a replica's process is told by Serve and by signals, and how it ends."""

    def __init__(self) -> None:
        self.core = Core()
        self.vitals = Vitals(0, awake=True, stopped=False)
        self.warm_up: EngineCoreRequest | None = None
        self.stop: Callable[[], None]
        self.refuses: Callable[[], bool]
        self.sigterm: Callable[[], None]
        self.exited = asyncio.Event()

    def hook(self, stop: Callable[[], None], refuses: Callable[[], bool]) -> None:
        self.stop, self.refuses = stop, refuses

    def exit(self, code: int) -> None:
        self.exited.set()
        raise asyncio.CancelledError


@pytest.fixture
async def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process()

    def hook_sigterm(called: Callable[[], None]) -> None:
        made.sigterm = called

    def start_engine(model: ModelConfig) -> Engine:
        return Engine(made.core, None, lambda: made.vitals, made.warm_up)  # type: ignore[arg-type]

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="replica-1"))
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(deployment.ray, "get_gpu_ids", list)
    monkeypatch.setattr(deployment.os, "_exit", made.exit)
    for name, value in {
        "listen_on_node_address": lambda: None,
        "protect_children": lambda: None,
        "start_engine": start_engine,
        "on_stop": made.hook,
        "on_sigterm": hook_sigterm,
    }.items():
        monkeypatch.setattr(deployment, name, value)
    return made


def request_of(request_id: str) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


class Gateway:
    """A gateway that listens, and has sent requests."""

    def __init__(self, replica: Replica) -> None:
        self.receiver = TokenReceiver("127.0.0.1")
        self.heard: list[Header] = []
        self._replica = replica
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self.heard.append((await self.receiver.receive())[0])

    def ask(self, request_id: str) -> "asyncio.Task[None]":
        frames = [bytes(frame) for frame in MsgpackEncoder().encode(request_of(request_id))]  # type: ignore[arg-type]
        return asyncio.create_task(self._replica.generate(self.receiver.sink, request_id, frames))

    def leave(self) -> None:
        self._listening.cancel()
        self.receiver.close()


@pytest.fixture
async def replica(process: Process) -> AsyncIterator[Replica]:
    made = Replica(ModelConfig(id="m", source="acme/m", device="cpu", drain_timeout_s=2))
    yield made
    made.__del__()
    made._sender.close()


@pytest.fixture
async def gateway(replica: Replica) -> AsyncIterator[Gateway]:
    made = Gateway(replica)
    yield made
    made.leave()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what changes has no event
            await asyncio.sleep(0.01)


async def test_a_gateway_hears_who_carries_its_request_and_that_it_lives(gateway: Gateway) -> None:
    gateway.ask("r~0")
    await until(lambda: len(gateway.heard) >= 3)
    assert gateway.heard[:3] == [Header("replica-1", taken=["r~0"]), Header("replica-1"), Header("replica-1")]


async def test_a_dead_gateways_requests_are_aborted_and_the_others_go_on(replica: Replica, process: Process) -> None:
    dying, other = Gateway(replica), Gateway(replica)
    asked = [dying.ask("a~0"), dying.ask("b~0"), other.ask("c~0")]
    await until(lambda: dying.heard and other.heard)
    dying.leave()
    for request in asked[:2]:
        with pytest.raises(SinkGone):
            await asyncio.wait_for(request, PATIENCE_S)
    assert sorted(process.core.aborted) == ["a~0", "b~0"]
    process.core.outputs.put_nowait(
        EngineCoreOutputs(outputs=[EngineCoreOutput("c~0", [7], finish_reason=FinishReason.STOP)])
    )
    await asyncio.wait_for(asked[2], PATIENCE_S)
    other.leave()


@pytest.mark.parametrize("vitals", [Vitals(0, False, True), Vitals(0, False, False)], ids=["stopped", "asleep"])
async def test_an_engine_core_that_hangs_is_left_for_dead(gateway: Gateway, process: Process, vitals: Vitals) -> None:
    process.vitals = vitals
    gateway.ask("r~0")
    await asyncio.wait_for(process.exited.wait(), PATIENCE_S)


async def test_a_replica_that_is_being_stopped_refuses_work_and_says_when_its_streams_should_move(
    gateway: Gateway, process: Process
) -> None:
    gateway.ask("r~0")
    assert process.refuses() is False
    process.stop()
    assert process.refuses() is True
    await until(lambda: gateway.heard and gateway.heard[-1].leaving_s not in {None, math.inf})
    told = [header.leaving_s for header in gateway.heard if header.leaving_s is not None]
    assert (told[0], 0 <= told[-1] <= 1) == (math.inf, True)
    assert not process.exited.is_set()


async def test_after_sigterm_it_exits_once_its_requests_have_moved(
    replica: Replica, gateway: Gateway, process: Process
) -> None:
    await replica.check_health()
    request = gateway.ask("r~0")
    await until(lambda: process.core.added)
    process.sigterm()
    assert process.refuses() is True
    with pytest.raises(Terminated):
        await replica.check_health()
    await until(lambda: gateway.heard and gateway.heard[-1].leaving_s is not None)
    assert not process.exited.is_set()
    request.cancel()
    await asyncio.wait_for(process.exited.wait(), PATIENCE_S)
    assert process.core.aborted == ["r~0"]


async def test_it_is_as_healthy_as_its_engine_core(replica: Replica, process: Process) -> None:
    await replica.check_health()
    process.core.resources.engine_dead = True
    with pytest.raises(EngineDeadError):
        await replica.check_health()


async def test_adapters_are_loaded_once_before_the_replica_counts_as_started(process: Process) -> None:
    replica = Replica(ModelConfig(id="m", source="acme/m", adapters={"law": "/law", "med": "/med"}))
    for settings in ({}, {"max_ongoing_requests": 7}):
        await replica.reconfigure(settings)
    loaded = [(each.lora_name, each.lora_path) for each in process.core.adapters]
    assert loaded == [("law", "/law"), ("med", "/med")]
    replica = Replica(ModelConfig(id="m", source="acme/m", adapters={"broken": "/broken"}))
    with pytest.raises(ConfigError, match="adapters: broken: LoRA rank 64 is greater than max_lora_rank 16"):
        await replica.reconfigure({})


async def test_it_is_healthy_once_its_engine_core_has_taken_the_first_steps(process: Process) -> None:
    process.warm_up = request_of("warm-up")
    replica = Replica(ModelConfig(id="m", source="acme/m", device="cpu"))
    healthy = asyncio.create_task(replica.check_health())
    await until(lambda: process.core.added == ["warm-up"])
    for reason in (None, FinishReason.LENGTH):
        assert not healthy.done()
        output = EngineCoreOutput("warm-up", [7], finish_reason=reason)
        process.core.outputs.put_nowait(EngineCoreOutputs(outputs=[output]))
        await until(process.core.outputs.empty)
    await asyncio.wait_for(healthy, PATIENCE_S)
    replica.__del__()
    replica._sender.close()
