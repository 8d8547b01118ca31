"""Requests that wait for a model to load, and those that another model answers. In virtual time."""

import asyncio

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.deadlines import DeadlinesConfig
from serve_app.gateway.errors import BadRequest, GatewayError, ModelFailed, ModelLoading, Overloaded
from tests.unit.gateway.test_response import (
    DONE,
    KEEP_ALIVE,
    SCOPE,
    SSE,
    TOKEN,
    Client,
    app_answering,
    app_sending,
    chunk,
)
from tests.virtual_time import run

ROLE = b'data: {"delta":{"role":"assistant"}}\n\n'


def client(*, streams: bool = True, deadline: float | None = None, deadlines: DeadlinesConfig | None = None) -> Client:
    """Whose model has no replica yet."""
    made = Client(streams=streams, deadlines=deadlines)
    made.progress.begun, made.progress.loading, made.progress.deadline = False, True, deadline
    return made


def loaded_after(waiting: Client, seconds: float, app: ASGIApp) -> ASGIApp:
    """An app whose model loads for so long."""

    async def loading(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        waiting.progress.loading, waiting.progress.begun = False, True
        await app(scope, receive, send)

    return loading


def test_a_stream_is_kept_alive_while_its_model_loads() -> None:
    async def main() -> None:
        waiting = client()
        app = app_sending(chunk(ROLE), chunk(TOKEN), chunk(DONE), chunk(b"", False))
        await waiting.answer.run(loaded_after(waiting, 35, app), SCOPE, waiting.receive)
        assert (waiting.status, waiting.headers[b"content-type"]) == (200, SSE[0][1])
        comments = [(10, KEEP_ALIVE), (20, KEEP_ALIVE), (30, KEEP_ALIVE)]
        assert waiting.chunks == [*comments, (35, ROLE), (35, TOKEN), (35, DONE), (35, b"")]
        assert (waiting.answer.status, waiting.answer.error, waiting.ended) == (200, None, True)

    run(main())


def test_an_answer_without_a_stream_waits_in_silence() -> None:
    async def main() -> None:
        waiting = client(streams=False)
        await waiting.answer.run(loaded_after(waiting, 35, app_answering(200, b"{}")), SCOPE, waiting.receive)
        assert (waiting.status, waiting.chunks) == (200, [(35, b"{}")])

    run(main())


def test_a_model_that_loads_soon_leaves_a_failure_its_status() -> None:
    async def main() -> None:
        waiting = client()
        refused = app_answering(400, b'{"error": {"message": "No.", "param": "stop", "code": 400}}')
        await waiting.answer.run(loaded_after(waiting, 9, refused), SCOPE, waiting.receive)
        assert (waiting.status, waiting.ended) == (400, True)

    run(main())


def test_a_failure_after_a_comment_is_an_error_event_and_no_end() -> None:
    async def main() -> None:
        waiting = client()
        refused = app_answering(400, b'{"error": {"message": "No.", "param": "stop", "code": 400}}')
        await waiting.answer.run(loaded_after(waiting, 11, refused), SCOPE, waiting.receive)
        error = b'{"error":{"message":"No.","type":"invalid_request_error","param":"stop","code":"invalid_value"}}'
        assert waiting.chunks == [(10, KEEP_ALIVE), (11, b"data: " + error + b"\n\n")]
        assert (waiting.status, waiting.ended) == (200, False)

    run(main())


@pytest.mark.parametrize(("streams", "status"), [(False, 503), (True, 503)])
def test_who_cannot_wait_for_the_model_is_told_when_it_must_be(streams: bool, status: int) -> None:
    async def main() -> None:
        waiting = client(streams=streams, deadline=8.0)
        await waiting.answer.run(loaded_after(waiting, 60, app_answering(200, b"{}")), SCOPE, waiting.receive)
        assert (waiting.status, waiting.headers[b"retry-after"]) == (status, b"10")
        assert waiting.answer.error is not None
        assert waiting.answer.error.code == "model_loading"
        assert [when for when, _ in waiting.chunks] == [8]

    run(main())


def test_the_deadline_of_the_whole_request_ends_the_wait() -> None:
    async def main() -> None:
        waiting = client(deadlines=DeadlinesConfig(total_s=25))
        await waiting.answer.run(loaded_after(waiting, 60, app_answering(200, b"{}")), SCOPE, waiting.receive)
        assert [when for when, _ in waiting.chunks] == [10, 20, 25]
        assert waiting.answer.error is not None
        assert waiting.answer.error.code == "timeout"

    run(main())


def test_the_other_deadlines_begin_when_the_model_is_there() -> None:
    async def main() -> None:
        waiting = client(deadlines=DeadlinesConfig(first_token_s=5, between_tokens_s=5))
        app = app_sending(chunk(ROLE), 3, chunk(TOKEN), chunk(DONE), chunk(b"", False))
        await waiting.answer.run(loaded_after(waiting, 100, app), SCOPE, waiting.receive)
        assert waiting.ended

    run(main())


def test_a_model_that_falls_asleep_over_a_request_keeps_its_stream_alive_and_its_deadline() -> None:
    async def main() -> None:
        waiting = client(deadline=28.0)
        waiting.progress.loading = False  # the gateway has not heard yet

        async def asleep(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(12)
            waiting.progress.loading = True
            await asyncio.sleep(600)

        await waiting.answer.run(asleep, SCOPE, waiting.receive)
        assert [when for when, _ in waiting.chunks] == [20, 28]
        assert waiting.answer.error is not None
        assert waiting.answer.error.code == "model_loading"

    run(main())


def test_a_client_that_leaves_while_the_model_loads_is_let_go() -> None:
    async def main() -> None:
        waiting = client()
        app = loaded_after(waiting, 60, app_answering(200, b"{}"))
        answering = asyncio.create_task(waiting.answer.run(received_first(app), SCOPE, waiting.receive))
        await asyncio.sleep(15)
        waiting.left.set()
        await answering
        assert (waiting.answer.client_left, waiting.chunks) == (True, [(10, KEEP_ALIVE)])

    run(main())


def received_first(app: ASGIApp) -> ASGIApp:
    """An app that looks out for the client's leaving all along, as vLLM's do."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        answering = asyncio.ensure_future(app(scope, receive, send))
        message: Message = await receive()
        assert message["type"] == "http.disconnect"
        answering.cancel()

    return watched


@pytest.mark.parametrize("error", [Overloaded(3), ModelLoading("m"), ModelFailed("m")])
def test_a_client_is_not_told_of_what_another_model_can_answer(error: GatewayError) -> None:
    async def main() -> None:
        moved = Client(elsewhere=lambda error: error.status == 503)
        moved.refusal = error
        await moved.answer.run(app_answering(500, b"{}"), SCOPE, moved.receive)
        assert moved.answer.is_for_others
        assert (moved.status, moved.chunks, moved.chunks_at_end) == (None, [], [])

    run(main())


def test_a_client_is_told_of_what_no_other_model_can_answer_or_once_it_has_been_sent_something() -> None:
    async def main() -> None:
        wrong = Client(elsewhere=lambda error: error.status == 503)
        wrong.refusal = BadRequest("No.")
        await wrong.answer.run(app_answering(400, b"{}"), SCOPE, wrong.receive)
        assert (wrong.answer.is_for_others, wrong.status) == (False, 400)
        begun = Client(elsewhere=lambda error: True)
        app = app_sending(chunk(TOKEN), lambda: begun.answer.fail(Overloaded(3)))
        await begun.answer.run(app, SCOPE, begun.receive)
        assert (begun.answer.is_for_others, begun.status, begun.ended) == (False, 200, False)
        assert b"server_is_overloaded" in begun.body

    run(main())
