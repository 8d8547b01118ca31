"""The engine core of a replica: vLLM's, or the scripted one that stands in for it."""

from dataclasses import dataclass

from serve_app.config import ModelConfig, check_source
from serve_app.replica.arguments import engine_config, parse_arguments
from serve_app.vllm_seam import EngineCoreClient, Executor, VllmConfig


@dataclass(frozen=True)
class Engine:
    """A running engine core."""

    core: EngineCoreClient
    config: VllmConfig


def start_engine(model: ModelConfig) -> Engine:
    """Start the model's engine core and wait until it can take requests.

    Raises:
        ConfigError: the model's settings are wrong.
    """
    check_source(model)
    config = engine_config(parse_arguments(model))
    if model.engine == "scripted":
        from serve_app.replica.scripted import ScriptedEngine

        return Engine(ScriptedEngine(config, model.scripted), config)
    core = EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), log_stats=True)
    return Engine(core, config)
