"""The models behind this gateway: which exist, which can answer, and the front end of each."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.watch import FleetWatch, State
from serve_app.gateway.admission import AdmissionConfig
from serve_app.gateway.errors import ModelFailed, ModelLoading, ModelNotFound
from serve_app.gateway.frontend import Frontend, open_frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.ray_seam import Replicas
from serve_app.replica.deployment import Description

# Loading takes from half a minute to many; a client that asks this often costs nothing.
RETRY_AFTER_S = 10
# While the replicas of a changed model take the place of the old ones.
CHANGED_POLL_S = 1.0


class Model:
    """One model: its settings, its replicas, and its front end once a replica has been up."""

    def __init__(self, config: ModelConfig, replicas: DeploymentHandle[Any]) -> None:
        self.config = config
        self.handle = replicas
        self.created = int(time.time())
        self.frontend: Frontend | None = None
        self.description: Description | None = None
        self.broken = False
        """Whether no front end can be made of it."""

    async def open(self, host: str, watch: FleetWatch, admission: AdmissionConfig) -> Frontend | None:
        """Wait for a replica with the model's settings and build the front end; returns the one before."""
        description = await self._described(self.config.fixed_settings())
        frontend = await open_frontend(
            self.config, self.handle, description, host=host, on_replica_lost=watch.wake, admission=admission
        )
        before, self.frontend, self.description = self.frontend, frontend, description
        return before

    async def _described(self, settings: dict[str, Any]) -> Description:
        while True:
            description: Description = await self.handle.describe.remote()
            if description.settings == settings:
                return description
            await asyncio.sleep(CHANGED_POLL_S)


class Models:
    """All models of the service, the first being the default."""

    def __init__(self, models: list[Model], watch: FleetWatch) -> None:
        self._watch = watch
        self.set(models)

    def set(self, models: list[Model]) -> None:
        """These are the models from now on."""
        self._models = {model.config.id: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def visible(self, caller: Caller) -> list[Model]:
        """The models that a caller may use."""
        return [model for model in self if caller.may_use(model.config.id)]

    def get(self, name: str | None, caller: Caller) -> Model:
        """The model of that id, or the first that the caller may use.

        Raises:
            ModelNotFound: there is none, or it is out of the caller's scope: they look the same.
        """
        found = next((model for model in self.visible(caller) if name in {None, model.config.id}), None)
        if found is None:
            raise ModelNotFound(name or "default")
        return found

    @property
    def gpu_available(self) -> bool:
        """Whether any node of the cluster has a GPU."""
        return self._watch.gpu_available

    def replicas(self, model: Model) -> Replicas:
        return self._watch[model.handle.deployment_name]

    def state(self, model: Model) -> State:
        replicas = self.replicas(model)
        if replicas.failed or model.broken:
            return State.FAILED
        return State.READY if model.frontend is not None and replicas.running else State.LOADING

    def ready(self, model: Model) -> Frontend:
        """The model's front end.

        Raises:
            ModelLoading: no replica can answer.
            ModelFailed: and none will.
        """
        state = self.state(model)
        if state is State.FAILED:
            raise ModelFailed(model.config.id)
        if model.frontend is None or state is not State.READY:
            raise ModelLoading(model.config.id, RETRY_AFTER_S)
        return model.frontend
