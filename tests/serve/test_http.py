"""Paths, methods and requests as bytes: what is not a request of ours is refused before it does anything."""

import json

import pytest

from tests.serve.raw_http import exchange, head
from tests.serve.refusals import CHAT, MARK, PATH, assert_ours, bearer, post, refusal
from tests.service import Service

NOWHERE = (404, "not_found", None)


@pytest.mark.parametrize(
    "path",
    [
        f"/{MARK}",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/version",
        "/load",
        "/ping",
        "/pause",
        "/sleep",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/server_info",
        "/v1/load_lora_adapter",
        "/v1/chat/completions/",
        "/v1/chat/completions/render",
        "/v1/responses/resp_1",
        "/inference/v1/generate",
        "//v1//models",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1/./models",
        "/v1%2fmodels",
        "/V1/models",
        "/v1/models;x=1",
        "/v1/models%00",
        "/metrics/",
        "/-/routes",
        "/api",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_other_path_is_the_same_404(service: Service, method: str, path: str) -> None:
    unknown = service.http.request(method, "/nowhere")
    response = exchange(service.url, head(method, path, bearer(service), "content-length: 0")).response
    assert refusal(response) == NOWHERE
    assert response.content == unknown.content


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *((method, PATH, "POST") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")),
        ("GET", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/scripted", "GET, HEAD"),
        ("POST", "/api/healthz", "GET, HEAD"),
        ("POST", "/api/usage", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("TRACE", "/v1/models", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_refused_with_the_right_ones(service: Service, method: str, path: str, allow: str) -> None:
    response = service.http.request(method, path)
    assert refusal(response) == (405, "method_not_allowed", None)
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/v1/models", "/api/healthz", "/nowhere"])
def test_head_has_no_body(service: Service, path: str) -> None:
    response = service.http.head(path)
    assert response.status_code == (404 if path == "/nowhere" else 200)
    assert response.content == b""
    assert_ours(response)


def test_a_web_socket_is_not_opened(service: Service) -> None:
    given = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
    lines = ("upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13", given)
    for path, status in (("/v1/realtime", 404), (PATH, 405)):
        assert refusal(exchange(service.url, head("GET", path, bearer(service), *lines)).response)[0] == status


@pytest.mark.parametrize(
    "request_",
    [
        head("POST", PATH, "content-length: 5", "content-length: 6") + b"{}",
        head("POST", PATH, "content-length: -1"),
        head("GET", "/v1/models", "host: other"),
        head("GET", "/v1/models", "x-a: b\rc"),
        head("GET", "/v1/models", "x-a: b\x00c"),
        head("GET", "/v1/models", "x a: b"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda request: repr(request[:60]),
)
def test_a_request_that_could_be_read_in_two_ways_is_refused_and_the_connection_closed(
    service: Service, request_: bytes
) -> None:
    answer = exchange(service.url, request_)
    assert (answer.response.status_code, answer.closed) == (400, True)


def test_what_is_not_http_as_it_should_be_is_refused_at_every_door(service: Service) -> None:
    for url in (service.url, service.gateways()[0].url):
        answer = exchange(url, b"GET /v1/models HTTP/1.1\r\n\r\n")
        assert refusal(answer.response) == (400, "invalid_value", None)


@pytest.mark.parametrize(
    "headers",
    [{f"x-{number}": "x" for number in range(93)}, {"x-large": "x" * 16_384}, {"x-large": "x" * 60_000}],
    ids=["101 with the client's own", "over the limit", "nearly all that HAProxy holds"],
)
def test_headers_that_are_too_many_or_too_large_are_refused(service: Service, headers: dict[str, str]) -> None:
    assert refusal(post(service, json.dumps(CHAT).encode(), **headers)) == (431, "headers_too_large", None)


def test_what_is_too_large_for_the_proxy_is_refused_there(service: Service) -> None:
    assert post(service, json.dumps(CHAT).encode(), x_large="x" * 70_000).status_code == 400


def test_a_body_with_two_lengths_is_read_by_its_chunks_and_ends_the_connection(service: Service) -> None:
    """What follows it is never taken for a request. Source: RFC 9112, 6.3."""
    smuggled = head("GET", "/v1/models", bearer(service))
    lines = (bearer(service), "content-type: application/json", "content-length: 5", "transfer-encoding: chunked")
    answer = exchange(service.url, head("POST", PATH, *lines) + b"0\r\n\r\n" + smuggled)
    assert refusal(answer.response) == (400, "invalid_json", None)
    assert answer.closed
