"""The fleet client: vLLM's engine core client whose engine cores are the replicas of a Serve deployment.

`AsyncLLM` above it believes that it talks to one engine core. Each request goes out as one unary Serve call,
which ends when its generation has ended; its tokens come back by the token channel and pass the journal.
When the call fails because the replica died, the request goes out again with what was delivered.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from serve_app.fleet.channel import SinkGone, TokenReceiver
from serve_app.fleet.gauges import Gauges
from serve_app.fleet.journal import Entry, Journal, TokensLost
from serve_app.fleet.peers import Deployment, Limits, Peers
from serve_app.fleet.routing import Balancer
from serve_app.vllm_seam import (
    EngineCoreClient,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    LoRARequest,
    MsgpackEncoder,
    SupportedTask,
)

logger = logging.getLogger("ray.serve")

MAX_ATTEMPTS = 3  # a request that three replicas died with may be what killed them
# How long the last tokens may trail the call that says they were sent.
SETTLE_S = 5.0


@dataclass
class _Resources:
    engine_dead: bool = False


class FleetClient(EngineCoreClient):
    """The methods of vLLM's `EngineCoreClient` that `AsyncLLM` uses to serve requests.

    Needs a running event loop. Methods of the base class that steer a single engine core (sleep, profile,
    weight transfer, elastic expert parallelism) raise NotImplementedError.
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
    ) -> None:
        """Args:
        replicas: handle of the model's replica deployment.
        host: this node's address, where the token channel is bound.
        tasks: what the model can do, as its engine core says.
        deployment: those replicas as Serve sees them.
        limits: what is expected of them.
        admit: awaited before a request goes out, in the context of whoever asks; it may take its time, and
            what it raises ends the request.
        """
        self.resources = _Resources()
        self.journal = Journal()
        self._generate = replicas.options(method_name="generate")
        self._tasks = tasks
        self._deployment = deployment
        self._admit = admit
        self._receiver = TokenReceiver(host)
        self._encoder = MsgpackEncoder()
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        # Requests that the front end has neither read to the end nor given up.
        self._unread: dict[str, Entry] = {}
        self._gauges = Gauges()
        self._attempts: set[asyncio.Task[None]] = set()
        self._peers = Peers(self.journal, deployment, limits, move=self._relocate, lost=self._take_back)
        self._balancer = Balancer(self._peers.suspects)
        self._reader = asyncio.create_task(self._read())
        self._overseer = asyncio.create_task(self._peers.run())

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self._tasks

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        entry = self._unread[request.request_id] = self.journal.open(request)
        try:
            await self._admit(entry)
        except BaseException:
            # `AsyncLLM` already waits for this request; it forgets one only at its last output.
            self._end(entry, FinishReason.ABORT)
            raise
        if self.journal.holds(entry):
            entry.dispatched_at = time.monotonic()
            self._start(entry)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._unread.pop(request_id, None)
            entry = self.journal.close(request_id)
            if entry is not None and entry.task is not None:
                entry.task.cancel()

    async def get_output_async(self) -> EngineCoreOutputs:
        step = await self._outputs.get()
        for output in step.outputs:
            if (entry := self._unread.get(output.request_id)) is not None:
                entry.read += len(output.new_token_ids)
                entry.finish_reason = output.finish_reason
                if output.finished:
                    del self._unread[output.request_id]
        return step

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        """Nothing to load yet: each replica loads an adapter with the first request for it, which says where it is."""
        return True

    async def reset_mm_cache_async(self) -> None:
        """Nothing to reset: the multimodal cache is off (see replica/arguments.py)."""

    def dp_engines_running(self) -> bool:
        return len(self.journal) > 0

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.engine_dead = True
        for task in (self._reader, self._overseer, *self._attempts):
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
        request = entry.attempt_request()
        frames = [bytes(frame) for frame in self._encoder.encode(request)]  # type: ignore[arg-type]
        hint = self._balancer.hint(request)
        call = self._generate.remote(self._receiver.sink, request.request_id, frames, hint=hint)
        try:
            await call
            if await self._settled(entry):
                self._balancer.learn(len(entry.tokens))
                return
            logger.warning("request %s: its last tokens were lost", request.request_id)
        except asyncio.CancelledError:
            call.cancel()  # type: ignore[no-untyped-call]
            raise
        except (RayActorError, SinkGone) as error:
            self._gauges.clear()
            self._peers.forget(entry.carrier)
            self._deployment.wake()
            logger.warning("request %s: replica gone (%s)", request.request_id, type(error).__name__)
        except Exception:  # the boundary to Serve: whatever failed, this request ends and the others go on
            logger.exception("request %s failed in the replica", request.request_id)
            self._end(entry, FinishReason.ERROR)
            return
        finally:
            hint.end()
        self._move(entry)

    async def _settled(self, entry: Entry) -> bool:
        """Wait for the last tokens of a request that the replica has ended; False if they do not come."""
        try:
            await asyncio.wait_for(entry.finished.wait(), SETTLE_S)
        except TimeoutError:
            return False
        return True

    def _move(self, entry: Entry) -> None:
        """Send the request to another replica, or end it where that would not be faithful."""
        if not self.journal.holds(entry):
            return
        if (end := entry.exhausted()) is not None:
            self._end(entry, *end)
        elif entry.attempt - entry.relocations + 1 < MAX_ATTEMPTS and entry.resumable():
            entry.next_attempt()
            self._start(entry)
        else:
            self._end(entry, FinishReason.ERROR)

    def _take_back(self, entry: Entry) -> None:
        """Move a request whose replica will not end the call by itself."""
        if entry.task is not None:
            entry.task.cancel()
        self._move(entry)

    def _relocate(self, entry: Entry) -> None:
        """Move a request off a replica that is being stopped, which costs it none of its moves."""
        entry.relocations += 1
        self._take_back(entry)

    def _end(self, entry: Entry, finish_reason: FinishReason, stop_reason: int | None = None) -> None:
        """End a request in place of a replica."""
        request_id = entry.request.request_id
        if self.journal.holds(entry):
            self.journal.close(request_id)
            output = EngineCoreOutput(request_id, [], finish_reason=finish_reason, stop_reason=stop_reason)
            if entry.request.pooling_params is not None:
                # vLLM takes an output without one for generated, and its output handler dies of that.
                output.pooling_output = torch.empty(0)
                if finish_reason is FinishReason.ERROR and entry.on_error is not None:
                    entry.on_error()  # vLLM would answer with the empty vector
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    async def _read(self) -> None:
        while True:
            header, step = await self._receiver.receive()
            self._peers.heard(header)
            outputs = zip(step.outputs, header.offsets, strict=True)
            step.outputs = [output for output, offset in outputs if self._accept(output, offset)]
            if (stats := step.scheduler_stats) is not None:
                self._balancer.report(header.replica, stats.num_running_reqs + stats.num_waiting_reqs)
                self._gauges.combine(header.replica, stats)
            if step.outputs or stats is not None:
                self._outputs.put_nowait(step)

    def _accept(self, output: EngineCoreOutput, offset: int) -> bool:
        """Write an output into the journal; False if its attempt was given up or its client has left."""
        entry = self.journal.entry_of(output)
        if entry is None:
            return False
        try:
            self.journal.record(entry, output, offset)
        except TokensLost:
            logger.warning("request %s: tokens lost on the way", output.request_id)
            self._take_back(entry)
            return False
        return True
