"""The Serve application: `build` turns the settings of serve_config.yaml into the graph.

No `from __future__ import annotations` here: Serve reads the annotation of `build` to validate `args:`.
"""

import hashlib
import importlib.metadata
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ray import serve

from serve_app.config import ModelConfig, ServiceConfig
from serve_app.fleet.quarantine_board import QuarantineBoard
from serve_app.fleet.router import ROUTER
from serve_app.gateway.config import GatewayConfig, check_gateway
from serve_app.gateway.deployment import Gateway
from serve_app.gateway.keys.keyring import Keyring
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.ray_seam import listening_host, runtime_env, with_version
from serve_app.replica.deployment import Replica
from serve_app.settings import ConfigError

# Every process of the service; a model's own `env` comes on top.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
# While a new version replaces an old one: Serve rounds up, so one process more than the deployment has otherwise.
ONE_MORE = 1
# Flags of vLLM that give the KV cache its size; on CPU the variable would win over them.
MEMORY_FLAGS = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes"})


def build(config: ServiceConfig) -> serve.Application:
    """The gateway in front, one replica deployment for each model behind it."""
    check_gateway(config.gateway)
    _check_exposure(config.gateway)
    models = config.resolve()
    release = {"version": importlib.metadata.version("vllm-chat-backend"), "runtime_env": runtime_env()}
    gateway = serve.deployment(
        name="gateway",
        num_replicas=config.gateway.replicas,
        max_ongoing_requests=config.gateway.max_ongoing_requests,
        graceful_shutdown_timeout_s=config.gateway.drain_timeout_s,
        max_surge_percent=ONE_MORE,
        # Tokenizing one request at a time needs no pool of threads.
        ray_actor_options=_actor(config.gateway.num_cpus, {"OMP_NUM_THREADS": "1"}),
    )
    settings = config.gateway.model_dump(mode="json")
    app: serve.Application = with_version(gateway(serve.ingress()(Gateway)), _digest(release, settings)).bind(
        config.gateway,
        models,
        [_replicas(model, release) for model in models],
        config.aliases,
        limiter=_limiter(config.gateway, release),
        board=_shared("quarantine", QuarantineBoard, release) if config.gateway.replicas > 1 else None,
    )
    return app


def _digest(*parts: Any) -> str:
    """The version of a deployment: when it changes, Serve replaces the deployment's replicas, and only then."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _limiter(config: GatewayConfig, release: dict[str, Any]) -> serve.Application | None:
    """The limiter that several gateways share; one gateway needs none, and Redis takes its place."""
    if config.replicas == 1 or config.limits.redis_url() is not None:
        return None
    return _shared("limiter", MemoryLimiter, release, config.limits.lease_s)


def _shared(name: str, kind: type[Any], release: dict[str, Any], *arguments: Any) -> serve.Application:
    """One actor for all gateways."""
    deployment = serve.deployment(
        name=name,
        num_replicas=1,
        max_ongoing_requests=100_000,
        ray_actor_options=_actor(0, {}),
        logging_config={"enable_access_log": False},
    )
    app: serve.Application = with_version(deployment(kind), _digest(release, arguments)).bind(*arguments)
    return app


def _replicas(model: ModelConfig, release: dict[str, Any]) -> serve.Application:
    deployment = serve.deployment(**replica_options(model))(Replica)
    app: serve.Application = with_version(deployment, _digest(release, model.fixed_settings())).bind(model)
    return app


def replica_options(model: ModelConfig, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What Serve is told of a model's replicas; `environment` is the one that their processes will inherit."""
    variables = {**_defaults(model, environment), **model.env}
    options: dict[str, Any] = {"ray_actor_options": _actor(model.num_cpus, variables)}
    if model.nodes > 1:
        # vLLM's Ray workers take the GPUs; the replica itself sits beside the first.
        first, other = {"CPU": model.num_cpus, "GPU": 1}, {"GPU": 1}
        options["placement_group_bundles"] = [first, *[other] * (model.world_size - 1)]
        options["placement_group_strategy"] = "PACK"
    elif gpus := model.reserved_gpus():
        options["ray_actor_options"]["num_gpus"] = gpus
    return {
        "name": "replica-" + re.sub(r"[^A-Za-z0-9.-]+", "-", model.id),
        # Where the gateways learn of the model; see fleet/watch.py.
        "user_config": model.model_dump(mode="json"),
        **model.replicas.options(),
        **({"request_router_config": {"request_router_class": ROUTER}} if model.routing == "prefix" else {}),
        "max_ongoing_requests": model.max_ongoing_requests,
        "graceful_shutdown_timeout_s": model.drain_timeout_s,
        "max_surge_percent": ONE_MORE if model.surges() else 0,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        # The gateway's line of a request says it all; a second one for the call behind it only costs.
        "logging_config": {"enable_access_log": False},
        **options,
    }


def _defaults(model: ModelConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM needs to be told of the machine, unless somebody has said it."""
    defaults: dict[str, str] = {}
    if model.nodes == 1:
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # its own choice is whatever address the host's name has
    if model.resolved_device() == "cpu":
        if not MEMORY_FLAGS & model.vllm_args.keys():
            defaults["VLLM_CPU_KVCACHE_SPACE"] = "4"  # GiB; vLLM's own share is 92 % of the machine's memory
        if model.world_size > 1:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM's own wants a NUMA node for each worker
    return {name: value for name, value in defaults.items() if not environment.get(name)}


def _actor(num_cpus: float, environment: dict[str, str]) -> dict[str, Any]:
    return {"num_cpus": num_cpus, "runtime_env": {"env_vars": {**ENVIRONMENT, **environment}}}


def _check_exposure(config: GatewayConfig) -> None:
    """Refuse to answer the network without a key."""
    if not Keyring(config.keys).open_to_all:
        return
    host = listening_host()
    if host == "localhost" or ipaddress.ip_address(host).is_loopback:
        return
    raise ConfigError(f"PROXY_API_KEY is not set, and the service would listen on {host}: set a key")
