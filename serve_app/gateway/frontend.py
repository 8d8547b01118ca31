"""vLLM's own front end of one model, over a fleet: `AsyncLLM` and the OpenAI routes.

The one place that names vLLM's front end; tests/unit/test_vllm_contract.py watches the names. vLLM's server
adds admin routes, an instrumentator, authentication and CORS around these routes. None of that is taken.
"""

import asyncio
import contextlib
import json
import pickle
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from ray.serve.handle import DeploymentHandle
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.anthropic.api_router import attach_router as attach_anthropic
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.openai.chat_completion.api_router import attach_router as attach_chat
from vllm.entrypoints.openai.completion.api_router import attach_router as attach_completion
from vllm.entrypoints.openai.responses.api_router import attach_router as attach_responses
from vllm.entrypoints.pooling.factories import register_pooling_api_routers
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.tokenize.api_router import attach_router as attach_tokenize
from vllm.entrypoints.speech_to_text.factories import register_speech_to_text_api_routers
from vllm.envs import enable_envs_cache
from vllm.outputs import RequestOutput
from vllm.reasoning import ReasoningParserManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

from serve_app.config import ModelConfig
from serve_app.fleet.client import FleetClient
from serve_app.fleet.journal import Entry
from serve_app.fleet.peers import Deployment, Limits
from serve_app.fleet.quarantine import Quarantine
from serve_app.fleet.settings import FailoverConfig
from serve_app.gateway import ticket as tickets
from serve_app.gateway.admission import Admission, AdmissionConfig
from serve_app.gateway.policy.reading import Reading
from serve_app.replica.arguments import parse_arguments
from serve_app.replica.deployment import Description
from serve_app.telemetry.metrics import adopt_vllm_metrics
from serve_app.vllm_seam import POOLING_TASKS, EngineCoreClient, SupportedTask, VllmConfig, restart_output

COUNTERS = 64  # settings of a reasoning parser that are kept ready
FAILED_S = 5.0  # so long failed requests may take to tell their clients


class FrontendFailed(Exception):
    """What reads tokens in vLLM's front end has ended: it does so for all requests if it stumbles over one."""


class Frontend:
    """A model that can answer: its ASGI app, what it can do, and the fleet below it."""

    def __init__(
        self,
        *,
        app: FastAPI,
        fleet: FleetClient,
        engine: AsyncLLM,
        metrics: CollectorRegistry,
        admission: AdmissionConfig,
        reading: Reading,
        count_reasoning: Callable[[Entry], int],
    ) -> None:
        self._app = app
        self._open, self._idle = 0, asyncio.Event()
        self._idle.set()
        self.fleet = fleet
        self.metrics = metrics
        self.reading = reading
        self.count_reasoning = count_reasoning
        """How many of the tokens that the client was told of are reasoning."""
        self._engine = engine
        self.admission = Admission(admission, self.seats)
        self.paths = frozenset(route.path for route in app.routes if isinstance(route, Route))

    @property
    def seats(self) -> int:
        """Requests that one replica computes at once."""
        return int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self._engine.model_config.max_model_len)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's app."""
        self._open += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    def check(self) -> None:
        """Raise what keeps this gateway from answering for the model: no request would be answered any more."""
        self.fleet.check()
        if self._engine.errored:
            raise FrontendFailed

    async def retire(self, within_s: float | None) -> None:
        """Let the open requests end, for so many seconds at most (None: any); those that do not are failed."""
        for patience_s in (within_s, FAILED_S):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), patience_s)
            self.fleet.fail_all()
        self.close()

    def close(self) -> None:
        self._engine.shutdown()


async def open_frontend(
    model: ModelConfig,
    replicas: DeploymentHandle[Any],
    description: Description,
    *,
    host: str,
    deployment: Deployment,
    admission: AdmissionConfig,
    failover: FailoverConfig,
    quarantine: Quarantine,
) -> Frontend:
    """Build the front end of a model from what one of its replicas said of it."""
    enable_envs_cache()
    arguments = parse_arguments(model)
    arguments.disable_fastapi_docs = True
    config: VllmConfig = pickle.loads(description.config)  # noqa: S301 - from our replica, by Serve
    # The replica's has the reasoning parser, which vLLM takes from a flag of its own when it builds the whole config.
    arguments.structured_outputs_config = config.structured_outputs_config
    fleet = FleetClient(
        replicas,
        host,
        description.tasks,
        deployment=deployment,
        limits=Limits(model.watchdog.silent_s, model.drain_moves_per_s),
        admit=tickets.admit,
        model=model.id,
        engine=description.traits,
        failover=failover,
        quarantine=quarantine,
        restart_output=lambda request: restart_output(engine.output_processor, request),
    )
    with _engine_core_is(fleet):
        engine = _MeteredLLM.from_vllm_config(config, stat_loggers=[PrometheusStatLogger], disable_log_stats=True)
    engine.renderer.start_mm_warmup_in_background()
    app = _routes(arguments, description.tasks, config)
    await init_app_state(engine, app.state, arguments, description.tasks)
    return Frontend(
        app=app,
        fleet=fleet,
        engine=engine,
        metrics=adopt_vllm_metrics(),
        admission=admission,
        reading=Reading(engine.get_tokenizer(), engine.model_config.max_model_len),
        count_reasoning=_reasoning_counter(arguments, engine),
    )


class _MeteredLLM(AsyncLLM):
    """Counts the tokens that clients are sent: one that reads slowly, or leaves, is sent fewer than there are."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        ticket = tickets.current.get()
        async with contextlib.aclosing(super().generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                yield output
                # Who reads this has come back for more, so the chunk has been written.
                for choice in output.outputs:
                    ticket.note_sent(output.request_id, choice.index, len(choice.token_ids))


def _reasoning_counter(arguments: Namespace, engine: AsyncLLM) -> Callable[[Entry], int]:
    name = arguments.structured_outputs_config.reasoning_parser
    if not name:
        return lambda entry: 0
    parser, tokenizer = ReasoningParserManager.get_reasoning_parser(name), engine.get_tokenizer()

    @lru_cache(COUNTERS)
    def counter(settings: str) -> Callable[[list[int]], int]:
        # A parser takes longer to make than to count with.
        counting: Callable[[list[int]], int] = parser(tokenizer, **json.loads(settings)).count_reasoning_tokens
        return counting

    def count(entry: Entry) -> int:
        # Whether there is any depends on the request; on routes without reasoning vLLM leaves this out.
        settings = entry.request.reasoning_parser_kwargs
        if settings is None:
            return 0
        return int(counter(json.dumps(settings, sort_keys=True))(entry.tokens[: entry.sent]))

    return count


@contextlib.contextmanager
def _engine_core_is(fleet: FleetClient) -> Iterator[None]:
    """Within, an `AsyncLLM` that is built talks to this fleet: its constructor takes no client."""
    name = "make_async_mp_client"
    original = getattr(EngineCoreClient, name)

    def make(**_: Any) -> FleetClient:
        return fleet

    setattr(EngineCoreClient, name, staticmethod(make))
    try:
        yield
    finally:
        setattr(EngineCoreClient, name, staticmethod(original))


def _routes(arguments: Namespace, tasks: tuple[SupportedTask, ...], config: VllmConfig) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.args = arguments
    attach_tokenize(app)
    if "generate" in tasks:
        for attach in (attach_chat, attach_completion, attach_responses, attach_anthropic):
            attach(app)
    if "transcription" in tasks:
        register_speech_to_text_api_routers(app, tasks)
    if set(tasks) & set(POOLING_TASKS):
        register_pooling_api_routers(app, tasks, config.model_config)
    init_exception_handler(app)
    return app
