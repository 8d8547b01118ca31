"""What a client gets for what vLLM's app sends: statuses, exact bytes, and when. In virtual time."""

import asyncio
import json
import logging
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.deadlines import DeadlinesConfig
from serve_app.gateway.errors import GatewayError, Overloaded
from serve_app.gateway.replies import Style
from serve_app.gateway.response import Answer
from tests.unit.gateway.progress import Progress
from tests.virtual_time import now, run

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
TOKEN = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
CANNOT_SEE = (
    b'data: {"error": {"message": "CUDA error in /opt/vllm/x.py", "type": "E", "param": null, "code": 500}}\n\n'
)
FAILED = (
    b'{"error":{"message":"The model failed while it answered. The answer is not complete.",'
    b'"type":"server_error","param":null,"code":"upstream_failed"}}'
)
INSIDE = (
    b'{"error":{"message":"The request failed inside the service (r1).",'
    b'"type":"server_error","param":null,"code":"internal_error"}}'
)


def timeout_body(what: str, seconds: int) -> bytes:
    message = f"{what} took longer than {seconds} seconds."
    return b'{"error":{"message":"%s","type":"server_error","param":null,"code":"timeout"}}' % message.encode()


class Client:
    """The client's end of a request: what it got and when, and how it behaves."""

    def __init__(
        self,
        *,
        deadlines: DeadlinesConfig | None = None,
        style: Style = "openai",
        streams: bool = False,
        elsewhere: Callable[[GatewayError], bool] = lambda _: False,
    ) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[tuple[float, bytes]] = []
        self.ended = False
        self.chunks_at_end: list[int] = []
        """How many chunks the client had whenever `before_end` was awaited."""
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()
        self.progress = Progress()
        self.refusal: GatewayError | None = None
        self.answer = Answer(
            self.send,
            deadlines or DeadlinesConfig(),
            self.progress,
            lambda: self.refusal,
            request_id="r1",
            before_end=self.end,
            style=style,
            streams=streams,
            elsewhere=elsewhere,
        )
        self._body = [b"{}"]

    async def end(self) -> None:
        self.chunks_at_end.append(len(self.chunks))

    @property
    def body(self) -> bytes:
        return b"".join(chunk for _, chunk in self.chunks)

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        assert not self.ended
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            assert self.status is not None
            self.chunks.append((now(), message.get("body", b"")))
            self.ended = not message.get("more_body", False)

    async def receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


def starts(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def chunk(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def app_sending(*steps: Message | float | Callable[[], object], headers: list[tuple[bytes, bytes]] = SSE) -> ASGIApp:
    """An app that starts a 200, sends messages, sleeps where a step is a number, and calls what can be called."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts(200, headers))
        for step in steps:
            if isinstance(step, float | int):
                await asyncio.sleep(step)
            elif callable(step):
                step()
            else:
                await send(step)

    return app


def app_answering(status: int, body: bytes) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts(status, [*JSON, (b"content-length", str(len(body)).encode())]))
        await send({"type": "http.response.body", "body": body})

    return app


def test_a_stream_passes_through() -> None:
    async def main() -> None:
        client = Client()
        await client.answer.run(
            app_sending(chunk(TOKEN), chunk(TOKEN), chunk(DONE), chunk(b"", False)), SCOPE, client.receive
        )
        assert (client.status, client.headers[b"content-type"]) == (200, SSE[0][1])
        assert [body for _, body in client.chunks] == [TOKEN, TOKEN, DONE, b""]
        assert client.ended
        assert client.chunks_at_end == [2, 3]  # before what tells the client that all has come
        assert (client.answer.status, client.answer.error) == (200, None)

    run(main())


def test_a_whole_answer_passes_through() -> None:
    async def main() -> None:
        client = Client()
        await client.answer.run(app_answering(200, b'{"id":"x"}'), SCOPE, client.receive)
        assert (client.status, client.body, client.ended) == (200, b'{"id":"x"}', True)
        assert client.chunks_at_end == [0]
        assert client.headers[b"content-length"] == b"10"

    run(main())


@pytest.mark.parametrize("event", [b"event: response.created", b'data: {"delta":{"role":"assistant"}}'])
def test_the_200_is_held_until_the_first_token(event: bytes) -> None:
    async def main() -> None:
        client = Client()
        client.progress.begun = False
        opening, delta = event + b"\n\n", b"event: response.output_text.delta\ndata: {}\n\n"

        def nothing_yet() -> None:
            assert client.status is None

        def first_token() -> None:
            client.progress.begun = True

        steps = (1, chunk(b""), chunk(opening), nothing_yet, 5, nothing_yet, first_token, chunk(delta))
        await client.answer.run(app_sending(*steps, chunk(b"", False)), SCOPE, client.receive)
        assert client.chunks == [(6, opening + delta), (6, b"")]

    run(main())


@pytest.mark.parametrize("opening", [b"event: response.created\n\n", b'data: {"delta":{"role":"assistant"}}\n\n'])
def test_a_stream_that_fails_after_its_opening_is_a_status(opening: bytes) -> None:
    async def main() -> None:
        client = Client()
        client.progress.begun = False
        app = app_sending(chunk(opening), chunk(CANNOT_SEE), chunk(DONE), chunk(b"", False))
        await client.answer.run(app, SCOPE, client.receive)
        assert (client.status, client.body, client.ended) == (500, INSIDE, True)

    run(main())


@pytest.mark.parametrize(
    "outcome",
    [
        app_sending(chunk(CANNOT_SEE), chunk(DONE), chunk(b"", False)),
        app_answering(500, b"{}"),
        app_answering(200, b"{}"),
        app_sending(chunk(b"event: response.created\n\n")),
    ],
    ids=["stream error", "500", "200", "nothing"],
)
def test_a_refusal_of_the_gateway_goes_before_what_vllm_made_of_it(outcome: ASGIApp) -> None:
    async def main() -> None:
        client = Client()
        client.refusal = Overloaded(7)
        await client.answer.run(outcome, SCOPE, client.receive)
        assert (client.status, client.headers[b"retry-after"], client.ended) == (503, b"7", True)
        assert client.body == (
            b'{"error":{"message":"The model has no free place for this request. Try again in 7 seconds.",'
            b'"type":"service_unavailable_error","param":null,"code":"server_is_overloaded"}}'
        )
        assert (client.answer.status, client.answer.error) == (503, client.refusal)

    run(main())


def test_a_refusal_that_came_as_an_exception_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("wrapped")

    async def main() -> None:
        client = Client()
        client.refusal = Overloaded(7)
        await client.answer.run(app, SCOPE, client.receive)
        assert client.status == 503

    run(main())
    assert not caplog.records


def test_a_failure_before_the_first_token_is_a_status() -> None:
    async def main() -> None:
        client = Client()
        await client.answer.run(app_sending(chunk(CANNOT_SEE), chunk(DONE), chunk(b"", False)), SCOPE, client.receive)
        assert (client.status, client.body, client.ended) == (500, INSIDE, True)

    run(main())


def test_a_failure_in_the_stream_is_one_error_event_and_no_end() -> None:
    async def main() -> None:
        client = Client()
        app = app_sending(chunk(TOKEN), chunk(CANNOT_SEE), chunk(DONE), chunk(b"", False))
        await client.answer.run(app, SCOPE, client.receive)
        assert client.status == 200
        assert client.body == TOKEN + b"data: " + FAILED + b"\n\n"
        assert not client.ended
        assert client.answer.error is not None
        assert (client.answer.status, client.answer.error.code) == (200, "upstream_failed")

    run(main())


def test_a_failure_in_an_anthropic_stream_keeps_anthropics_shape() -> None:
    async def main() -> None:
        client = Client(style="anthropic")
        first = b'event: message_start\ndata: {"type":"message_start"}\n\n'
        error = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"/opt/x.py"}}\n\n'
        await client.answer.run(app_sending(chunk(first), chunk(error), chunk(b"", False)), SCOPE, client.receive)
        assert client.body == first + (
            b'event: error\ndata: {"type":"error","error":{"type":"api_error",'
            b'"message":"The model failed while it answered. The answer is not complete."}}\n\n'
        )
        assert not client.ended

    run(main())


@pytest.mark.parametrize("after", [[], [chunk(TOKEN)]], ids=["before", "within"])
@pytest.mark.parametrize("how", ["raises", "returns"])
def test_an_app_that_ends_without_an_answer_is_a_failure(
    after: list[Message], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def end() -> None:
        if how == "raises":
            raise RuntimeError("secret")

    async def main() -> None:
        client = Client()
        await client.answer.run(app_sending(*after, end), SCOPE, client.receive)
        if after:
            assert (client.status, client.body, client.ended) == (200, TOKEN + b"data: " + FAILED + b"\n\n", False)
        else:
            assert (client.status, client.body, client.ended) == (500, INSIDE, True)

    run(main())
    assert [record.getMessage() for record in caplog.records] == (
        ["request r1 failed in the front end"] if how == "raises" else []
    )


def test_silence_in_a_stream_is_filled_with_comments() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(keep_alive_s=10))
        app = app_sending(25, chunk(TOKEN), 9, chunk(TOKEN), 25, chunk(TOKEN), chunk(DONE), chunk(b"", False))
        await client.answer.run(app, SCOPE, client.receive)
        assert client.chunks == [
            (25, TOKEN),
            (34, TOKEN),
            (44, KEEP_ALIVE),
            (54, KEEP_ALIVE),
            (59, TOKEN),
            (59, DONE),
            (59, b""),
        ]

    run(main())


def test_no_comment_comes_between_the_parts_of_an_event_or_into_other_answers() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(keep_alive_s=10))
        half = len(TOKEN) // 2
        app = app_sending(chunk(TOKEN), chunk(TOKEN[:half]), 25, chunk(TOKEN[half:]), chunk(b"", False))
        await client.answer.run(app, SCOPE, client.receive)
        assert client.body == TOKEN * 2
        client = Client(deadlines=DeadlinesConfig(keep_alive_s=10))
        await client.answer.run(app_sending(chunk(b"{"), 25, chunk(b"}", False), headers=JSON), SCOPE, client.receive)
        assert client.body == b"{}"

    run(main())


class Engine:
    """An app as vLLM builds it: the work is in a task of its own that only a disconnect ends."""

    def __init__(self, *steps: Message | float) -> None:
        self.steps = steps
        self.aborted_at: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        work = asyncio.create_task(self._work(send))
        disconnect = asyncio.create_task(self._disconnect(receive))
        _, pending = await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    async def _work(self, send: Send) -> None:
        try:
            await app_sending(*self.steps)(SCOPE, self._never, send)
        except asyncio.CancelledError:
            self.aborted_at = now()
            raise

    async def _disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _never(self) -> Message:
        raise AssertionError


async def run_with(client: Client, engine: Engine, dispatched: float | None = 0) -> None:
    client.progress.dispatched = dispatched
    await client.answer.run(engine, SCOPE, client.receive)


def test_a_first_token_that_is_too_late_is_504() -> None:
    async def main() -> None:
        client, engine = Client(deadlines=DeadlinesConfig(first_token_s=60)), Engine(1000)
        await run_with(client, engine, dispatched=15)
        assert (now(), client.status, client.ended, engine.aborted_at) == (75, 504, True, 75)
        assert client.body == timeout_body("The first token", 60)
        assert client.headers[b"x-should-retry"] == b"false"

    run(main())


def test_time_before_the_dispatch_does_not_count_for_the_first_token() -> None:
    async def main() -> None:
        client, engine = Client(deadlines=DeadlinesConfig(first_token_s=60, total_s=300)), Engine(1000)
        await run_with(client, engine, dispatched=None)
        assert (now(), client.status, engine.aborted_at) == (300, 504, 300)
        assert client.body == timeout_body("The request", 300)

    run(main())


def test_a_stream_that_stalls_ends_in_an_error_event() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(between_tokens_s=40, keep_alive_s=30))
        engine = Engine(5, chunk(TOKEN), 20, chunk(TOKEN), 1000)
        await run_with(client, engine)
        assert client.chunks == [
            (5, TOKEN),
            (25, TOKEN),
            (55, KEEP_ALIVE),
            (65, b"data: " + timeout_body("The next token", 40) + b"\n\n"),
        ]
        assert (client.ended, engine.aborted_at) == (False, 65)

    run(main())


def test_tokens_that_are_not_sent_yet_keep_an_answer_alive() -> None:
    async def main() -> None:
        for headers in (SSE, JSON):
            client = Client(deadlines=DeadlinesConfig(between_tokens_s=40, first_token_s=40))
            client.progress.dispatched = now()

            def token(progress: Progress = client.progress) -> None:
                progress.token = now()

            app = app_sending(30, token, 30, token, 30, token, chunk(TOKEN, False), headers=headers)
            await client.answer.run(app, SCOPE, client.receive)
            assert (client.status, client.body, client.ended) == (200, TOKEN, True)

    run(main())


def test_tokens_that_stop_end_an_answer_that_is_not_streamed() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(between_tokens_s=40))
        client.progress.token = 10.0
        engine = Engine(1000)
        await run_with(client, engine)
        assert (now(), client.status, engine.aborted_at) == (50, 504, 50)
        assert client.body == timeout_body("The next token", 40)

    run(main())


def test_the_whole_request_has_a_deadline() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(total_s=100, keep_alive_s=0))
        engine = Engine(*[step for _ in range(20) for step in (30, chunk(TOKEN))])
        await run_with(client, engine)
        assert client.body == TOKEN * 3 + b"data: " + timeout_body("The request", 100) + b"\n\n"
        assert (now(), client.ended, engine.aborted_at) == (100, False, 100)

    run(main())


def test_a_client_that_reads_nothing_is_given_up() -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(write_stall_s=30))
        engine = Engine(chunk(TOKEN), 1, chunk(TOKEN), 1000)
        asyncio.get_running_loop().call_at(0.5, client.reads.clear)
        await run_with(client, engine)
        assert (now(), client.body, client.ended, engine.aborted_at) == (31, TOKEN, False, 31)
        assert client.answer.error is not None
        assert str(client.answer.error) == "Sending to the client took longer than 30 seconds."

    run(main())


def test_zero_switches_a_deadline_off() -> None:
    async def main() -> None:
        off = DeadlinesConfig(first_token_s=0, between_tokens_s=0, total_s=0, write_stall_s=0, keep_alive_s=0)
        client = Client(deadlines=off)
        await run_with(client, Engine(5000, chunk(TOKEN), 5000, chunk(DONE), chunk(b"", False)))
        assert (client.chunks, client.ended) == ([(5000, TOKEN), (10000, DONE), (10000, b"")], True)

    run(main())


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("how", ["disconnect", "cancel"])
def test_a_client_that_leaves_stops_the_engine_and_gets_nothing(how: str, started: bool) -> None:
    async def main() -> None:
        client = Client()
        engine = Engine(*([chunk(TOKEN)] if started else []), 30, chunk(TOKEN), 1000)
        task = asyncio.create_task(run_with(client, engine))
        asyncio.get_running_loop().call_at(9, client.left.set if how == "disconnect" else task.cancel)
        await asyncio.wait((task,))
        assert task.cancelled() == (how == "cancel")
        assert (engine.aborted_at, client.body, client.ended) == (9, TOKEN if started else b"", False)
        assert (client.answer.status, client.answer.error) == (200 if started else 499, None)

    run(main())


def test_an_app_that_ignores_the_disconnect_is_cancelled() -> None:
    cancelled: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(now())
            raise

    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(total_s=10))
        await client.answer.run(app, SCOPE, client.receive)
        await asyncio.sleep(0)
        assert (client.status, cancelled) == (504, [11])

    run(main())


def error_of(status: int, message: str, param: str | None = None, kind: str = "BadRequestError") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()


TRANSLATIONS: list[tuple[int, bytes, int, str | None, str, str | None]] = [
    (
        400,
        error_of(
            400,
            "This model's maximum context length is 128 tokens. However, you requested 300 output tokens and your"
            " prompt contains at least 10 input tokens. Please reduce the length of the input prompt or the number of"
            " requested output tokens. (parameter=input_tokens, value=SECRET PROMPT)",
            "input_tokens",
        ),
        400,
        "context_length_exceeded",
        "This model's maximum context length is 128 tokens. However, you requested 300 output tokens and your prompt"
        " contains at least 10 input tokens. Please reduce the length of the input prompt or the number of requested"
        " output tokens.",
        "input_tokens",
    ),
    (
        400,
        error_of(
            400,
            "The decoder prompt (length 200) is longer than the maximum model length of 128. Make sure that"
            " `max_model_len` is no smaller than the number of text tokens.",
        ),
        400,
        "context_length_exceeded",
        "The decoder prompt (length 200) is longer than the maximum model length of 128.",
        None,
    ),
    (
        400,
        error_of(
            400,
            "2 validation errors:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input':"
            " {'x': 'SECRET'}}\n  {'type': 'int_parsing', 'loc': 'body.n', 'msg': \"Can't be text\", 'input': 'SECRET',"
            " 'url': 'x'}",
            "body.messages",
            "Bad Request",
        ),
        400,
        "invalid_value",
        "messages: Field required; n: Can't be text",
        "messages",
    ),
    (
        400,
        error_of(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        400,
        "invalid_value",
        "The model cannot take this request.",
        None,
    ),
    (
        400,
        error_of(400, "Bad image. See File /opt/venv/lib/x.py for VLLM_IMAGE_FETCH_TIMEOUT. Send a PNG."),
        400,
        "invalid_value",
        "Bad image. Send a PNG.",
        None,
    ),
    (
        400,
        error_of(400, "render() got an unexpected keyword argument"),
        400,
        "invalid_value",
        "The model cannot take this request.",
        None,
    ),
    (400, error_of(400, "x" * 900), 400, "invalid_value", "x" * 500 + "…", None),
    (404, error_of(404, "No such thing."), 404, "not_found", "No such thing.", None),
    (409, error_of(409, "Busy."), 400, "invalid_value", "Busy.", None),
    (422, error_of(422, "Image not readable.", "image_url"), 422, "invalid_value", "Image not readable.", "image_url"),
    (
        501,
        error_of(501, "The model does not support Chat Completions API"),
        404,
        "task_not_supported",
        "The model does not support this request.",
        "model",
    ),
    (
        503,
        error_of(503, "The engine has reached its prefill token backlog limit."),
        503,
        "server_is_overloaded",
        "The model has no free place for this request. Try again in 1 seconds.",
        None,
    ),
    (
        500,
        error_of(500, "CUDA out of memory"),
        500,
        "internal_error",
        "The request failed inside the service (r1).",
        None,
    ),
    (502, b"<html>", 500, "internal_error", "The request failed inside the service (r1).", None),
    (400, b'{"detail":"SECRET"}', 400, "invalid_value", "The model cannot take this request.", None),
    (405, b'{"error":{"message":null}}', 400, "invalid_value", "The model cannot take this request.", None),
]


@pytest.mark.parametrize("case", TRANSLATIONS)
def test_an_error_of_vllm_becomes_one_of_ours(case: tuple[int, bytes, int, str | None, str, str | None]) -> None:
    status, body, ours, code, message, param = case

    async def main() -> None:
        client = Client()
        await client.answer.run(app_answering(status, body), SCOPE, client.receive)
        error = json.loads(client.body)["error"]
        assert (client.status, error["code"], error["message"], error["param"]) == (ours, code, message, param)
        assert client.headers[b"content-length"] == str(len(client.body)).encode()
        client = Client(style="anthropic")
        await client.answer.run(app_answering(status, body), SCOPE, client.receive)
        answer = json.loads(client.body)
        assert (client.status, set(answer), answer["type"]) == (ours, {"type", "error"}, "error")
        assert answer["error"]["message"] == message

    run(main())


def test_the_status_in_a_first_error_event_counts() -> None:
    async def main() -> None:
        client = Client()
        frame = b"data: " + error_of(400, "Conversation roles must alternate.") + b"\n\n"
        await client.answer.run(app_sending(chunk(frame), chunk(DONE), chunk(b"", False)), SCOPE, client.receive)
        assert client.status == 400
        assert json.loads(client.body)["error"]["message"] == "Conversation roles must alternate."

    run(main())


def test_an_error_event_does_not_wait_for_a_client_that_reads_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        client = Client(deadlines=DeadlinesConfig(write_stall_s=30))
        await client.answer.run(
            app_sending(chunk(TOKEN), 1, client.reads.clear, chunk(CANNOT_SEE), chunk(DONE)), SCOPE, client.receive
        )
        assert (now(), client.body) == (31, TOKEN)

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.getMessage() for record in caplog.records] == ["request r1: the client reads nothing"]
