"""The gateway: the Serve deployment that clients reach."""

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from prometheus_client import CollectorRegistry
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.collector import collect_seldom
from serve_app.config import ModelConfig
from serve_app.fleet import quarantine_board
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.aliases import Alias
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.cors import Cors, parse_origins
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.keyring import Keyring
from serve_app.gateway.limits import actor, redis
from serve_app.gateway.limits.fallback import FallbackLimiter
from serve_app.gateway.limits.limiter import Limiter
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.roster import Roster
from serve_app.ledger.usage import UsageReports
from serve_app.ledger.writer import Ledger, open_ledger
from serve_app.ray_seam import keep_log, listen_on_node_address

logger = logging.getLogger("ray.serve")


class Gateway:
    """Holds the front ends of all models and everything that stands before them; Serve asks it for its ASGI app."""

    def __init__(
        self,
        config: GatewayConfig,
        models: list[ModelConfig],
        replicas: list[DeploymentHandle[Any]],
        aliases: dict[str, Alias],
        *,
        limiter: DeploymentHandle[Any] | None = None,
        board: DeploymentHandle[Any] | None = None,
    ) -> None:
        """Args:
        config: the gateways'.
        models, replicas, aliases: what is deployed beside this gateway at first, and handles of it.
        limiter: the one that several gateways share, where they do not share a Redis.
        board: the quarantine board that several gateways share.
        """
        listen_on_node_address()
        keep_log()
        collect_seldom()
        watch = FleetWatch()
        self._quarantine, self._board = Quarantine(config.failover.refuse_s), board
        self._models = Models(list(map(Model, models, replicas)), aliases, watch)
        self._roster = Roster(self._models, watch, config, self._quarantine)
        registry = CollectorRegistry()
        self._keyring = Keyring(config.keys)
        self._limits = RequestLimits(_open_limiter(config, limiter, registry), config.limits.lease_s)
        self._ledger = open_ledger(config.ledger)
        policy = Policy(config.policy, _cache_secret())
        registries = [registry, self._keyring.metrics, *([self._ledger.metrics] if self._ledger else [])]
        self._app = Cors(
            GatewayApp(
                models=self._models,
                keyring=self._keyring,
                limits=self._limits,
                quota=config.limits.quota(),
                inference=Inference(self._models, policy, self._ledger, config),
                policy=policy,
                usage=UsageReports(self._ledger),
                registries=registries,
            ),
            parse_origins(os.environ.get("CORS_ORIGINS", "")),
        )
        self._running = asyncio.get_running_loop().create_task(self._run())
        self._running.add_done_callback(_exit_on_error)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for an app that is built on the replica (see `ray.serve.ingress`); requests come after it."""
        await self._models.warm()
        return self._app

    def __del__(self) -> None:
        """Serve calls this when the gateway has drained."""
        ledger: Ledger | None = getattr(self, "_ledger", None)
        if ledger is not None:
            ledger.close()

    async def _run(self) -> None:
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._roster.run(host))
            tasks.create_task(self._keyring.run())
            tasks.create_task(self._limits.run())
            if self._board is not None:
                tasks.create_task(quarantine_board.share(self._quarantine, _caller(self._board)))


def _cache_secret() -> bytes:
    """What the salts of the prefix cache are made from: the same in all gateways, where there is a PROXY_API_KEY."""
    key = os.environ.get("PROXY_API_KEY", "")
    return hashlib.sha256(b"cache salt of " + key.encode()).digest() if key else secrets.token_bytes(32)


def _open_limiter(config: GatewayConfig, shared: DeploymentHandle[Any] | None, registry: CollectorRegistry) -> Limiter:
    """In this process for one gateway; for several in Redis, or else in an actor of the service's own."""
    local = MemoryLimiter(config.limits.lease_s)
    failures = actor.FAILURES
    if (url := config.limits.redis_url()) is not None:
        one: Limiter = redis.RedisLimiter(redis.connect(url), config.limits.lease_s)
        failures = redis.FAILURES
    elif shared is not None:
        one = actor.ActorLimiter(_caller(shared))
    else:
        return local
    return FallbackLimiter(one, local, gateways=config.replicas, failures=failures, registry=registry)


def _caller(handle: DeploymentHandle[Any]) -> Callable[..., Awaitable[Any]]:
    """Calls a method of a deployment by name."""
    return lambda method, *arguments: getattr(handle, method).remote(*arguments)


def _exit_on_error(task: asyncio.Task[None]) -> None:
    """A gateway that cannot go on is replaced rather than left to answer 503 for ever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the gateway cannot go on", exc_info=error)
        os._exit(1)
