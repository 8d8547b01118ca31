"""CORS and the headers of every answer, at ASGI level."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.gateway.cors import Cors, parse_origins
from serve_app.gateway.errors import NotFound, Overloaded
from serve_app.gateway.headers import COMMON, with_headers
from serve_app.gateway.replies import send_error
from serve_app.settings import ConfigError

ORIGIN = b"https://chat.example.com"
ORIGINS = frozenset({ORIGIN, b"http://localhost:3000"})


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(NotFound("No route."), send, [])


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a preflight reached the gateway")


async def ask(app: Cors, method: str = "POST", **headers: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the body was read")

    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": "/v1/models", "headers": pairs}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[0]["headers"], sent[1].get("body", b"")


async def preflight(origin: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return await ask(
        Cors(never, ORIGINS),
        "OPTIONS",
        origin=origin,
        access_control_request_method=b"POST",
        access_control_request_headers=b"authorization",
    )


async def test_a_preflight_of_a_known_origin_needs_no_key_and_no_work() -> None:
    status, headers, body = await preflight(ORIGIN)
    answer = dict(headers)
    assert (status, body, len(answer)) == (204, b"", len(headers))
    assert answer[b"access-control-allow-origin"] == ORIGIN
    assert answer[b"access-control-allow-methods"] == b"GET, POST"
    assert answer[b"access-control-max-age"] == b"600"
    assert answer[b"vary"] == b"Origin"
    assert b"access-control-allow-credentials" not in answer
    assert set(COMMON) <= set(headers)
    allowed = answer[b"access-control-allow-headers"].split(b", ")
    assert {b"authorization", b"content-type", b"x-api-key", b"x-request-id", b"anthropic-version"} <= set(allowed)
    assert b"x-stainless-retry-count" in allowed


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"https://chat.example.com.evil.example",
        b"https://chat.example.com:8443",
        b"http://chat.example.com",
        b"HTTPS://CHAT.EXAMPLE.COM",
        b"null",
        b"",
    ],
)
async def test_an_unknown_origin_gets_no_permission(origin: bytes) -> None:
    assert await preflight(origin) == (204, [*COMMON, (b"vary", b"Origin")], b"")
    status, headers, _ = await ask(Cors(refusing, ORIGINS), origin=origin)
    assert status == 404
    assert [pair for pair in headers if pair[0].startswith(b"access-control")] == []
    assert (b"vary", b"Origin") in headers


async def test_error_answers_carry_cors_headers() -> None:
    status, headers, body = await ask(Cors(refusing, ORIGINS), origin=b"http://localhost:3000")
    assert status == 404
    assert body.startswith(b'{"error":')
    assert headers.count((b"access-control-allow-origin", b"http://localhost:3000")) == 1
    assert headers.count((b"vary", b"Origin")) == 1
    exposed = dict(headers)[b"access-control-expose-headers"].split(b", ")
    assert {
        b"x-request-id",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
        b"x-ratelimit-remaining-tokens",
    } <= set(exposed)
    assert b"access-control-allow-methods" not in dict(headers)


async def test_answers_without_an_origin_vary_by_it_too() -> None:
    _, headers, _ = await ask(Cors(refusing, ORIGINS))
    assert (b"vary", b"Origin") in headers
    assert b"access-control-expose-headers" not in dict(headers)


async def test_options_that_is_no_preflight_goes_to_the_gateway() -> None:
    assert (await ask(Cors(refusing, ORIGINS), "OPTIONS", origin=ORIGIN))[0] == 404
    assert (await ask(Cors(refusing, ORIGINS), "OPTIONS", access_control_request_method=b"POST"))[0] == 404


async def test_it_is_off_without_origins() -> None:
    status, headers, _ = await ask(
        Cors(refusing, parse_origins("")), "OPTIONS", origin=ORIGIN, **{"access-control-request-method": b"POST"}
    )
    assert status == 404
    assert {name for name, _ in headers} == {b"content-type", b"content-length"}


def test_origins_are_read_exactly() -> None:
    text = " https://chat.example.com, http://localhost:3000,,http://[::1]:8080,app://desktop "
    assert parse_origins(text) == ORIGINS | {b"http://[::1]:8080", b"app://desktop"}
    assert parse_origins(" , ") == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "https://*.example.com",
        "https://a.example, *",
        "null",
        "chat.example.com",
        "https://chat.example.com/",
        "https://chat.example.com/path",
        "https://Chat.example.com",
        "https://user@chat.example.com",
        "https://chat.example.com:443",
        "http://chat.example.com:80",
        "https://a.example https://b.example",
        "https://a.example'",
    ],
)
def test_what_is_no_exact_origin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CORS_ORIGINS: "):
        parse_origins(text)


async def answered(headers: list[tuple[bytes, bytes]], limits: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    wrapped = with_headers(send, lambda: limits)
    await wrapped({"type": "http.response.start", "status": 200, "headers": headers})
    await wrapped({"type": "http.response.body", "body": b"x", "more_body": True})
    assert sent[1] == {"type": "http.response.body", "body": b"x", "more_body": True}
    answer: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return answer


OURS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]


async def test_every_answer_has_the_services_headers_and_not_vllms() -> None:
    limits = [(b"x-ratelimit-limit-requests", b"60")]
    theirs = [
        (b"content-type", b"application/json"),
        (b"X-Request-Id", b"vllm"),
        (b"Server", b"uvicorn"),
        (b"date", b"today"),
        (b"cache-control", b"public"),
        (b"content-length", b"2"),
    ]
    assert await answered(theirs, limits) == [
        (b"content-type", b"application/json"),
        (b"content-length", b"2"),
        *OURS,
        *limits,
    ]


async def test_streams_ask_proxies_not_to_buffer() -> None:
    stream = (b"content-type", b"text/event-stream; charset=utf-8")
    assert await answered([stream], []) == [stream, *OURS, (b"x-accel-buffering", b"no")]


async def test_an_error_in_anthropics_shape() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await send_error(Overloaded(3), send, [], "anthropic")
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"]) == (503, b"3")
    assert sent[1]["body"] == (
        b'{"type":"error","error":{"type":"overloaded_error",'
        b'"message":"The model has no free place for this request. Try again in 3 seconds."}}'
    )
