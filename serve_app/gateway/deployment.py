"""The gateway: the Serve deployment that clients reach."""

import asyncio
import logging
import os
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.auth import BearerKey
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.models import Model, Models

logger = logging.getLogger("ray.serve")


class Gateway:
    """Holds the front ends of all models; Serve asks it for its ASGI app."""

    def __init__(self, config: GatewayConfig, models: list[ModelConfig], replicas: list[DeploymentHandle[Any]]) -> None:
        opened = [Model(model, handle) for model, handle in zip(models, replicas, strict=True)]
        targets = {model.handle.deployment_name: model.config.replicas for model in opened}
        watch = FleetWatch(targets)
        self._models = Models(opened, watch)
        self._app = GatewayApp(self._models, BearerKey(os.environ.get("PROXY_API_KEY")), config)
        self._running = asyncio.get_running_loop().create_task(
            self._models.run(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        )
        self._running.add_done_callback(_exit_on_error)

    async def __serve_build_asgi_app__(self) -> GatewayApp:
        """Serve's hook for an app that is built on the replica (see `ray.serve.ingress`)."""
        return self._app


def _exit_on_error(task: asyncio.Task[None]) -> None:
    """A gateway that cannot open its models is replaced rather than left to answer 503 for ever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the gateway cannot open its models", exc_info=error)
        os._exit(1)
