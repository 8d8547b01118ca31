"""The models of a gateway follow what is deployed; who waits for one that goes or fails is told."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from serve_app.config import ModelConfig
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway import models, roster
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import GatewayError, ModelFailed, ModelNotFound
from serve_app.gateway.frontend import Frontend
from serve_app.gateway.models import Models
from serve_app.gateway.roster import Roster
from serve_app.ray_seam import Deployed, Replicas
from serve_app.replica.count import ReplicaRange
from tests.unit.fleet.bed import until

ASLEEP = Replicas(target=0)


class Handle:
    """Plays Serve's."""

    settings: dict[str, Any]
    """What its replicas were started with."""

    def __init__(self, name: str, _: str = "") -> None:
        self.deployment_name = name

    @property
    def describe(self) -> Any:
        return SimpleNamespace(remote=self._describe)

    async def _describe(self) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(settings=Handle.settings)

    async def shutdown_async(self) -> None:
        return None


class Watch:
    """Plays the watch of Serve's controller: a test says what there is to see."""

    application = "chat"

    def __init__(self) -> None:
        self.deployed = Deployed()
        self._look: Callable[[], None] = lambda: None

    def of(self, _: str) -> None:
        return None

    def __getitem__(self, name: str) -> Replicas:
        return self.deployed.deployments.get(name, Replicas())

    async def run(self, on_look: Callable[[], None]) -> None:
        self._look = on_look
        await asyncio.Event().wait()

    def see(self, *, source: str = "acme/m", started: bool = True, **deployed: tuple[str, Replicas]) -> None:
        """By the name of its deployment, the id of each model and its replicas, which run its settings if `started`."""
        found = {}
        for name, (model, replicas) in deployed.items():
            config = ModelConfig(id=model, source=source, replicas=ReplicaRange(min=0, max=1))
            settings = config.model_dump(mode="json")
            if started:
                Handle.settings = config.fixed_settings()
            found[name] = Replicas(replicas.running, target=replicas.target, failed=replicas.failed, settings=settings)
        self.deployed = Deployed(found)
        self._look()


class Gateway:
    """A roster over models none of which opens until a test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opens = asyncio.Event()
        self.broken = False
        self.capacities: list[int] = []
        self.sources: list[str] = []
        """Of the models for which a front end was made."""
        patch.setattr(roster, "DeploymentHandle", Handle)
        patch.setattr(models, "open_frontend", self._open)
        self.watch = Watch()
        watch = cast("FleetWatch", self.watch)
        self.models = Models([], {}, watch)
        roster_of = Roster(self.models, watch, GatewayConfig(), Quarantine(1))
        self.running = asyncio.create_task(roster_of.run("127.0.0.1"))

    async def _open(self, model: ModelConfig, *_: Any, **__: Any) -> Frontend:
        await self.opens.wait()
        self.sources.append(model.source)
        if self.broken or model.source == "broken":
            raise ValueError
        admission = SimpleNamespace(set_capacity=self.capacities.append)
        front = SimpleNamespace(seats=2, fleet=_Any(), admission=admission, retire=self._retire, check=lambda: None)
        return cast("Frontend", front)

    async def _retire(self, _: float | None) -> None:
        return None

    async def waiting(self, number: int = 1) -> list["asyncio.Task[Any]"]:
        """Requests that wait for the front end of the only model."""
        (model,) = self.models
        tasks = [asyncio.create_task(model.opened()) for _ in range(number)]
        await asyncio.sleep(0)
        return tasks


class _Any:
    def __getattr__(self, _: str) -> Any:
        return self

    def __call__(self, *_: Any) -> None:
        return None


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    made = Gateway(monkeypatch)
    await asyncio.sleep(0)
    return made


async def error_of(task: "asyncio.Task[Any]") -> GatewayError:
    async with asyncio.timeout(5):
        with pytest.raises(GatewayError) as raised:
            await task
    return raised.value


async def test_who_waits_for_a_model_that_is_removed_is_told_that_there_is_none(gateway: Gateway) -> None:
    gateway.watch.see(first=("m", ASLEEP))
    for each in await gateway.waiting(3):
        gateway.watch.see()
        assert isinstance(await error_of(each), ModelNotFound)


async def test_who_waits_for_a_model_that_does_not_start_is_told_so_and_who_comes_after_its_repair_waits(
    gateway: Gateway,
) -> None:
    gateway.watch.see(first=("m", ASLEEP))
    [early] = await gateway.waiting()
    gateway.watch.see(first=("m", Replicas(failed=True)))
    assert isinstance(await error_of(early), ModelFailed)
    gateway.watch.see(first=("m", Replicas()))
    [late] = await gateway.waiting()
    gateway.opens.set()
    async with asyncio.timeout(5):
        assert await late is next(iter(gateway.models)).frontend


async def test_who_waits_for_a_model_of_which_no_front_end_can_be_made_is_told_so(gateway: Gateway) -> None:
    gateway.watch.see(first=("m", ASLEEP))
    [each] = await gateway.waiting()
    gateway.broken = True
    gateway.opens.set()
    assert isinstance(await error_of(each), ModelFailed)


async def test_a_model_whose_replica_is_lost_while_it_describes_itself_is_opened_by_another(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())] * 2

    async def describe(_: Handle) -> Any:
        if lost:
            raise lost.pop()
        return SimpleNamespace(settings=Handle.settings)

    monkeypatch.setattr(roster, "AGAIN_S", 0.0)
    monkeypatch.setattr(Handle, "_describe", describe)
    gateway.opens.set()
    gateway.watch.see(first=("m", ASLEEP))
    [each] = await gateway.waiting()
    async with asyncio.timeout(5):
        assert await each is next(iter(gateway.models)).frontend


async def test_a_model_in_the_deployment_of_another_is_opened(gateway: Gateway) -> None:
    gateway.watch.see(**{"replica-acme-m": ("acme/m", ASLEEP)})
    gateway.watch.see(**{"replica-acme-m": ("acme-m", ASLEEP)})
    assert [model.config.id for model in gateway.models] == ["acme-m"]
    [each] = await gateway.waiting()
    gateway.opens.set()
    async with asyncio.timeout(5):
        await each


async def test_a_model_without_replicas_holds_more_requests_than_one_replica_computes_at_once(gateway: Gateway) -> None:
    gateway.watch.see(first=("m", ASLEEP))
    gateway.opens.set()
    [opened] = await gateway.waiting()
    await opened
    for replicas in (ASLEEP, Replicas(), Replicas(running=1), Replicas(running=3)):
        gateway.watch.see(first=("m", replicas))
    assert gateway.capacities[-4:] == [1002, 1002, 2, 6]


@pytest.mark.parametrize("old", ["acme/old", "broken"])
async def test_a_gateway_that_starts_amid_an_upgrade_opens_the_old_version_if_it_can_and_then_the_new(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    monkeypatch.setattr(models, "CHANGED_POLL_S", 0)
    gateway.opens.set()
    gateway.watch.see(source=old, first=("m", Replicas(running=1)))
    gateway.watch.see()
    gateway.sources.clear()
    gateway.watch.see(source="acme/new", started=False, first=("m", Replicas(running=1)))
    await until(lambda: gateway.sources == [old], "the front end of the old version")
    (model,) = gateway.models
    assert (model.frontend is None, model.broken) == (old == "broken", False)
    gateway.watch.see(source="acme/new", first=("m", Replicas(running=1)))
    await until(lambda: gateway.sources == [old, "acme/new"], "the front end of the new version")
    await until(lambda: model.frontend is not None, "its opening")
