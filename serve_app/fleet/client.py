"""The fleet client: vLLM's engine core client whose engine cores are the replicas of a Serve deployment.

`AsyncLLM` above it believes that it talks to one engine core. Each request goes out as one unary Serve call,
which ends when its generation has ended; its tokens come back by the token channel and pass the journal.
When the call fails because the replica died, `resume.py` decides how the request goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.fleet.adapters import adapter_number
from serve_app.fleet.budget import MoveBudget
from serve_app.fleet.call import ReplicaCall
from serve_app.fleet.channel import TokenReceiver
from serve_app.fleet.failures import Loss
from serve_app.fleet.journal import Entry, Journal, TokensLost
from serve_app.fleet.load import FleetLoad, translate_times
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.peers import Deployment, Limits, Peers
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.resume import End, EngineTraits, Move, decide, obstacle
from serve_app.fleet.routing import Balancer
from serve_app.fleet.settings import FailoverConfig
from serve_app.fleet.suspects import Suspects
from serve_app.vllm_seam import (
    EngineCoreClient,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    LoRARequest,
    SupportedTask,
)

logger = logging.getLogger("ray.serve")

BUSY_S = 0.5  # for so long a request waits that no replica could take


class FleetClient(EngineCoreClient):
    """The methods of vLLM's `EngineCoreClient` that `AsyncLLM` uses to serve requests.

    Needs a running event loop. Methods that steer a single engine core (sleep, profile) raise NotImplementedError.
    """

    engine_ranks_managed = (0,)

    def __init__(
        self,
        replicas: DeploymentHandle[Any],
        host: str,
        tasks: tuple[SupportedTask, ...],
        *,
        deployment: Deployment,
        limits: Limits,
        admit: Callable[[Entry], Awaitable[None]],
        model: str,
        engine: EngineTraits,
        failover: FailoverConfig,
        quarantine: Quarantine,
        restart_output: Callable[[EngineCoreRequest], None],
    ) -> None:
        """Args:
        replicas: handle of the model's replica deployment.
        host: this node's address, where the token channel is bound.
        tasks: what the model can do.
        deployment, limits: those replicas as Serve sees them, and what is expected of them.
        admit: awaited before a request goes out, in the context of whoever asks; what it raises ends the request.
        model: the model's id.
        engine, failover: what decides whether its requests can be resumed, how often, and how fast.
        quarantine: the requests that are suspected of killing replicas, whatever model they are for.
        restart_output: has the front end forget what it has taken of a request's answer.
        """
        self.resources = SimpleNamespace(engine_dead=False)
        self.journal = Journal()
        self.budget, self._max_moves = MoveBudget(failover.tokens_per_s), failover.max_moves
        self._tasks, self._engine, self._deployment, self._admit = tasks, engine, deployment, admit
        self._suspects, self._restart_output = Suspects(model, quarantine), restart_output
        self._receiver, self._outbox, self._load = TokenReceiver(host), Outbox(), FleetLoad()
        self._unread: dict[str, Entry] = {}  # what the front end has neither read to the end nor given up
        self._attempts: set[asyncio.Task[None]] = set()
        by_plan, can_move = partial(self._move, loss=Loss.PLANNED), lambda entry: decide(entry, engine) is not Move.FAIL
        watched = self.journal, deployment, limits, self.budget
        self._peers = Peers(*watched, can_move=can_move, move=by_plan, lost=self._move)
        self._balancer = Balancer(self._peers.suspects)
        self._call = ReplicaCall(replicas, self._receiver.sink, self._balancer)
        self._hearing = asyncio.create_task(self._peers.run(self._read()))

    def check(self) -> None:
        """Raise what has ended the reading of tokens."""
        if self._hearing.done():
            self._hearing.result()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self._tasks

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        entry = self._unread[request.request_id] = self.journal.open(request)
        try:
            self._suspects.screen(entry)
            await self._admit(entry)
        except BaseException:
            self._end(entry, FinishReason.ABORT)  # `AsyncLLM` waits for it already, until its last output
            raise
        if self.journal.holds(entry):
            self._start(entry)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._unread.pop(request_id, None)
            if (entry := self.journal.close(request_id)) is not None and entry.task is not None:
                entry.task.cancel()

    async def get_output_async(self) -> EngineCoreOutputs:
        step = await self._outbox.get()
        for output in step.outputs:
            if (entry := self._unread.get(output.request_id)) is not None:
                entry.read += len(output.new_token_ids)
                entry.finish_reason = output.finish_reason
                if output.finished:
                    del self._unread[output.request_id]
        return step

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        """Nothing to load: replicas have their adapters. Requests for this one get its number."""
        lora_request.lora_int_id = adapter_number(lora_request.lora_name)
        return True

    async def reset_mm_cache_async(self) -> None:
        """Nothing to reset: the multimodal cache is off (see replica/arguments.py)."""

    def dp_engines_running(self) -> bool:
        return len(self.journal) > 0

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.engine_dead = True
        for task in (self._hearing, *self._attempts):
            task.cancel()
        self._receiver.close()

    def fail_all(self) -> None:
        """End every open request with an error."""
        for entry in list(self.journal):
            if entry.task is not None:
                entry.task.cancel()
            self._end(entry, FinishReason.ERROR)

    def _start(self, entry: Entry) -> None:
        entry.task = asyncio.create_task(self._attempt(entry))
        self._attempts.add(entry.task)
        entry.task.add_done_callback(self._attempts.discard)

    async def _attempt(self, entry: Entry) -> None:
        """Have one replica carry the request to its end, or move it when that replica is gone."""
        if entry.attempt:
            await self.budget.take(entry.prompt_tokens + len(entry.tokens))
        async with self._suspects.turn(entry):
            if entry.refused:
                return self._refuse(entry)
            while (loss := await self._call(entry)) is Loss.BUSY:
                entry.held = True
                await asyncio.sleep(BUSY_S)
            if loss in {Loss.DEATH, Loss.DROPPED}:
                self._peers.forget(entry.carrier)
                self._deployment.wake()
            if loss is Loss.FAILED:
                self._end(entry, FinishReason.ERROR)
            elif loss is not None:
                self._move(entry, loss)

    def _move(self, entry: Entry, loss: Loss = Loss.DEATH) -> None:
        """Have another replica go on with the request, or end it where that would not be faithful.

        One that is to move by plan and cannot do so stays where it is.
        """
        if loss in {Loss.DEATH, Loss.DROPPED}:
            self._load.forget()
        if not self.journal.holds(entry):
            return
        planned, step = loss is Loss.PLANNED, decide(entry, self._engine)
        if planned and step is Move.FAIL:
            return
        if entry.task is not None and entry.task is not asyncio.current_task():
            entry.task.cancel()
        if loss is Loss.DEATH and self._suspects.replica_died(entry):
            logger.error("request %s has killed two replicas: it is refused from now on", entry.request.request_id)
            return self._refuse(entry)
        if isinstance(step, End):
            return self._end(entry, *step)
        if step is Move.FAIL or (not planned and entry.moves == self._max_moves):
            why = obstacle(entry, self._engine) or "it has moved often enough"
            logger.warning("request %s is given up: %s", entry.request.request_id, why)
            return self._end(entry, FinishReason.ERROR)
        if step is Move.RETRY and entry.tokens:
            self._outbox.take_back(entry.request.request_id)
            entry.forget()
            self._restart_output(entry.request)
        entry.moves += not planned
        entry.next_attempt()
        self._start(entry)

    def _refuse(self, entry: Entry) -> None:
        """End a request that kills replicas."""
        if entry.on_refused is not None:
            entry.on_refused()
        self._end(entry, FinishReason.ERROR)

    def _end(self, entry: Entry, finish_reason: FinishReason, stop_reason: int | None = None) -> None:
        """End a request in place of a replica."""
        if self.journal.holds(entry):
            self.journal.close(entry.request.request_id)
            self._outbox.put_end(entry.request, finish_reason, stop_reason)
            if finish_reason is FinishReason.ERROR and entry.on_error is not None:
                entry.on_error()

    async def _read(self) -> None:
        while True:
            header, step = await self._receiver.receive()
            self._peers.heard(header)
            for entry in filter(None, map(self.journal.entry_at, header.begun)):
                entry.begin()
            translate_times(step)
            outputs = zip(step.outputs, header.offsets, strict=True)
            step.outputs = [output for output, offset in outputs if self._accept(output, offset)]
            if (stats := step.scheduler_stats) is not None:
                self._balancer.report(header.replica, stats.num_running_reqs + stats.num_waiting_reqs)
                self._load.combine(header.replica, stats, self._deployment.running())
            if step.outputs or stats is not None:
                self._outbox.put(step)

    def _accept(self, output: EngineCoreOutput, offset: int) -> bool:
        """Write an output into the journal; False if its attempt was given up or its client has left."""
        if (entry := self.journal.entry_of(output)) is None:
            return False
        try:
            self.journal.record(entry, output, offset)
        except TokensLost:
            logger.warning("request %s: tokens lost on the way", output.request_id)
            self._move(entry, Loss.DROPPED)
            return False
        if entry.suspicion:
            self._suspects.answered(entry)
        return True
