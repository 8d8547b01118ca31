"""The models behind this gateway: which exist, which can answer, and the front end of each."""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.watch import FleetWatch, State
from serve_app.gateway.errors import ModelLoading, ModelNotFound
from serve_app.gateway.frontend import Frontend, open_frontend
from serve_app.ray_seam import Replicas
from serve_app.replica.deployment import Description

logger = logging.getLogger("ray.serve")

# Loading takes from half a minute to many; a client that asks this often costs nothing.
RETRY_AFTER_S = 10


class Model:
    """One model: its settings, its replicas, and its front end once a replica has been up."""

    def __init__(self, config: ModelConfig, replicas: DeploymentHandle[Any]) -> None:
        self.config = config
        self.handle = replicas
        self.created = int(time.time())
        self.frontend: Frontend | None = None
        self.description: Description | None = None

    async def open(self, host: str, watch: FleetWatch) -> None:
        """Wait for the first replica and build the front end."""
        self.description = await self.handle.describe.remote()
        self.frontend = await open_frontend(self.config, self.handle, self.description, host, watch.wake)
        logger.info("model %s is ready", self.config.id)


class Models:
    """All models of the service, the first being the default."""

    def __init__(self, models: list[Model], watch: FleetWatch) -> None:
        self._models = {model.config.id: model for model in models}
        self._watch = watch

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str | None) -> Model:
        """The model of that id, or the default.

        Raises:
            ModelNotFound: there is none.
        """
        if name is None:
            return next(iter(self._models.values()))
        try:
            return self._models[name]
        except KeyError:
            raise ModelNotFound(name) from None

    @property
    def gpu_available(self) -> bool:
        """Whether any node of the cluster has a GPU."""
        return self._watch.gpu_available

    def replicas(self, model: Model) -> Replicas:
        return self._watch[model.handle.deployment_name]

    def state(self, model: Model) -> State:
        replicas = self.replicas(model)
        if replicas.failed:
            return State.FAILED
        return State.READY if model.frontend is not None and replicas.running else State.LOADING

    def ready(self, model: Model) -> Frontend:
        """The model's front end.

        Raises:
            ModelLoading: no replica can answer.
        """
        if model.frontend is None or self.state(model) is not State.READY:
            raise ModelLoading(model.config.id, RETRY_AFTER_S)
        return model.frontend

    async def run(self, host: str) -> None:
        """Open every model as its replicas come up, and watch them. Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run())
            for model in self._models.values():
                tasks.create_task(model.open(host, self._watch))
