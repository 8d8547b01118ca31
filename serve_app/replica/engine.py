"""The engine core of a replica: vLLM's, or the scripted one that stands in for it."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from serve_app.config import ModelConfig, check_source
from serve_app.fleet.adapters import adapter_number
from serve_app.fleet.resume import EngineTraits
from serve_app.replica.arguments import engine_config, folder_of
from serve_app.replica.scripted import ScriptedEngine
from serve_app.replica.vitals import Vitals, vitals_below
from serve_app.settings import ConfigError
from serve_app.vllm_seam import (
    EngineCoreClient,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDeadError,
    Executor,
    LoRARequest,
    SamplingParams,
    SupportedTask,
    VllmConfig,
)


class Health(Protocol):
    """What a replica reads of an engine core's state."""

    engine_dead: bool


class EngineCore(Protocol):
    """What a replica asks of an engine core: a part of vLLM's `AsyncMPClient`, in its words."""

    @property
    def resources(self) -> Health:
        """Whether the engine core is dead."""

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        """What the model can do."""

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Take a request; its outputs come from `get_output_async` until one is finished."""

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        """Load a LoRA adapter; raises what vLLM says of one that it cannot load."""

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Stop requests; no further output of them comes. Unknown ids are ignored."""

    async def get_output_async(self) -> EngineCoreOutputs:
        """The outputs of the next step.

        Raises:
            EngineDeadError: there will be none.
        """

    def shutdown(self, timeout: float | None = None) -> None:
        """End the engine core's processes within `timeout` seconds."""


@dataclass(frozen=True)
class Engine:
    """A running engine core and its configuration."""

    core: EngineCore
    config: VllmConfig
    vitals: Callable[[], Vitals]
    """What its processes do now."""
    warm_up: EngineCoreRequest | None = None
    """What to have it compute before it takes requests: in its first steps it may compile for many seconds."""


def start_engine(model: ModelConfig) -> Engine:
    """Start the model's engine core and wait until it can take requests.

    Raises:
        ConfigError: the model's settings are wrong.
    """
    check_source(model)
    config = engine_config(model)
    if model.engine == "scripted":
        scripted = ScriptedEngine(config, model.script_delay_s)
        return Engine(scripted, config, scripted.vitals)
    core = EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), log_stats=True)
    return Engine(core, config, partial(vitals_below, os.getpid()), _warm_up(config))


async def load_adapters(core: EngineCore, adapters: Mapping[str, str]) -> None:
    """Load LoRA adapters, by name their directories: an engine core dies of a bad one that a request brings.

    Raises:
        ConfigError: one cannot be loaded.
    """
    for name, path in adapters.items():
        try:
            await core.add_lora_async(LoRARequest(name, adapter_number(name), str(folder_of(path))))
        except EngineDeadError:
            raise
        except Exception as error:  # whatever vLLM says of it
            raise ConfigError(f"adapters: {name}: {' '.join(str(error).split())}") from error


def _warm_up(config: VllmConfig) -> EngineCoreRequest | None:
    """A prefill and a decode; None for models that do not answer text with text."""
    if config.model_config.runner_type != "generate" or config.model_config.is_encoder_decoder:
        return None
    return EngineCoreRequest(
        request_id="warm-up",
        prompt_token_ids=[0],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def engine_traits(config: VllmConfig) -> EngineTraits:
    """What an engine core of this configuration keeps of a request's output. To be asked on the replica's machine."""
    newer = config.use_v2_model_runner
    # Model Runner V2 draws by position, and finds a forced end of the reasoning in the prompt.
    forced = config.reasoning_config.reasoning_end_token_ids if config.reasoning_config and not newer else None
    return EngineTraits(
        max_model_len=config.model_config.max_model_len,
        restarts_seeds=not newer,
        custom_processors=bool(config.model_config.logits_processors),
        forced_end=tuple(forced or ()),
    )
