"""The replica: a Serve deployment that owns one engine core and answers the gateways' fleet clients."""

import asyncio
import logging
import os
import pickle
import time
from typing import Any, NamedTuple, NoReturn

import ray
from ray import serve

from serve_app.collector import collect_seldom
from serve_app.config import ModelConfig
from serve_app.fleet.channel import BEAT_S, Sink, SinkGone, TokenSender
from serve_app.fleet.resume import EngineTraits
from serve_app.fleet.scaling import ReplicaLoad
from serve_app.fleet.suspicion import Suspicion
from serve_app.ray_seam import keep_log, listen_on_node_address, on_sigterm, on_stop
from serve_app.replica.courier import Attempt, Courier
from serve_app.replica.engine import Engine, engine_traits, load_adapters, start_engine
from serve_app.replica.engine_watch import EngineWatch
from serve_app.replica.gate import Gate
from serve_app.replica.leaving import Leaving, Terminated
from serve_app.replica.process import protect_children
from serve_app.vllm_seam import (
    EngineCoreRequest,
    EngineDeadError,
    MsgpackDecoder,
    SupportedTask,
)

logger = logging.getLogger("ray.serve")


class Description(NamedTuple):
    """What a gateway needs to build the front end of a model."""

    config: bytes
    """vLLM's configuration as the engine core left it, pickled."""
    tasks: tuple[SupportedTask, ...]
    """What the model can do, in vLLM's words: generate, embed, score, transcription, ..."""
    traits: EngineTraits
    has_gpu: bool
    """Whether this replica holds a GPU."""
    settings: dict[str, Any]
    """The model's `fixed_settings` that this replica was started with."""


class Replica:
    """Owns one engine core. Calls are unary: a request's tokens leave by the token channel."""

    def __init__(self, model: ModelConfig) -> None:
        listen_on_node_address()
        keep_log()
        collect_seldom()
        protect_children()
        self._settings = model.fixed_settings()
        self._adapters = model.adapters
        self._engine: Engine = start_engine(model)
        self._sender = TokenSender(serve.get_replica_context().replica_id.unique_id)
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._courier = Courier(self._sender, model.busy_from)
        self._gate, self._warm = Gate(), asyncio.Event()
        self._has_gpu = bool(ray.get_gpu_ids())
        self._leaving = Leaving(model.drain_grace_s, model.drain_timeout_s)
        on_stop(self._leaving.begin, lambda: self._leaving.begun)
        on_sigterm(self._leaving.terminate)
        asleep_s = model.watchdog.asleep_limit_s(model.resolved_device(), model.nodes)
        self._engine_watch = EngineWatch(model.watchdog, asleep_s, self._engine.vitals)
        self._tasks = [asyncio.get_event_loop().create_task(each) for each in (self._push_steps(), self._watch())]
        for task in self._tasks:
            task.add_done_callback(self._exit_on_error)

    async def describe(self) -> Description:
        config = pickle.dumps(self._engine.config)
        tasks = await self._engine.core.get_supported_tasks_async()
        return Description(config, tasks, engine_traits(self._engine.config), self._has_gpu, self._settings)

    async def reconfigure(self, settings: Any) -> None:
        """Serve's hook for a changed `user_config`, which is for the gateways; and for the end of this one's start."""
        adapters, self._adapters = self._adapters, {}
        await load_adapters(self._engine.core, adapters)

    async def generate(
        self, sink: Sink, request_id: str, frames: list[bytes], suspicion: str = "", hint: None = None
    ) -> None:
        """Run one request to its end; cancelling the call aborts it in the engine core.

        Args:
            sink: the token channel of the gateway that asks.
            request_id: the request's id, marked with the attempt.
            frames: vLLM's encoding of an `EngineCoreRequest`.
            suspicion: a `Suspicion`: how far it is to be kept apart from other requests until its first token.
            hint: what the gateway told Serve's router; it stays there.

        Raises:
            SinkGone: the gateway no longer reads its token channel.
        """
        self._sender.connect(sink)
        attempt = self._courier.attempts[request_id] = Attempt(sink.address, suspected=bool(suspicion))
        try:
            self._sender.take(sink.address, request_id)
            request = self._decoder.decode(frames)
            if suspicion:
                await self._begin_apart(attempt, request, Suspicion(suspicion))
            else:
                await self._engine.core.add_request_async(request)
            await attempt.done
        except (asyncio.CancelledError, SinkGone):
            await self._engine.core.abort_requests_async([request_id])
            raise
        finally:
            del self._courier.attempts[request_id]

    async def _begin_apart(self, attempt: Attempt, request: EngineCoreRequest, suspicion: Suspicion) -> None:
        async with self._gate.entered(suspicion):
            self._sender.begin(attempt.address, request.request_id)
            await self._engine.core.add_request_async(request)
            await attempt.answered.wait()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook for what its autoscaling policy goes by."""
        seats = self._engine.config.scheduler_config.max_num_seqs
        if not self._courier.attempts:  # the engine core takes no step then, so its last figures may be of before
            return ReplicaLoad(seats, 0, 0, 0)._asdict()
        stats = self._courier.stats
        waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        return ReplicaLoad(seats, stats.num_running_reqs, waiting, stats.kv_cache_usage)._asdict()

    async def check_health(self) -> None:
        """Serve's health check: the engine core's own, once it is warm; a replica that got SIGTERM is to be replaced.

        Serve sends requests after the first check only.
        """
        await self._warm.wait()
        if self._engine.core.resources.engine_dead:
            raise EngineDeadError
        if self._leaving.terminated:
            raise Terminated

    def __del__(self) -> None:
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if hasattr(self, "_engine"):
            self._engine.core.shutdown(timeout=2)

    async def _push_steps(self) -> None:
        """Carry the engine core's outputs to the gateways."""
        try:
            await self._warm_up()
            while True:
                step = await self._engine.core.get_output_async()
                self._engine_watch.step(time.monotonic())
                self._courier.push(step)
        except EngineDeadError:
            self._exit("its engine core died")

    async def _warm_up(self) -> None:
        core, request = self._engine.core, self._engine.warm_up
        if request is not None:
            await core.add_request_async(request)
            while not any(output.finished for output in (await core.get_output_async()).outputs):
                pass
        self._warm.set()

    async def _watch(self) -> None:
        """Give the gateways signs of life, give up those that are gone, and watch the engine core."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            # In more than that much time others had no turn, whose news would have come first.
            elapsed_s, last = min(now - last, 2 * BEAT_S), now
            for address in self._sender.beat(self._leaving.left_s(), elapsed_s):
                self._courier.give_up(SinkGone(address), address)
            if (why := self._engine_watch.look(bool(self._courier.attempts), elapsed_s)) is not None:
                self._exit(f"its engine core hangs: {why}")
            if self._leaving.may_exit(idle=not self._courier.attempts):
                self._exit("it got SIGTERM")

    def _exit_on_error(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a replica cannot go on", exc_info=error)
            self._exit(repr(error))

    def _exit(self, why: str) -> NoReturn:
        """End this process, which is of no use any more.

        The calls in it fail as a dead replica's do, so that their requests move, and Serve starts another at once.
        """
        logger.critical("this replica exits: %s", why)
        self._courier.flush()
        self._sender.close(flush_s=1)
        os._exit(1)
