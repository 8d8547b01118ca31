"""A model's settings as the arguments of `vllm serve`, parsed by vLLM's own parser.

Replica and gateway read the same arguments: the replica for its engine core, the gateway for the front end.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve_app.config import DEMO_MODEL, DEMO_SOURCE, ModelConfig
from serve_app.settings import ConfigError
from serve_app.vllm_seam import VllmConfig

# LoRA adapters that an engine core computes in one step, unless `max_loras` says otherwise: each takes memory.
MOST_ADAPTERS = 8


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def parse_arguments(model: ModelConfig) -> Namespace:
    """Parse a model's settings.

    Raises:
        ConfigError: vLLM does not know a flag, or not this value of it.
    """
    try:
        parser = make_arg_parser(_Parser())  # type: ignore[no-untyped-call]
        arguments: Namespace = parser.parse_args(list(_flags(model)))
        validate_parsed_serve_args(arguments)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"model {model.id}: vllm_args: {_one_line(error)}") from error
    return arguments


def engine_config(model: ModelConfig) -> VllmConfig:
    """vLLM's whole configuration of one engine; reads the model's config.json and tokenizer files.

    Raises:
        ConfigError: vLLM refuses the settings, or finds no such model.
    """
    arguments = parse_arguments(model)
    try:
        config: VllmConfig = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model.id}: {_one_line(error)}") from error
    return config


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors(include_url=False))
    return " ".join(str(error).split())


def _flags(model: ModelConfig) -> Iterator[str]:
    source = str(DEMO_MODEL) if model.source == DEMO_SOURCE else model.source
    if source.startswith((".", "~")):
        source = str(folder_of(source))
    owned: dict[str, Any] = {
        "model": source,
        "served_model_name": model.id,
        "tensor_parallel_size": model.tensor_parallel_size,
        "pipeline_parallel_size": model.pipeline_parallel_size,
        # One gateway feeds many engine cores, so neither side may assume what the other has cached.
        "mm_processor_cache_gb": 0,
    }
    if model.nodes > 1:
        owned["distributed_executor_backend"] = "ray"
    if model.adapters:
        owned["enable_lora"] = True
        owned["max_loras"] = min(len(model.adapters), MOST_ADAPTERS)
        # Not as name=path: the path may have a comma.
        owned["lora_modules"] = [{"name": name, "path": str(folder_of(path))} for name, path in model.adapters.items()]
    yield from vllm_flags({**owned, **model.vllm_args})


def folder_of(path: str) -> Path:
    """A local directory of a model file, as a path that holds wherever the process was started."""
    return Path(path).expanduser().resolve()


def vllm_flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Arguments as `vllm serve` takes them, named with underscores; null leaves one out."""
    for name, value in arguments.items():
        yield from _flag(name, value)


def _flag(name: str, value: Any) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        yield flag if value else "--no-" + name.replace("_", "-")
    elif isinstance(value, dict):
        yield from (flag, json.dumps(value))
    elif isinstance(value, list):
        yield from (flag, *(json.dumps(item) if isinstance(item, dict) else str(item) for item in value))
    elif value is not None:
        yield from (flag, str(value))
