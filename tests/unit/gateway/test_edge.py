"""What a request loses and gets before Serve sees it."""

import json
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http import auto

from serve_app.gateway.connection import Connection
from serve_app.gateway.edge import Edge, middlewares
from serve_app.gateway.errors import Overloaded
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import send_error

STEERING = [
    (b"x-request-id", b"mine"),
    (b"x-request-timeout-seconds", b"0"),
    (b"x-request-disconnect-disabled", b"?1"),
    (b"serve_multiplexed_model_id", b"other"),
    (b"serve-multiplexed-model-id", b"other"),
    (b"x-session-id", b"one"),
    (b"x-serve-router-replica", b"r"),
]


async def nothing(*_: object) -> Any:
    return None


async def unreached(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("Serve has seen it")


async def headers_after(scope: Scope) -> list[tuple[bytes, bytes]]:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    await Edge(app)(scope, nothing, nothing)
    headers: list[tuple[bytes, bytes]] = seen[0]["headers"]
    return headers


async def test_headers_that_steer_serve_are_gone_and_the_id_is_ours() -> None:
    kept = [(b"authorization", b"Bearer k"), (b"content-type", b"application/json")]
    headers = await headers_after({"type": "http", "path": "/", "headers": [*STEERING, *kept]})
    assert headers[:-1] == kept
    name, value = headers[-1]
    assert name == b"x-request-id"
    assert len(value) == 32
    assert value != b"mine"


async def test_each_request_has_an_id_of_its_own() -> None:
    first, second = [await headers_after({"type": "http", "path": "/", "headers": []}) for _ in range(2)]
    assert first != second


async def answer_of(app: ASGIApp, *headers: tuple[bytes, bytes], path: str = "/", **settings: Any) -> Message:
    """The start of the answer that an app of Serve's comes to, with its whole body."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers), "client": ("10.9.9.9", 5)}
    await Edge(app, **settings)(scope, nothing, send)
    start, *bodies = sent
    return {**start, "headers": dict(start["headers"]), "body": b"".join(body["body"] for body in bodies)}


def saying(status: int, *parts: bytes) -> ASGIApp:
    """An app that answers as Serve does, in plain text."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % sum(map(len, parts)))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": part is not parts[-1]})

    return serve


async def test_serves_list_of_applications_is_no_route() -> None:
    answer = await answer_of(unreached, path="/-/routes")
    assert answer["status"] == 404
    assert len(answer["headers"][b"x-request-id"]) == 32
    assert answer["headers"][b"x-content-type-options"] == b"nosniff"
    assert json.loads(answer["body"])["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("serves", "status", "code"),
    [
        (404, 503, "gateway_unavailable"),
        (408, 504, "timeout"),
        (429, 503, "gateway_unavailable"),
        (503, 503, "gateway_unavailable"),
        (500, 500, "internal_error"),
        (502, 500, "internal_error"),
    ],
)
async def test_an_error_of_serves_own_gets_the_shape_of_all_errors(serves: int, status: int, code: str) -> None:
    """404: Serve has no application yet; 429, 503: too many requests, or a gateway that is being drained."""
    answer = await answer_of(saying(serves, b"Path '/x' not found. ", b"Ping http://.../-/routes"))
    headers = answer["headers"]
    assert (answer["status"], json.loads(answer["body"])["error"]["code"]) == (status, code)
    assert b"/x" not in answer["body"]
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(answer["body"])
    assert len(headers[b"x-request-id"]) == 32
    assert headers[b"referrer-policy"] == b"no-referrer"


async def test_errors_are_those_of_the_routes_clients() -> None:
    answer = await answer_of(saying(503, b"Draining"), path="/v1/messages")
    assert json.loads(answer["body"])["error"]["type"] == "overloaded_error"


async def test_what_serve_says_that_is_no_error_gets_our_headers() -> None:
    answer = await answer_of(saying(200, b"success"), path="/-/healthz")
    assert (answer["status"], answer["body"]) == (200, b"success")
    assert answer["headers"][b"content-type"] == b"text/plain"
    assert answer["headers"][b"x-content-type-options"] == b"nosniff"


async def test_an_answer_of_the_gateway_is_left_as_it_is() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(Overloaded(7), send, COMMON)

    answer = await answer_of(refusing)
    assert answer["status"] == 503
    assert answer["headers"][b"retry-after"] == b"7"
    assert json.loads(answer["body"])["error"]["code"] == "server_is_overloaded"


async def test_an_app_that_says_nothing_has_failed() -> None:
    """Serve answers nothing where the gateway has died."""
    answer = await answer_of(nothing)
    error = json.loads(answer["body"])["error"]
    assert (answer["status"], error["code"]) == (500, "internal_error")
    assert answer["headers"][b"x-request-id"].decode() in error["message"]


async def test_an_app_that_raises_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("plum")

    with caplog.at_level(logging.ERROR, "ray.serve"):
        answer = await answer_of(raising)
    assert answer["status"] == 500
    assert b"plum" not in answer["body"]
    assert answer["headers"][b"x-request-id"].decode() in caplog.text


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await answer_of(raising)


async def test_pages_may_read_serves_errors_too() -> None:
    page = b"https://chat.example.com"
    for app, path in ((saying(503, b"Draining"), "/"), (unreached, "/-/routes")):
        for origin, allowed in ((page, page), (b"https://example.com", None)):
            answer = await answer_of(app, (b"origin", origin), path=path, origins=frozenset({page}))
            assert answer["headers"].get(b"access-control-allow-origin") == allowed
            assert answer["headers"][b"vary"] == b"Origin"


@pytest.mark.parametrize(
    ("forwarded", "proxies", "client"),
    [
        ([b"1.2.3.4"], "", "1.2.3.4"),
        ([b"6.6.6.6", b"1.2.3.4"], "", "1.2.3.4"),
        ([b"6.6.6.6, 7.7.7.7", b"1.2.3.4"], "", "1.2.3.4"),
        ([b"127.0.0.1", b"1.2.3.4"], "", "1.2.3.4"),
        ([b"6.6.6.6", b"::1"], "", "::1"),
        ([b"6.6.6.6, 7.7.7.7", b"10.0.0.8"], "10.0.0.0/24", "7.7.7.7"),
        ([b"6.6.6.6, 7.7.7.7, 10.0.0.9", b"10.0.0.8"], "10.0.0.0/24", "7.7.7.7"),
        ([b"6.6.6.6", b"10.0.1.8"], "10.0.0.0/24", "10.0.1.8"),
        ([], "", "10.9.9.9"),
        ([b"6.6.6.6"], None, "10.9.9.9"),
    ],
)
async def test_clients_are_known_by_the_address_that_no_client_chooses(
    forwarded: list[bytes], proxies: str | None, client: str
) -> None:
    """Behind HAProxy by the last header, which HAProxy adds; beyond it by the proxies that the operator trusts."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    await answer_of(app, *((b"x-forwarded-for", value) for value in forwarded), proxies=proxies)
    assert seen[0]["client"][0] == client


def test_serves_callback_gives_the_edge_and_believes_no_forwarded_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)  # put back afterwards
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    monkeypatch.setenv("CORS_ORIGINS", "*")  # with which the application does not start
    assert [middleware.cls for middleware in middlewares()] == [Edge]
    assert Config(nothing).forwarded_allow_ips == ""
    assert auto.AutoHTTPProtocol is Connection
