"""A scripted OpenAI-shaped service on a loopback socket; gates, not clocks, decide when it goes on."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-right"
PATIENCE = 20.0


class Gate:
    """A point in a stream that waits until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        while not self._open.is_set():  # noqa: ASYNC110  a thread opens it, and asyncio.Event is not for threads
            await asyncio.sleep(0.005)


@dataclass
class Stream:
    """An answer of status 200: bytes to send, gates to wait at, and whether the client left early."""

    steps: list[bytes | Gate]
    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    async def body(self) -> AsyncIterator[bytes]:
        complete = False
        self.begun.set()
        try:
            for step in self.steps:
                if isinstance(step, Gate):
                    await step.passed()
                else:
                    yield step
            complete = True
        finally:
            if not complete:
                self.left.set()


def frame(payload: object) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


def delta(finish: str | None = None, **fields: object) -> bytes:
    return frame({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def ending(tokens: int, finish: str = "stop") -> bytes:
    usage = frame({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
    return delta(finish) + usage + b"data: [DONE]\n\n"


def says(*pieces: str) -> Stream:
    return Stream([delta(role="assistant"), *(delta(content=piece) for piece in pieces), ending(len(pieces))])


def refuses(status: int, code: str, message: str, retry_after: str = "", *, final: bool = False) -> Response:
    error = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return JSONResponse(error, status, headers | ({"x-should-retry": "false"} if final else {}))


def healthy(**model: Any) -> dict[str, Any]:
    ready = {
        "id": "demo",
        "status": "ready",
        "replicas": {"running": 1, "target": 1},
        "tasks": ["generate"],
        "max_model_len": 2048,
        "error": None,
    }
    return {
        "status": "ok",
        "gpu_available": False,
        "model_loaded": True,
        "upstream_healthy": True,
        "queue_size": 0,
        "details": {"models": [ready | model]},
    }


@dataclass
class Service:
    """What it will answer, and what it was asked."""

    url: str = ""
    cards: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "demo", "max_model_len": 2048}])
    answers: deque[Stream | Response] = field(default_factory=deque)
    healths: deque[dict[str, Any] | Response] = field(default_factory=lambda: deque([healthy()]))
    asked: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] | Response = field(default_factory=dict)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/api/healthz", self._health),
                Route("/api/usage", self._usage),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if refused := _without_key(request):
            return refused
        answer = self.answers.popleft()
        if isinstance(answer, Stream):
            return StreamingResponse(answer.body(), media_type="text/event-stream")
        return answer

    async def _models(self, request: Request) -> Response:
        return _without_key(request) or JSONResponse({"object": "list", "data": self.cards})

    async def _usage(self, request: Request) -> Response:
        self.asked.append(dict(request.query_params))
        if refused := _without_key(request):
            return refused
        return self.usage if isinstance(self.usage, Response) else JSONResponse(self.usage)

    async def _health(self, _: Request) -> Response:
        health = self.healths.popleft() if len(self.healths) > 1 else self.healths[0]
        if isinstance(health, Response):
            return health
        return JSONResponse(health, 200 if health["model_loaded"] else 503)


def _without_key(request: Request) -> Response | None:
    if request.headers.get("authorization") == f"Bearer {KEY}":
        return None
    return refuses(401, "invalid_api_key", "Incorrect API key provided.")


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Run the service in a thread; `service.url` is its /v1."""
    config = uvicorn.Config(service.app(), port=0, log_level="error", timeout_graceful_shutdown=1)
    sockets = [config.bind_socket()]
    sockets[0].listen()  # before the thread does, so that nobody comes too early
    server = uvicorn.Server(config)
    service.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
