"""What a request loses and gets before Serve sees it."""

import json

from starlette.types import Message, Receive, Scope, Send

from serve_app.gateway.edge import Edge, middlewares

STEERING = [
    (b"x-request-id", b"mine"),
    (b"x-request-timeout-seconds", b"0"),
    (b"x-request-disconnect-disabled", b"?1"),
    (b"serve_multiplexed_model_id", b"other"),
    (b"serve-multiplexed-model-id", b"other"),
    (b"x-session-id", b"one"),
    (b"x-serve-router-replica", b"r"),
]


async def nothing(*_: object) -> dict[str, str]:
    return {}


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


async def test_serves_list_of_applications_is_no_route() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("Serve has seen it")

    await Edge(app)({"type": "http", "path": "/-/routes", "headers": []}, nothing, send)
    start, body = sent
    headers = dict(start["headers"])
    assert start["status"] == 404
    assert len(headers[b"x-request-id"]) == 32
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert json.loads(body["body"])["error"]["code"] == "not_found"


def test_serves_callback_gives_the_edge_alone() -> None:
    assert [middleware.cls for middleware in middlewares()] == [Edge]
