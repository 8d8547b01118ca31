"""Attacks and mistakes, at a gateway's own port and through HAProxy: what is refused, how, and in bounded time."""

import itertools
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.gateway import connection
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.cors import parse_origins
from serve_app.gateway.haproxy import configure
from serve_app.ray_seam import Replicas
from tests.haproxy import haproxy, written_by_ray
from tests.serve.raw_http import exchange, head
from tests.serve.refusals import MARK, PATH, assert_ours, refusal
from tests.service import free_port, wait_for
from tests.unit.gateway.front_door import KEY, edge, gateway, listening, models_with
from tests.unit.gateway.server import parse

FAILURES = 5
PAGE = "https://chat.example.com"
CONFIG = GatewayConfig.model_validate({"keys": {"failures_per_minute": FAILURES}, "deadlines": {"body_s": 1}})
BEARER = f"authorization: Bearer {KEY}"
JSON = "content-type: application/json"
ROUTES = ["/api/healthz", "/metrics", "/v1/models", "/v1/models/x", "/api/usage", PATH, "/v1/responses", "/nowhere"]
LARGE = (431, "headers_too_large", None)


@pytest.fixture(scope="module", params=["direct", "haproxy"])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway. A head has 2 s here."""
    through = request.param == "haproxy"
    app = edge(gateway(models_with(Replicas()), CONFIG, PAGE), PAGE, "" if through else None)
    with pytest.MonkeyPatch.context() as patch, listening(app) as to:
        patch.setattr(connection, "READ_S", 2.0)
        if not through:
            yield f"http://127.0.0.1:{to}"
            return
        port = free_port()
        file = written_by_ray(tmp_path_factory.mktemp("haproxy"), port, to)
        ours = configure(file.read_text(), parse_origins(PAGE))
        file.write_text(ours.replace("timeout http-request 10s", "timeout http-request 2s"))
        with haproxy(file, port):
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: httpx.get(f"{url}/-/healthz").status_code == 200, "the gateway's being up")
            yield url


@pytest.mark.parametrize(
    ("query", "lines"),
    [
        ("", [f"x-{number}: {'x' * 1000}" for number in range(17)]),
        ("", [f"x: {'x' * 60_000}"]),
        ("", ["x: y"] * 200),
        ("?x=" + "x" * 17_000, []),
    ],
    ids=["headers", "a header", "many headers", "the target"],
)
def test_a_head_that_is_too_large_is_refused_on_every_route(door: str, query: str, lines: list[str]) -> None:
    for method, path in itertools.product(("GET", "POST"), ROUTES):
        answer = exchange(door, head(method, path + query, BEARER, "content-length: 0", *lines))
        assert refusal(answer.response) == LARGE


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        head("GET", "/v1/models", host=""),
        head("GET", "http://service/v1/models"),
        head("GET", "v1/models"),
        head("OPTIONS", "*"),
        head("CONNECT", "service:443", host="service:443"),
        head("BREW", "/v1/models"),
    ],
    ids=lambda request: repr(request[:60]),
)
def test_what_is_not_http_as_it_should_be_has_the_shape_of_all_errors(door: str, request_: bytes) -> None:
    assert refusal(exchange(door, request_).response) == (400, "invalid_value", None)


@pytest.mark.parametrize(
    "request_",
    [
        head("GET", "/v1/models", "host: other"),
        head("GET", "http://other/v1/models"),
        head("GET", "/v1/models", host="a b"),
        head("GET", "/v1/models", host="a/../b"),
        head("POST", PATH, "content-length: 5", "content-length: 6") + b"{}",
        head("POST", PATH, BEARER, JSON, "transfer-encoding: chunked") + b"zz\r\n",
        head("GET", "/v1/models", "x a: b"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda request: repr(request[:60]),
)
def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(door: str, request_: bytes) -> None:
    answer = exchange(door, request_)
    assert (answer.response.status_code, answer.closed) == (400, True)


def test_a_head_without_end_is_refused(door: str) -> None:
    """HAProxy answers it with its own page."""
    assert exchange(door, head("GET", "/v1/models", f"x: {'x' * 500_000}")).response.status_code in {400, 431}


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods(door: str, method: str) -> None:
    response = exchange(door, head(method, PATH, BEARER)).response
    assert refusal(response) == (405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(("path", "expected"), [("/v1/realtime", 404), (PATH, 405)])
def test_a_web_socket_is_not_opened(door: str, path: str, expected: int) -> None:
    given = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
    lines = (BEARER, "upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13", given)
    assert refusal(exchange(door, head("GET", path, *lines)).response)[0] == expected


def test_a_slow_head_ends_the_connection_and_is_no_408(door: str) -> None:
    answer = drip(door, b"GET /v1/models HTTP/1.1\r\nhost: service\r\n", b"x: y\r\n")
    assert not answer or refusal(parse(answer)) == (400, "request_timeout", None)


def test_a_connection_without_a_request_is_closed(door: str) -> None:
    assert drip(door, b"", b"") == b""


def test_a_slow_body_is_refused_and_the_connection_closed(door: str) -> None:
    answer = drip(door, head("POST", PATH, BEARER, JSON, "content-length: 9000"), b"x")
    response = parse(answer)
    assert refusal(response) == (400, "request_timeout", None)
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("lines", "expected"), [((), 401), ((BEARER, "content-type: text/plain"), 415)])
def test_who_is_refused_may_not_send_on_for_ever(door: str, lines: tuple[str, ...], expected: int) -> None:
    answer = drip(door, head("POST", PATH, *lines, "content-length: 9000000"), b"x" * 100)
    assert refusal(parse(answer))[0] == expected


@pytest.mark.parametrize("length", ["content-length: 1100000", "transfer-encoding: chunked"])
def test_a_body_that_is_too_large_is_refused_while_it_comes(door: str, length: str) -> None:
    chunk = b"19000\r\n" + b"x" * 0x19000 + b"\r\n" if "chunked" in length else b"x" * 100_000
    answer = exchange(door, head("POST", PATH, BEARER, JSON, length) + chunk * 11)
    assert refusal(answer.response) == (413, "request_too_large", None)


def test_guessing_keys_is_slowed_down_by_the_clients_true_address(door: str) -> None:
    with client(door, "127.0.0.11") as guessing, client(door, "127.0.0.12") as other:
        for number in range(FAILURES):
            answer = guess(guessing, x_forwarded_for=f"10.0.0.{number}, 10.1.0.{number}")
            assert refusal(answer) == (401, "invalid_api_key", None)
        for name, value in itertools.product(("x_forwarded_for", "forwarded"), ("10.0.0.99", "127.0.0.12", "", MARK)):
            answer = guess(guessing, **{name: value})
            assert refusal(answer) == (429, "invalid_api_key", None)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert refusal(guess(other, x_forwarded_for="127.0.0.11")) == (401, "invalid_api_key", None)
        assert guess(guessing, KEY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/v1/models", {}, 401),
        ("GET", "/nowhere", {"authorization": f"Bearer {KEY}"}, 404),
        ("GET", PATH, {"authorization": f"Bearer {KEY}"}, 405),
        ("POST", PATH, {"authorization": f"Bearer {KEY}", "content-type": "text/plain"}, 415),
        ("POST", PATH, {"authorization": f"Bearer {KEY}", "content-type": "application/json"}, 400),
        ("GET", "/v1/models", {"x": "x" * 20_000}, 431),
        ("GET", "/api/healthz", {}, 503),
        ("GET", "/-/routes", {}, 404),
        ("GET", "/-/healthz", {}, 200),
        ("OPTIONS", PATH, {"access-control-request-method": "POST"}, 204),
    ],
)
def test_every_answer_has_the_headers_for_browsers(
    door: str, method: str, path: str, headers: dict[str, str], expected: int
) -> None:
    with client(door) as browser:
        for origin in (PAGE, "https://example.com"):
            response = browser.request(method, path, headers={**headers, "origin": origin})
            assert response.status_code == expected
            assert_ours(response)
            assert response.headers.get("server") in {None, "uvicorn"}
            assert response.headers.get_list("access-control-allow-origin") == ([PAGE] if origin == PAGE else [])
            assert response.headers.get_list("vary") == ["Origin"]


def test_a_model_that_loads_is_refused_with_the_time_to_come_back(door: str) -> None:
    body = {"model": "m0", "messages": [{"role": "user", "content": MARK}]}
    response = httpx.post(door + PATH, json=body, headers={"authorization": f"Bearer {KEY}"})
    assert refusal(response) == (503, "model_loading", None)
    assert response.headers["retry-after"] == "10"


def client(url: str, address: str = "127.0.0.1") -> httpx.Client:
    """Connects from this address."""
    return httpx.Client(base_url=url, transport=httpx.HTTPTransport(local_address=address))


def guess(client: httpx.Client, key: str = "wrong", **headers: str) -> httpx.Response:
    """The answer to a request with this key."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get("/v1/models", headers={"authorization": f"Bearer {key}", **given})


def drip(url: str, start: bytes, piece: bytes) -> bytes:
    """All that is answered to a client that goes on sending pieces, until the connection is closed under it."""
    where, answer, deadline = urlsplit(url), b"", time.monotonic() + 20
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(start)
        connection.settimeout(0.02)
        while time.monotonic() < deadline:
            try:
                if not (data := connection.recv(65536)):
                    return answer
                answer += data
            except TimeoutError:
                pass
            except ConnectionError:
                return answer
            try:
                connection.sendall(piece)
            except OSError:
                return answer
    raise AssertionError(f"the connection is still open after {answer!r}")
