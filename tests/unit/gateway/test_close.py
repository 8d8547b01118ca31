"""How a failed stream ends on the wire: over a real uvicorn and a real socket."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gateway.deadlines import DeadlinesConfig
from serve_app.gateway.headers import with_headers
from serve_app.gateway.response import Answer
from tests.unit.gateway.progress import Progress
from tests.unit.gateway.server import ask, served
from tests.unit.gateway.test_response import CANNOT_SEE, DONE, FAILED, TOKEN, app_sending, chunk


def answering_with(vllm: ASGIApp) -> ASGIApp:
    """A gateway that answers every request with what this app sends."""

    async def nothing() -> None:
        return None

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        sending = with_headers(send)
        answer = Answer(sending, DeadlinesConfig(), Progress(), lambda: None, request_id="req-1", before_end=nothing)
        await answer.run(vllm, scope, receive)

    return gateway


def framed(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


async def test_a_failed_stream_is_cut_after_the_error_event() -> None:
    app = app_sending(chunk(TOKEN), chunk(CANNOT_SEE), chunk(DONE), chunk(b"", False))
    async with served(answering_with(app)) as port:
        answer = await ask(port, b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\ntransfer-encoding: chunked" in head
    assert b"\r\ncache-control: no-store\r\n" in head
    # No `0\r\n\r\n`: to HTTP the body is cut off, and no client takes it for a whole answer.
    assert body == framed(TOKEN) + framed(b"data: " + FAILED + b"\n\n")
