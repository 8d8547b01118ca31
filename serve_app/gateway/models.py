"""The models behind this gateway: which exist, under which names, which can answer, and the front end of each."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ray.serve.handle import DeploymentHandle

from serve_app.config import ModelConfig
from serve_app.fleet.failures import UNREACHABLE
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.watch import FleetWatch, State
from serve_app.gateway.aliases import Alias
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import GatewayError, ModelFailed, ModelLoading, ModelNotFound
from serve_app.gateway.frontend import Frontend, open_frontend
from serve_app.gateway.keys.caller import Caller
from serve_app.ray_seam import Replicas
from serve_app.replica.deployment import Description

logger = logging.getLogger("ray.serve")

# While the replicas of a changed model take the place of the old ones.
CHANGED_POLL_S = 1.0
# A new gateway waits no longer before it takes requests: a front end opens within seconds, or its replica is stuck.
WARM_S = 60


class Model:
    """One model: its settings, its replicas, and its front end once a replica has been up."""

    def __init__(self, config: ModelConfig, replicas: DeploymentHandle[Any]) -> None:
        self.config = config
        self.handle = replicas
        self.created = int(time.time())
        self.frontend: Frontend | None = None
        self.description: Description | None = None
        self.names: frozenset[str] | None = None
        """The ids that its front end knows, its own and those of its adapters; None: it has not been opened."""
        self.broken = False
        """Whether no front end can be made of it."""
        self._decided = asyncio.Event()
        self._refusal: GatewayError | None = None
        self._waking: asyncio.Task[None] | None = None

    @property
    def sleeps(self) -> bool:
        """Whether it has no replicas while nobody asks for it, so that a request waits for one."""
        return self.config.replicas.min == 0

    async def open(
        self, host: str, watch: FleetWatch, config: GatewayConfig, quarantine: Quarantine, *, any_version: bool
    ) -> Frontend | None:
        """Wait for a replica, of the model's settings or of any, and build its front end; returns the one before."""
        description = await self._described(any_version)
        served = ModelConfig.model_validate(self.config.model_dump() | description.settings)
        frontend = await open_frontend(
            served,
            self.handle,
            description,
            host=host,
            deployment=watch.of(self.handle.deployment_name),
            admission=config.admission,
            failover=config.failover,
            quarantine=quarantine,
        )
        before, self.frontend, self.description = self.frontend, frontend, description
        self.names = frozenset({served.id, *served.adapters})
        self._decided.set()
        return before

    async def opened(self) -> Frontend:
        """The front end, once there is one.

        Raises:
            GatewayError: there will be none.
        """
        while self.frontend is None:
            await self._decided.wait()
            if self.frontend is None and self._refusal is not None:
                raise self._refusal
        return self.frontend

    def refuse(self, error: GatewayError) -> None:
        """Have those wait no longer who wait for its first front end."""
        decided, self._decided, self._refusal = self._decided, asyncio.Event(), error
        decided.set()

    def wake(self) -> None:
        """Have Serve start a replica, if there is none: any call that waits for one does."""
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        try:
            await self.handle.describe.remote()
        except UNREACHABLE as error:
            logger.warning("model %s does not wake up: %s", self.config.id, type(error).__name__)
        finally:
            self._waking = None

    async def _described(self, any_version: bool) -> Description:
        while True:
            description: Description = await self.handle.describe.remote()
            if any_version or description.settings == self.config.fixed_settings():
                return description
            await asyncio.sleep(CHANGED_POLL_S)


class Name(NamedTuple):
    """What clients may send as `model`."""

    id: str
    model: Model
    """Whose replicas answer; of an alias, those of the one with the most weight."""
    parent: str | None = None
    """Of a LoRA adapter, the id of the model that it adapts."""


class Models:
    """All models of the service, the first being the default."""

    def __init__(self, models: list[Model], aliases: Mapping[str, Alias], watch: FleetWatch) -> None:
        self.aliases = aliases
        self._watch = watch
        self.set(models)

    def set(self, models: list[Model]) -> None:
        """These are the models from now on."""
        self._models = {model.config.id: model for model in models}
        self._names = {name.id: name for model in models for name in _names(model)}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def visible(self, caller: Caller) -> list[Name]:
        """The names that a caller may use: models and their adapters first, then aliases."""
        names = list(self._names.values())
        for name, alias in self.aliases.items():
            targets = {target: weight for target, weight in alias.models.items() if target in self._names}
            if targets:
                heaviest = max(targets, key=targets.__getitem__)
                names.append(Name(name, self._names[heaviest].model))
        return [name for name in names if caller.may_use(name.id)]

    def get(self, name: str | None, caller: Caller) -> Name:
        """The name that a caller sent, or the first that it may use.

        Raises:
            ModelNotFound: there is none, or it is out of the caller's scope: they look the same.
        """
        found = next((each for each in self.visible(caller) if name in {None, each.id}), None)
        if found is None:
            raise ModelNotFound(name or "default")
        return found

    def candidates(self, name: str | None, caller: Caller, conversation: Callable[[], bytes]) -> list[Name]:
        """What may answer a request: the one that its name stands for, then what it falls back on.

        The key's scope is that of names as clients send them: what an alias or a fallback leads to is the operator's
        choice.

        Args:
            name: as the client sent it; None: it sent none.
            caller: who asks.
            conversation: what the request's conversation is known by.

        Raises:
            ModelNotFound: see `get`.
        """
        sent = self.get(name, caller)
        chosen: str | None = sent.id
        if (alias := self.aliases.get(sent.id)) is not None:
            known = {each for each in alias.models if each in self._names}
            able = {each for each in known if self.answers(self._names[each])}
            chosen = alias.choose(conversation(), able) or alias.choose(conversation(), known)
        order = [chosen or sent.model.config.id]
        for following in order:
            fallbacks = [self._names[following].model.config.fallback, alias.fallback if alias else None]
            order += [each for each in fallbacks if each in self._names and each not in order]
        return [self._names[each] for each in order]

    @property
    def gpu_available(self) -> bool:
        """Whether any node of the cluster has a GPU."""
        return self._watch.gpu_available

    def replicas(self, model: Model) -> Replicas:
        return self._watch[model.handle.deployment_name]

    def up_since(self, model: Model) -> float | None:
        """When it got a replica that can answer, in the event loop's time; None: it has none."""
        replicas = self.replicas(model)
        return replicas.since if replicas.running else None

    def state(self, model: Model) -> State:
        replicas = self.replicas(model)
        if model.frontend is not None and replicas.running:
            return State.READY  # of the version before, perhaps, where a new one does not start
        if replicas.failed or model.broken:
            return State.FAILED
        return State.ASLEEP if model.sleeps and not replicas.target else State.LOADING

    def ready(self, name: Name) -> bool:
        """Whether it can be answered for at once."""
        return self.state(name.model) is State.READY and (name.model.names is None or name.id in name.model.names)

    def answers(self, name: Name) -> bool:
        """Whether requests for it are answered, now or once it has woken up."""
        return self.ready(name) or (name.model.sleeps and self.state(name.model) is not State.FAILED)

    def last_of(self, names: list[Name]) -> Name:
        """Which of the candidates is asked at last: where the last cannot answer, the first that has requests wait."""
        return names[-1] if self.ready(names[-1]) else next(filter(self.answers, names), names[-1])

    def check(self, name: Name) -> None:
        """See whether requests for it are taken; one that sleeps, or wakes up, has them wait.

        Raises:
            ModelLoading: no replica can answer.
            ModelFailed: and none will.
        """
        state = self.state(name.model)
        if state is State.FAILED:
            raise ModelFailed(name.id)
        if state is State.READY and not self.ready(name):  # an adapter of a version that is still to come
            raise ModelLoading(name.id)
        if state is not State.READY and not name.model.sleeps:
            raise ModelLoading(name.id)

    async def warm(self) -> None:
        """Wait for the front ends of models that have replicas already: this gateway may be to replace another."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WARM_S):
                await self._watch.looked.wait()
                for model in list(self):
                    if self.replicas(model).running and not model.broken:
                        with contextlib.suppress(GatewayError):
                            await model.opened()


def _names(model: Model) -> Iterator[Name]:
    yield Name(model.config.id, model)
    for adapter in model.config.adapters:
        yield Name(adapter, model, parent=model.config.id)
