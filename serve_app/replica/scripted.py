"""The scripted engine: stands behind a replica in place of vLLM's engine core and answers by a script.

It needs no weights and no GPU, so that everything above it can be tested and loaded at will. It speaks the
part of `vllm.v1.engine.core_client.AsyncMPClient` that a replica uses, in vLLM's own message types.
"""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

import numpy as np
import torch

from serve_app.replica.script import Answer, Fault, Script
from serve_app.replica.vitals import Vitals
from serve_app.vllm_seam import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDeadError,
    FinishReason,
    LogprobsLists,
    LoRARequest,
    PoolingParams,
    PrefillStats,
    SamplingParams,
    SchedulerStats,
    SupportedTask,
    VllmConfig,
    cached_tokenizer_from_config,
)

SEND_TIME = 0.1  # seconds a dying process leaves its last tokens to get out


@dataclass
class Resources:
    """The one flag of vLLM's `BackgroundResources` that a replica reads."""

    engine_dead: bool = False


@dataclass
class Task:
    """A request and how far its answer has come in this engine."""

    request: EngineCoreRequest
    answer: Answer
    tokens: int = 0
    queued: float = field(default_factory=monotonic)  # seconds, monotonic clock
    due: float = 0.0  # when its next token comes, by the same clock


class ScriptedEngine:
    """Answers by script; sampling, penalties, grammars and prompt logprobs have no effect on it."""

    def __init__(self, config: VllmConfig, delay: float = 0.0) -> None:
        """`delay`: seconds between two tokens of a request; 0 is as fast as the event loop turns."""
        model = config.model_config
        self.resources = Resources()
        self._script = Script(cached_tokenizer_from_config(model))
        self._supported: tuple[SupportedTask, ...] = ("embed",) if model.runner_type == "pooling" else ("generate",)
        self._context, self._width = model.max_model_len, model.get_hidden_size()
        self._seats = config.scheduler_config.max_num_seqs
        self._delay = delay
        self._queue: dict[str, Task] = {}  # by arrival: the first `_seats` run, the others wait
        self._aborted = False
        self._hung = False
        self._news = asyncio.Event()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self._supported

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self._ensure_alive()
        task = Task(request, self._script.begin(request.prompt_token_ids or []))
        self._schedule(task)
        self._queue[request.request_id] = task
        self._news.set()

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        """An adapter changes nothing that is scripted."""
        return True

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._aborted |= self._queue.pop(request_id, None) is not None
        self._news.set()

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step: a token for every running request that is due, or none where requests were aborted.

        Raises EngineDeadError once the engine is dead.
        """
        self._ensure_alive()
        await asyncio.sleep(0)  # between two steps others have their turn, requests and aborts among them
        while not (due := self._due()) and not self._aborted:
            await self._wait()
        self._aborted = False
        for task in due:
            await self._suffer(task.answer.fault)
        outputs = [self._advance(task) for task in due]
        waiting = max(0, len(self._queue) - self._seats)
        stats = SchedulerStats(num_running_reqs=len(self._queue) - waiting, num_waiting_reqs=waiting)
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)

    def shutdown(self, timeout: float | None = None) -> None:
        self._queue.clear()

    def vitals(self) -> Vitals:
        """As of an engine core's processes: busy while it has requests, asleep from where it hangs."""
        return Vitals(cpu_s=0.0, awake=bool(self._queue) and not self._hung, stopped=False)

    def _ensure_alive(self) -> None:
        if self.resources.engine_dead:
            raise EngineDeadError

    def _running(self) -> list[Task]:
        return list(islice(self._queue.values(), self._seats))

    def _due(self) -> list[Task]:
        now = monotonic()
        return [task for task in self._running() if task.due <= now]

    def _schedule(self, task: Task) -> None:
        delay = self._delay if task.answer.delay is None else task.answer.delay
        task.due = monotonic() + delay

    async def _wait(self) -> None:
        """Until the next request is due, or one is added or aborted."""
        self._news.clear()
        soonest = min((task.due for task in self._running()), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if soonest is None else soonest - monotonic()):
                await self._news.wait()

    async def _suffer(self, fault: Fault | None) -> None:
        if fault is Fault.DIE:
            await asyncio.sleep(SEND_TIME)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault is Fault.ENGINE_DIES:
            self.resources.engine_dead = True
            raise EngineDeadError
        if fault is Fault.HANG:
            self._hung = True
            await asyncio.Event().wait()

    def _advance(self, task: Task) -> EngineCoreOutput:
        request = task.request
        if request.pooling_params is not None:
            output = self._pool(task, request.pooling_params)
        elif task.answer.fault is Fault.FAIL or request.sampling_params is None:
            output = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR)
        else:
            output = self._decode(task, request.sampling_params)
        if output.finished:
            del self._queue[request.request_id]
        self._schedule(task)
        return output

    def _decode(self, task: Task, sampling: SamplingParams) -> EngineCoreOutput:
        output = EngineCoreOutput(task.request.request_id, [])
        if task.tokens == 0:
            output.events = [
                EngineCoreEvent(EngineCoreEventType.QUEUED, task.queued),
                EngineCoreEvent(EngineCoreEventType.SCHEDULED, monotonic()),
            ]
            output.prefill_stats = PrefillStats()
            output.prefill_stats.set(len(task.request.prompt_token_ids or []), 0, 0)
        task.tokens += 1
        may_stop = task.tokens > sampling.min_tokens
        eos = sampling.eos_token_id  # None where the caller ignores it
        token = eos if eos is not None and may_stop and task.answer.complete else task.answer.write()
        output.new_token_ids = [token]
        if sampling.num_logprobs is not None:
            output.new_logprobs = self._logprobs(token, sampling.num_logprobs)
        length = len(task.request.prompt_token_ids or []) + task.tokens
        if token == eos:
            output.finish_reason = FinishReason.STOP
        elif may_stop and token in (sampling.stop_token_ids or ()):
            output.finish_reason, output.stop_reason = FinishReason.STOP, token
        elif task.tokens >= (sampling.max_tokens or self._context) or length >= self._context:
            output.finish_reason = FinishReason.LENGTH
        return output

    def _logprobs(self, token: int, count: int) -> LogprobsLists:
        """The sampled token, then the `count` likeliest, it at their head: -0.25, -0.5, -0.75 and so on."""
        words = self._script.words
        others = [word for word in words[: len(words) if count < 0 else count] if word != token]
        likeliest = [token, *others][: count if count >= 0 else None]
        logprobs = [-0.25, *(-0.25 * rank for rank in range(1, len(likeliest) + 1))]
        return LogprobsLists(
            np.array([[token, *likeliest]], dtype=np.int64),
            np.array([logprobs], dtype=np.float32),
            np.array([1], dtype=np.int64),
        )

    def _pool(self, task: Task, pooling: PoolingParams) -> EngineCoreOutput:
        """A vector of length 1 whose direction the prompt's tokens decide."""
        generator = torch.Generator().manual_seed(task.answer.state)
        vector = torch.randn(pooling.dimensions or self._width, generator=generator)
        vector /= vector.norm()
        return EngineCoreOutput(task.request.request_id, [], pooling_output=vector, finish_reason=FinishReason.STOP)
