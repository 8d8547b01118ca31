"""A gateway over scripted replicas, all in this process: real but for Serve, whose part two small classes play.

A replica dies as in the service: what it had not sent is lost, and the calls to it fail with Ray's error.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import httpx
import openai
import pytest
from ray.exceptions import ActorDiedError
from starlette.types import Message, Receive, Scope, Send
from vllm.config import VllmConfig

from serve_app.config import ModelConfig, load_model
from serve_app.fleet.journal import Entry
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.routing import Hint
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.keyring import Keyring
from serve_app.gateway.limits.limiter import Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy
from serve_app.ledger.row import Row
from serve_app.ledger.usage import UsageReports
from serve_app.ledger.writer import Ledger
from serve_app.ray_seam import Replicas
from serve_app.replica import deployment, scripted
from serve_app.replica.deployment import Replica
from serve_app.replica.engine import Engine
from serve_app.replica.scripted import ScriptedEngine
from serve_app.vllm_seam import EngineCoreOutputs

KEY = "a-key-of-these-tests"


class LockstepEngine(ScriptedEngine):
    """Computes a token only when the gateway has read those before it, so that places in an answer are exact."""

    def __init__(self, config: VllmConfig, bed: "Bed") -> None:
        super().__init__(config)
        self._bed = bed

    async def get_output_async(self) -> EngineCoreOutputs:
        while any(map(self._unread, self._queue.values())):  # noqa: ASYNC110 - of what nobody announces
            await asyncio.sleep(0.001)
        return await super().get_output_async()

    def _unread(self, task: scripted.Task) -> bool:
        entry = self._bed.fleet.journal.entry_at(task.request.request_id)
        return entry is not None and not self._bed.loses and len(entry.tokens) < entry.base + task.tokens


class Killed(BaseException):
    """The process that a replica would have has ended."""


class LiveReplica:
    """A replica with its calls, until it dies."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for task in replica._tasks:
            task.add_done_callback(lambda task: task.cancelled() or (task.exception(), self.kill()))

    @property
    def alive(self) -> bool:
        return not self.died.done()

    def kill(self) -> None:
        if self.alive:
            self.died.set_result(None)
            for task in self.replica._tasks:
                task.remove_done_callback(self.replica._exit_on_error)
                task.cancel()
            self.replica._sender.close()

    async def generate(self, *arguments: Any) -> None:
        call = asyncio.ensure_future(self.replica.generate(*arguments))
        try:
            await asyncio.wait({call, self.died}, return_when=asyncio.FIRST_COMPLETED)
            if not self.alive:
                raise ActorDiedError
            await call
        finally:
            call.cancel()
            call.add_done_callback(lambda call: call.cancelled() or call.exception())


class Response:
    """Plays Serve's DeploymentResponse."""

    def __init__(self, call: Any) -> None:
        self._task = asyncio.ensure_future(call)

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


class Handle:
    """Plays Serve's DeploymentHandle and its router: takes the replicas in turn, waits while there is none."""

    deployment_name = "replica-scripted"

    def __init__(self) -> None:
        self.replicas: list[LiveReplica] = []
        self.errors: list[Exception] = []
        """What the next calls fail with, before any replica has them."""
        self.calls = 0
        self.carriers: dict[str, LiveReplica] = {}
        """By attempt."""
        self.die_unanswered = 0
        """How many of the next calls kill their replica as soon as it has them."""
        self._turns = itertools.count()
        self._news = asyncio.Event()

    def options(self, method_name: str) -> "Handle":
        assert method_name == "generate"
        return self

    def remote(self, *arguments: Any, hint: Hint) -> Response:
        self.calls += 1
        return Response(self._call(*arguments))

    def add(self, replica: LiveReplica) -> None:
        self.replicas.append(replica)
        self._news.set()

    @property
    def living(self) -> list[LiveReplica]:
        return [replica for replica in self.replicas if replica.alive]

    async def _call(self, *arguments: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        while not (living := self.living):
            self._news.clear()
            await self._news.wait()
        replica = living[next(self._turns) % len(living)]
        if self.die_unanswered:
            self.die_unanswered -= 1
            asyncio.get_running_loop().call_soon(replica.kill)
        self.carriers[arguments[1]] = replica
        await replica.generate(*arguments)


class Rows:
    """Plays the usage ledger."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)


class Bed:
    """A gateway, its replicas, and a client."""

    def __init__(self, config: VllmConfig, model: ModelConfig, gateway: GatewayConfig) -> None:
        self._config = config
        self.loses = False
        self.handle = Handle()
        self.ledger = Rows()
        self.quarantine = Quarantine(gateway.failover.refuse_s)
        self.model = Model(model, cast("Any", self.handle))
        watch = _Watch(self.handle)
        self.models = Models([self.model], {}, cast("FleetWatch", watch))
        ledger, policy = cast("Ledger", self.ledger), Policy(gateway.policy, bytes(32))
        self._app = GatewayApp(
            models=self.models,
            keyring=Keyring(gateway.keys, {"PROXY_API_KEY": KEY}),
            limits=RequestLimits(MemoryLimiter(60), 60),
            quota=Quota(),
            inference=Inference(self.models, policy, ledger, gateway),
            policy=policy,
            usage=UsageReports(None),
            registries=[],
        )
        transport = httpx.ASGITransport(cast("Any", self._serve))
        http = httpx.AsyncClient(transport=transport, base_url="http://bed")
        self.client = openai.AsyncOpenAI(base_url="http://bed/v1", api_key=KEY, http_client=http, max_retries=0)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As a server that closes an answer which has no end."""
        open_ended = True

        async def watched(message: Message) -> None:
            nonlocal open_ended
            open_ended = message.get("more_body", message["type"] == "http.response.start")
            await send(message)

        await self._app(scope, receive, watched)
        if open_ended:
            await send({"type": "http.response.body"})

    @property
    def entries(self) -> list[Entry]:
        """The open requests."""
        return list(self.fleet.journal)

    @property
    def fleet(self) -> Any:
        assert self.model.frontend is not None
        return self.model.frontend.fleet

    def kill_at(self, *places: int, lose_the_end: bool = False) -> None:
        """Kill the replica of whatever request comes to have so many tokens; each place counts once.

        `lose_the_end`: with the last token, the word that it is the last gets lost.
        """
        left, record = list(places), self.fleet.journal.record
        self.handle.die_unanswered += left.count(0)

        def record_and_kill(entry: Entry, output: Any, offset: int) -> None:
            if lose_the_end:
                output.finish_reason = None
            attempt = output.request_id
            record(entry, output, offset)
            if len(entry.tokens) in left:
                left.remove(len(entry.tokens))
                self.handle.carriers[attempt].kill()

        self.fleet.journal.record = record_and_kill

    def lose(self, place: int) -> None:
        """Lose the output that follows so many tokens of a request, once."""
        self.loses, lost, accept = True, list[str](), self.fleet._accept

        def accept_or_lose(output: Any, offset: int) -> bool:
            if offset == place and not lost:
                lost.append(output.request_id)
                return False
            return bool(accept(output, offset))

        self.fleet._accept = accept_or_lose

    async def start_replica(self) -> LiveReplica:
        """A replica that the gateway has heard of: nothing it sends has to wait for the first connection."""
        replica = LiveReplica(Replica(self.model.config))
        if self.model.frontend is not None:
            await self._connect(replica)
        self.handle.add(replica)
        return replica

    async def _connect(self, replica: LiveReplica) -> None:
        sender = replica.replica._sender
        sender.connect(self.fleet._receiver.sink)
        sender.beat(None, 0)
        await until(lambda: sender._replica in self.fleet._peers._peers, "the connection")

    async def open(self, replicas: int, gateway: GatewayConfig) -> None:
        for _ in range(replicas):
            await self.start_replica()
        description = self.handle.replicas[0].replica.describe
        self.model.handle = cast("Any", SimpleNamespace(describe=SimpleNamespace(remote=description)))
        self.model.handle.__dict__.update(options=self.handle.options, deployment_name=self.handle.deployment_name)
        seen = SimpleNamespace(wake=lambda: None, running=list, kill=lambda replica: False)
        watch = cast("FleetWatch", SimpleNamespace(of=lambda name: seen))
        await self.model.open("127.0.0.1", watch, gateway, self.quarantine, any_version=False)
        for replica in self.handle.replicas:
            await self._connect(replica)

    def close(self) -> None:
        assert self.model.frontend is not None
        self.model.frontend.close()
        for replica in self.handle.replicas:
            replica.kill()


class _Watch(dict[str, Replicas]):
    """Plays the watch of Serve's controller."""

    gpu_available = False

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __getitem__(self, deployment: str) -> Replicas:
        return Replicas(running=len(self._handle.living))


@contextlib.asynccontextmanager
async def running_bed(config: VllmConfig, model: ModelConfig, replicas: int = 3, **gateway: Any) -> AsyncIterator[Bed]:
    """A gateway with these settings over so many replicas."""
    settings = GatewayConfig.model_validate(gateway)
    bed = Bed(config, model, settings)
    with pytest.MonkeyPatch.context() as patch:
        _play_ray(patch, config, bed)
        await bed.open(replicas, settings)
        try:
            yield bed
        finally:
            bed.close()


def scripted_model(**vllm_args: Any) -> ModelConfig:
    demo = load_model("demo")
    return demo.model_copy(
        update={"id": "scripted", "engine": "scripted", "vllm_args": {**demo.vllm_args, **vllm_args}}
    )


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - of anything at all
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None


def _play_ray(patch: pytest.MonkeyPatch, config: VllmConfig, bed: Bed) -> None:
    """Have a replica start here, and its process's end be its own alone."""
    numbers = itertools.count(1)

    def context() -> Any:
        return SimpleNamespace(replica_id=SimpleNamespace(unique_id=f"replica-{next(numbers)}"))

    def start_engine(_: ModelConfig) -> Engine:
        core = LockstepEngine(config, bed)
        return Engine(core, config, core.vitals)

    def kill(*_: Any) -> NoReturn:
        raise Killed

    def end(replica: Replica, _: str) -> NoReturn:
        replica._sender.close(flush_s=1)
        raise Killed

    patch.setattr(deployment.serve, "get_replica_context", context)
    patch.setattr(deployment, "listen_on_node_address", lambda: None)
    patch.setattr(deployment, "protect_children", lambda: None)
    patch.setattr(deployment.ray, "get_gpu_ids", list)
    patch.setattr(deployment, "start_engine", start_engine)
    patch.setattr(deployment, "on_stop", lambda *_: None)
    patch.setattr(deployment, "on_sigterm", lambda _: None)
    patch.setattr(Replica, "_exit", end)
    patch.setattr(scripted.os, "kill", kill)
