"""The models behind this gateway: which exist, which can answer, and the front end of each."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.watch import FleetWatch, State
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import ModelFailed, ModelLoading, ModelNotFound
from serve_app.gateway.frontend import Frontend, open_frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.ray_seam import Replicas
from serve_app.replica.deployment import Description

logger = logging.getLogger("ray.serve")

# Loading takes from half a minute to many; a client that asks this often costs nothing.
RETRY_AFTER_S = 10
# A new gateway waits no longer before it takes requests: a front end opens within seconds, or its replica is stuck.
WARM_S = 60


class Model:
    """One model: its settings, its replicas, and its front end once a replica has been up."""

    def __init__(self, config: ModelConfig, replicas: DeploymentHandle[Any]) -> None:
        self.config = config
        self.handle = replicas
        self.created = int(time.time())
        self.frontend: Frontend | None = None
        self.opened = asyncio.Event()
        self.description: Description | None = None

    async def open(self, host: str, watch: FleetWatch, config: GatewayConfig, quarantine: Quarantine) -> None:
        """Wait for the first replica and build the front end."""
        self.description = await self.handle.describe.remote()
        deployment = watch.of(self.handle.deployment_name)
        self.frontend = await open_frontend(
            self.config,
            self.handle,
            self.description,
            host=host,
            deployment=deployment,
            admission=config.admission,
            failover=config.failover,
            quarantine=quarantine,
        )
        self.opened.set()
        logger.info("model %s is ready", self.config.id)


class Models:
    """All models of the service, the first being the default."""

    def __init__(self, models: list[Model], watch: FleetWatch, config: GatewayConfig, quarantine: Quarantine) -> None:
        self._models = {model.config.id: model for model in models}
        self._watch = watch
        self._config = config
        self._quarantine = quarantine

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
        if replicas.failed:
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

    async def run(self, host: str) -> None:
        """Open every model as its replicas come up, and watch them. Runs until cancelled.

        Raises:
            ExceptionGroup: of what keeps this gateway from answering for a model.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run(self._look))
            for model in self:
                tasks.create_task(self._open(model, host))

    async def warm(self) -> None:
        """Wait for the front ends of models that have replicas already: this gateway may be to replace another."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WARM_S):
                await self._watch.looked.wait()
                for model in self:
                    if self.replicas(model).running:
                        await model.opened.wait()

    async def _open(self, model: Model, host: str) -> None:
        await model.open(host, self._watch, self._config, self._quarantine)
        self._look()
        if model.frontend is not None:
            await model.frontend.fleet.run()

    def _look(self) -> None:
        """Let each model run as much as its replicas can compute, as this gateway's share of it."""
        for model in self:
            if model.frontend is not None:
                model.frontend.check()
                running = self.replicas(model).running
                seats = running * model.frontend.seats
                model.frontend.fleet.budget.set_replicas(running, self._config.replicas)
                model.frontend.admission.set_capacity(-(-seats // self._config.replicas))
