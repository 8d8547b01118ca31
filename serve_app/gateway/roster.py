"""Keeps a gateway's models in step with what is deployed: `serve deploy` adds, changes and removes them.

Serve leaves the gateway itself alone where only models change. Each deployment of replicas carries its model's
settings, and that is where the gateway reads them.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from pydantic import ValidationError
from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.failures import UNREACHABLE
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.watch import FleetWatch, State
from serve_app.gateway.aliases import read_aliases
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import ModelFailed, ModelNotFound
from serve_app.gateway.frontend import Frontend
from serve_app.gateway.models import Model, Models
from serve_app.settings import ConfigError

logger = logging.getLogger("ray.serve")

# Between two attempts to have a model described whose replicas cannot be reached.
AGAIN_S = 5.0


class Roster:
    """Opens the models of a gateway as their replicas come up, and follows what is deployed."""

    def __init__(self, models: Models, watch: FleetWatch, config: GatewayConfig, quarantine: Quarantine) -> None:
        self._models = models
        self._watch = watch
        self._config = config
        self._quarantine = quarantine
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._host = ""
        self._arguments: dict[str, Any] | None = None

    async def run(self, host: str) -> None:
        """Runs until cancelled. `host`: this node's address."""
        self._host = host
        for model in self._models:
            self._open(model)
        await self._watch.run(self._look)

    def _look(self) -> None:
        deployed = self._watch.deployed
        if deployed is not None:
            settings = {name: each.settings for name, each in deployed.deployments.items()}
            self._follow({name: config for name, each in settings.items() if (config := _model(name, each))})
            self._read_aliases(deployed.args)
        for model in self._models:
            if self._models.state(model) is State.FAILED:
                model.refuse(ModelFailed(model.config.id))
        self._make_room()

    def _read_aliases(self, arguments: dict[str, Any] | None) -> None:
        if arguments is None or arguments == self._arguments:
            return
        self._arguments = arguments
        try:
            self._models.aliases = read_aliases(arguments.get("aliases"))
        except ConfigError as error:  # the deployment that brought it has failed, and the one before still stands
            logger.error("%s; the aliases stay as they were", error)

    def _follow(self, deployed: dict[str, ModelConfig]) -> None:
        """These models are deployed, by the names of their deployments."""
        known = {model.handle.deployment_name: model for model in self._models}
        models = []
        for name, config in deployed.items():
            model = known.pop(name, None)
            if model is not None and model.config.id != config.id:
                self._retire(model)
                model = None
            if model is None:
                model = Model(config, DeploymentHandle(name, self._watch.application))
                self._open(model)
            elif model.config != config:
                changed = model.config.fixed_settings() != config.fixed_settings()
                model.config = config
                if changed:
                    self._open(model)
            models.append(model)
        self._models.set(models)
        for model in known.values():
            self._retire(model)

    def _open(self, model: Model) -> None:
        name = model.handle.deployment_name
        if (before := self._opening.pop(name, None)) is not None:
            before.cancel()
        self._opening[name] = asyncio.create_task(self._opened(model))

    async def _opened(self, model: Model) -> None:
        model.broken = False
        # Replicas of the version before answer until those of a new one are up, which may be long or never.
        any_version = model.frontend is None
        while True:
            try:
                before = await model.open(
                    self._host, self._watch, self._config, self._quarantine, any_version=any_version
                )
            except UNREACHABLE as error:
                logger.warning("model %s does not answer yet: %s", model.config.id, type(error).__name__)
                await asyncio.sleep(AGAIN_S)
                continue
            except Exception:  # one model's settings must not end the others
                logger.exception("model %s cannot be opened", model.config.id)
                if not any_version:
                    model.broken = True
                    return model.refuse(ModelFailed(model.config.id))
            else:
                self._replace(before, model)
                if model.description is None or model.description.settings == model.config.fixed_settings():
                    return
            any_version = False

    def _replace(self, before: Frontend | None, model: Model) -> None:
        logger.info("model %s is ready", model.config.id)
        self._make_room()
        if before is not None:
            # What it has goes on with the new replicas, until its own deadline at the latest.
            self._leave(before.retire(self._config.deadlines.total_s or None))

    def _retire(self, model: Model) -> None:
        """A model that is deployed no more: what it has may end while its replicas drain."""
        logger.info("model %s is removed", model.config.id)
        if (opening := self._opening.pop(model.handle.deployment_name, None)) is not None:
            opening.cancel()
        model.refuse(ModelNotFound(model.config.id))
        self._leave(_close(model.frontend, model))

    def _leave(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(closing)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _make_room(self) -> None:
        """Let each model run as much as its replicas can compute, as this gateway's share of it."""
        for model in self._models:
            if model.frontend is not None:
                model.frontend.check()
                running = self._models.replicas(model).running
                model.frontend.fleet.budget.set_replicas(running, self._config.replicas)
                capacity = -(-running * model.frontend.seats // self._config.replicas)
                if model.sleeps and not running:
                    # It gets its requests all the same, which wakes it: nobody knows how long they will have to wait.
                    capacity = model.frontend.seats + self._config.admission.max_waiting
                model.frontend.admission.set_capacity(capacity)


def _model(deployment: str, settings: Any) -> ModelConfig | None:
    """The model of a deployment; None: it has none."""
    if settings is None:
        return None
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError:
        logger.error("deployment %s has settings that this gateway does not know", deployment)
        return None


async def _close(frontend: Frontend | None, model: Model) -> None:
    if frontend is not None:
        await frontend.retire(model.config.drain_timeout_s)
    await model.handle.shutdown_async()  # type: ignore[no-untyped-call]
