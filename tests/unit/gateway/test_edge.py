"""What a request loses and gets before Serve sees it."""

from starlette.types import Receive, Scope, Send

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


async def headers_after(scope: Scope) -> list[tuple[bytes, bytes]]:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: object) -> dict[str, str]:
        return {}

    await Edge(app)(scope, nothing, nothing)
    headers: list[tuple[bytes, bytes]] = seen[0]["headers"]
    return headers


async def test_headers_that_steer_serve_are_gone_and_the_id_is_ours() -> None:
    kept = [(b"authorization", b"Bearer k"), (b"content-type", b"application/json")]
    headers = await headers_after({"type": "http", "headers": [*STEERING, *kept]})
    assert headers[:-1] == kept
    name, value = headers[-1]
    assert name == b"x-request-id"
    assert len(value) == 32
    assert value != b"mine"


async def test_each_request_has_an_id_of_its_own() -> None:
    first, second = [await headers_after({"type": "http", "headers": []}) for _ in range(2)]
    assert first != second


def test_serves_callback_gives_the_edge_alone() -> None:
    assert [middleware.cls for middleware in middlewares()] == [Edge]
