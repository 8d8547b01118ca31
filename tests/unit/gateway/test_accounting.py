"""Every request has one row in the ledger, with the tokens that its client was sent, however it ends."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import URL, select
from starlette.types import Message, Receive, Scope, Send
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.fleet.journal import Journal
from serve_app.gateway import ticket as tickets
from serve_app.gateway.admission import Admission, AdmissionConfig
from serve_app.gateway.body import ClientLeft
from serve_app.gateway.call import Call
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.deadlines import DeadlinesConfig
from serve_app.gateway.errors import GatewayError, ModelLoading, Overloaded
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.limits.limiter import Claim, Holder, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Models, Name
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.routes import MODEL_ROUTES
from serve_app.ledger.database import connect
from serve_app.ledger.schema import usage
from serve_app.ledger.writer import Ledger
from tests.virtual_time import now, run

CHAT = "/v1/chat/completions"
PROMPT = [1, 2, 3]
QUOTA = Quota(tokens_per_minute=10_000)
CALLER = Caller("key", "key", features=frozenset({"benchmark"}))
SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DEAD = b'data: {"error": {"message": "x", "type": "E", "param": null, "code": 500}}\n\n'
Step = int | float | bytes | str | Exception
Row = tuple[str, int, int, int, int]
"""How it ended, status, prompt tokens, output tokens, replicas."""


@dataclass
class FrontEnd:
    """What vLLM's front end does for one request, step by step.

    A whole number: so many tokens in a chunk; `held 2`: so many for a later chunk; a fraction: seconds that pass;
    bytes: a chunk as it is; an exception: it is raised. With the last step the answer is complete.
    """

    steps: tuple[Step, ...]
    stream: bool = True
    paths: frozenset[str] = frozenset({CHAT})
    reading: Any = field(default_factory=lambda: SimpleNamespace(check=lambda *_: None))
    admission: Any = None

    def count_reasoning(self, entry: Any) -> int:
        return min(2, int(entry.sent))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As vLLM's app does: until the answer is complete or the client has left."""
        working = asyncio.create_task(self._work(send))
        leaving = asyncio.create_task(left(receive))
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not working.done():
            working.cancel()
        await working

    async def _work(self, send: Send) -> None:
        entry = Journal().open(request())
        await tickets.admit(entry)
        entry.dispatched_at, entry.replicas = now(), 1
        await send({"type": "http.response.start", "status": 200, "headers": SSE if self.stream else JSON})
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, bytes):
                await send(chunk(step))
            else:
                tokens = step if isinstance(step, int) else int(step.removeprefix("held "))
                entry.tokens += [7] * tokens
                entry.read += tokens
                entry.last_token_at = now()
                if isinstance(step, int):
                    if self.stream:
                        await send(chunk(TOKEN * tokens))
                    tickets.current.get().note_sent("r", 0, tokens)
        await send(chunk(b"data: [DONE]\n\n" if self.stream else b"{}", more=False))


async def left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def chunk(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def request() -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="r-1",
        external_req_id="r",
        prompt_token_ids=list(PROMPT),
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=100),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


class Client:
    """A client that counts the tokens it gets."""

    def __init__(self, *, body: bytes | None = None, leaves_after: int | None = None, leaves_at: float = 0) -> None:
        self.tokens = 0
        self.status: int | None = None
        self._body = body or json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        self._leaves_after = leaves_after
        self._leaves_at = leaves_at
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": body == b"half"}
        if self._leaves_at:
            await asyncio.sleep(self._leaves_at - now())
        else:
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.tokens += message.get("body", b"").count(b'"content"')
        if self.tokens == self._leaves_after:
            self._gone.set()


class Service:
    """One model, its ledger, and the limits of one key."""

    def __init__(self, url: URL, deadlines: DeadlinesConfig | None = None) -> None:
        self._url = url
        self._ledger = Ledger(connect(url))
        self._limiter = MemoryLimiter(30, lambda: 0.0)
        self._limits = RequestLimits(self._limiter, 30)
        self._config = GatewayConfig(deadlines=deadlines or DeadlinesConfig())
        self._admission = Admission(AdmissionConfig(max_waiting=0), 100)
        self._requests = 0

    def inference(self, front_end: FrontEnd, check: Callable[[], None] = lambda: None) -> Inference:
        front_end.admission = front_end.admission or self._admission

        async def opened() -> FrontEnd:
            return front_end

        config: Any = SimpleNamespace(id="m")
        model: Any = SimpleNamespace(config=config, frontend=front_end, opened=opened)
        models = SimpleNamespace(
            candidates=lambda *_: [Name("m", model)],
            check=lambda _: check(),
            last_of=lambda names: names[-1],
            up_since=lambda _: 0.0,
        )
        return Inference(cast("Models", models), Policy(self._config.policy, b""), self._ledger, self._config)

    async def ask(self, client: Client, inference: Inference, path: str = CHAT) -> Exception | None:
        """What became of a request: the error that ended it, or None."""
        self._requests += 1
        holder = Holder("key", str(self._requests))
        call = Call(holder.request, CALLER, QUOTA, await self._limits.open(holder, QUOTA))
        scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": JSON}
        try:
            await inference.answer(call, MODEL_ROUTES[path], scope, client.receive, client.send)
        except Exception as error:  # noqa: BLE001 - what the gateway's boundary sees
            return error
        return call.error

    async def tokens_used(self) -> int:
        decision = await self._limiter.reserve(Claim(Holder("key", "last"), QUOTA))
        assert decision.tokens is not None
        return decision.tokens.limit - decision.tokens.remaining

    def rows(self) -> list[Row]:
        self._ledger.close()
        engine = connect(self._url)
        columns = [usage.c[name] for name in ("finish", "status", "prompt_tokens", "output_tokens", "attempts")]
        with engine.begin() as connection:
            found = connection.execute(select(*columns).order_by(usage.c.seq)).all()
        engine.dispose()
        return [cast("Row", tuple(row)) for row in found]


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "usage.db"))


def account(
    url: URL,
    *steps: Step,
    client: dict[str, Any] | None = None,
    deadlines: DeadlinesConfig | None = None,
    stream: bool = True,
) -> tuple[list[Row], int, int]:
    """The rows of one request, the tokens that its client got, and those that its key was charged."""

    async def main() -> tuple[Service, int, int]:
        service = Service(url, deadlines)
        asking = Client(**(client or {}))
        await service.ask(asking, service.inference(FrontEnd(steps, stream)))
        return service, asking.tokens, await service.tokens_used()

    service, got, charged = run(main())
    return service.rows(), got, charged


def test_a_whole_stream(url: URL) -> None:
    assert account(url, 1, 2, 4) == ([("stop", 200, 3, 7, 1)], 7, 10)


def test_a_whole_answer(url: URL) -> None:
    assert account(url, 5, stream=False) == ([("stop", 200, 3, 5, 1)], 0, 8)


def test_tokens_that_wait_for_the_next_chunk_were_not_sent(url: URL) -> None:
    """Their client pays for no more than it got; its limits count what was computed."""
    assert account(url, 1, 4, "held 3", DEAD) == ([("error", 200, 3, 5, 1)], 5, 11)


def test_a_client_that_leaves(url: URL) -> None:
    rows, got, charged = account(url, 1, 1, 1, "held 2", 5.0, 1, client={"leaves_after": 3})
    assert (rows, got, charged) == ([("abort", 200, 3, 3, 1)], 3, 8)


def test_a_client_that_leaves_before_the_first_token(url: URL) -> None:
    rows, got, charged = account(url, 5.0, 1, client={"leaves_at": 2.0})
    assert (rows, got, charged) == ([("abort", 499, 3, 0, 1)], 0, 3)


def test_a_client_that_leaves_before_a_whole_answer_got_nothing_and_is_charged_for_the_work(url: URL) -> None:
    rows, _, charged = account(url, "held 4", 5.0, 1, stream=False, client={"leaves_at": 2.0})
    assert (rows, charged) == ([("abort", 499, 3, 0, 1)], 7)


def test_a_failure_before_the_first_token(url: URL) -> None:
    assert account(url, DEAD) == ([("error", 500, 3, 0, 1)], 0, 3)


def test_a_failure_inside_before_the_first_token(url: URL) -> None:
    assert account(url, RuntimeError()) == ([("error", 500, 3, 0, 1)], 0, 3)


def test_a_failure_inside_after_the_first_token(url: URL) -> None:
    assert account(url, 2, RuntimeError()) == ([("error", 200, 3, 2, 1)], 2, 5)


@pytest.mark.parametrize(
    ("steps", "deadlines", "row", "got"),
    [
        ((9.0, 1), {"first_token_s": 5}, ("error", 504, 3, 0, 1), 0),
        ((2, 9.0, 1), {"between_tokens_s": 5}, ("error", 200, 3, 2, 1), 2),
        ((2, 3.0, 1, 3.0, "held 1", 3.0), {"total_s": 8}, ("error", 200, 3, 3, 1), 3),
    ],
)
def test_a_deadline(url: URL, steps: tuple[Step, ...], deadlines: dict[str, Any], row: Row, got: int) -> None:
    found, tokens, _ = account(url, *steps, deadlines=DeadlinesConfig(**deadlines))
    assert (found, tokens) == ([row], got)


def test_what_is_refused_has_a_row_without_tokens(url: URL) -> None:
    async def main() -> tuple[Service, list[Exception | None], int]:
        service, errors = Service(url), []
        full = FrontEnd((1,), admission=Admission(AdmissionConfig(max_waiting=0), 0))

        def loading() -> None:
            raise ModelLoading("m")

        good = service.inference(FrontEnd((1,)))
        for asking, door, path in (
            (Client(), service.inference(full), CHAT),
            (Client(body=b"{"), good, CHAT),
            (Client(body=b'{"colour": 1}'), good, CHAT),
            (Client(), service.inference(FrontEnd((1,)), loading), CHAT),
            (Client(body=b'{"prompt": "a"}'), good, "/v1/completions"),
        ):
            errors.append(await service.ask(asking, door, path))
        return service, errors, await service.tokens_used()

    service, errors, charged = run(main())
    assert [error.code for error in errors if isinstance(error, GatewayError)] == [
        "server_is_overloaded",
        "invalid_json",
        "unknown_parameter",
        "model_loading",
        "task_not_supported",
    ]
    assert service.rows() == [("refused", status, 0, 0, 0) for status in (503, 400, 400, 503, 404)]
    assert charged == 0


def test_what_ends_before_it_reaches_the_model(url: URL) -> None:
    async def main() -> tuple[Service, list[Exception | None]]:
        service = Service(url)
        inference = service.inference(FrontEnd((1,)))

        def broken() -> None:
            raise ZeroDivisionError

        failing = service.inference(FrontEnd((1,)), broken)
        errors = [await service.ask(Client(body=b"half", leaves_at=1), inference), await service.ask(Client(), failing)]
        for error in (Overloaded(1), asyncio.CancelledError(), ZeroDivisionError()):
            inference.note_refusal(CALLER, CHAT, "r", error)
        return service, errors

    service, errors = run(main())
    assert [type(error) for error in errors] == [ClientLeft, ZeroDivisionError]
    assert service.rows() == [
        ("abort", 499, 0, 0, 0),
        ("error", 500, 0, 0, 0),
        ("refused", 503, 0, 0, 0),
        ("abort", 499, 0, 0, 0),
        ("error", 500, 0, 0, 0),
    ]


def test_a_request_that_serve_cancels(url: URL) -> None:
    async def main() -> Service:
        service = Service(url)
        task = asyncio.create_task(service.ask(Client(), service.inference(FrontEnd((3, 60.0)))))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        return service

    assert run(main()).rows() == [("abort", 200, 3, 3, 1)]


ENDS: list[tuple[tuple[Step, ...], dict[str, Any]]] = [
    ((1, 2, 1, 4), {}),
    ((1, 0.5, 4, "held 2", DEAD), {}),
    ((1, 1, "held 1", 0.5, 2), {"leaves_after": 2}),
    ((2, "held 3", RuntimeError()), {}),
    ((1, 50.0, 1), {}),
    ((50.0, 1), {}),
    ((0.5, 3), {"leaves_at": 0.25}),
    ((1,), {"body": b'{"messages": []}'}),
]


def test_many_at_once_sum_to_what_their_clients_got(url: URL) -> None:
    drawn = random.Random(4)

    async def main() -> tuple[Service, list[Client], int]:
        service = Service(url, DeadlinesConfig(first_token_s=20, between_tokens_s=20))
        clients, asked = [], []
        for _ in range(200):
            steps, behaviour = drawn.choice(ENDS)
            client = Client(**behaviour)
            clients.append(client)
            asked.append(service.ask(client, service.inference(FrontEnd(steps))))
        await asyncio.gather(*asked)
        return service, clients, await service.tokens_used()

    service, clients, charged = run(main())
    rows = service.rows()
    assert len(rows) == len(clients) == 200
    assert sum(row[3] for row in rows) == sum(client.tokens for client in clients)
    assert {row[0] for row in rows} == {"stop", "error", "abort", "refused"}
    assert charged >= sum(row[2] + row[3] for row in rows)
