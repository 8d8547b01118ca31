"""A service that clients reach without a proxy, with short deadlines, a page that may call it, and a model that never
gets the CPUs that it asks for."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import demo
from tests.serve.raw_http import exchange
from tests.serve.refusals import CHAT, MARK, PATH, assert_ours, chat, content, post, refusal
from tests.serve.test_conformance import VERSIONS, play
from tests.service import Service, running_service
from tests.unit.policy.door import LEAST

PAGE = "https://chat.example.com"
FAILURES = 5
GATEWAY = {
    "keys": {"failures_per_minute": FAILURES},
    "deadlines": {"first_token_s": 8, "between_tokens_s": 3, "keep_alive_s": 0.5},
}


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    variables = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "CORS_ORIGINS": PAGE}
    models: list[dict[str, Any] | str] = [
        demo("scripted", engine="scripted"),
        demo("starting", engine="scripted", num_cpus=10_000),
    ]
    folder = tmp_path_factory.mktemp("direct")
    with running_service(folder, models, loading=["starting"], gateway=GATEWAY, variables=variables) as service:
        yield service


def said(directives: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"[[answer: one two three]] {directives}"}]}


@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/chat", "/tokenize"])
def test_a_model_that_is_starting_answers_503_at_once(direct: Service, path: str) -> None:
    response = direct.http.post(path, json={**LEAST[path], "model": "starting"})
    assert refusal(response) == (503, "model_loading", None)
    assert response.headers["retry-after"] == "10"


def test_health_tells_which_model_is_starting(direct: Service) -> None:
    response = httpx.get(f"{direct.url}/api/healthz")
    health = response.json()
    assert (response.status_code, health["status"]) == (200, "degraded")
    assert (health["model_loaded"], health["upstream_healthy"]) == (True, False)
    assert {model["id"]: (model["status"], model["replicas"]["running"]) for model in health["details"]["models"]} == {
        "scripted": ("ready", 1),
        "starting": ("loading", 0),
    }
    assert [model["id"] for model in direct.http.get("/v1/models").json()["data"]] == ["scripted", "starting"]


def test_a_first_token_that_comes_too_late_is_a_504_and_no_408(direct: Service) -> None:
    def late(stream: bool) -> httpx.Response:
        return chat(direct, **said("[[pace: 60000ms]]"), stream=stream)

    with ThreadPoolExecutor() as threads:
        for response in threads.map(late, [False, True]):
            assert refusal(response) == (504, "timeout", None)
            assert response.headers["x-should-retry"] == "false"


def test_no_client_tries_a_504_again(direct: Service) -> None:
    with ThreadPoolExecutor() as threads:
        seen = list(threads.map(lambda version: play(direct, version, {}, "late_answer"), VERSIONS))
    expected = {
        "class": "InternalServerError",
        "status": 504,
        "type": "server_error",
        "code": "timeout",
        "param": None,
        "id": True,
        "attempts": ["0"],
    }
    assert seen == [{"late_answer": expected}] * len(VERSIONS)


def test_a_stream_that_stalls_ends_in_an_error_and_without_its_end(direct: Service) -> None:
    lines: list[str] = []
    body = {**CHAT, **said("[[pace: 5000ms]]"), "stream": True}
    with direct.http.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            lines.extend(line for line in response.iter_lines() if line)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert "data: [DONE]" not in lines


def test_silence_in_a_stream_is_filled_with_comments(direct: Service) -> None:
    text = chat(direct, **said("[[pace: 2000ms]]"), max_tokens=2, stream=True).text
    assert "\n\n: keep-alive\n\n" in text
    assert text.endswith("data: [DONE]\n\n")


def test_a_page_may_call_and_read_every_answer(direct: Service) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = httpx.options(direct.url + PATH, headers=asked)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-methods"] == "GET, POST"
    assert "authorization" in preflight.headers["access-control-allow-headers"].split(", ")
    answers = [
        preflight,
        chat_from(direct, PAGE),
        httpx.post(direct.url + PATH, headers={"origin": PAGE, "content-type": "text/plain"}, content=b"{"),
        httpx.get(f"{direct.url}/nowhere", headers={"origin": PAGE, "authorization": f"Bearer {direct.key}"}),
    ]
    assert [answer.status_code for answer in answers] == [204, 200, 401, 404]
    for answer in answers:
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
        assert answer.headers.get_list("vary") == ["Origin"]
        assert "access-control-allow-credentials" not in answer.headers
    assert "x-ratelimit-remaining-tokens" in answers[1].headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://example.com", f"{PAGE}.example.org", "http://chat.example.com", "null"])
def test_another_page_may_not(direct: Service, origin: str) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    for answer in (httpx.options(direct.url + PATH, headers=asked), chat_from(direct, origin)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers.get_list("vary") == ["Origin"]


def chat_from(service: Service, origin: str) -> httpx.Response:
    return post(service, json.dumps(CHAT).encode(), origin=origin)


def test_headers_that_are_too_large_are_refused(direct: Service) -> None:
    headers = {f"x-{number}": "x" * 1000 for number in range(17)}
    assert refusal(post(direct, json.dumps(CHAT).encode(), **headers)) == (431, "headers_too_large", None)


def test_what_is_not_http_as_it_should_be_is_refused_here_too(direct: Service) -> None:
    answer = exchange(direct.url, b"GET /v1/models HTTP/1.1\r\n\r\n")
    assert (refusal(answer.response), answer.closed) == ((400, "invalid_value", None), True)


@pytest.mark.parametrize("given", ["mine", MARK])
def test_the_id_is_the_services_here_too(direct: Service, given: str) -> None:
    response = post(direct, json.dumps(CHAT).encode(), x_request_id=given)
    assert content(response) == "yes"
    assert_ours(response)


def test_guessing_keys_is_slowed_down_and_a_right_key_is_not(direct: Service) -> None:
    """The last test here: until the minute is over every wrong key gets this answer."""
    wrong = {"authorization": f"Bearer sk-{MARK}"}
    answers = (
        httpx.get(f"{direct.url}/v1/models", headers={**wrong, "x-forwarded-for": f"10.0.0.{number}"})
        for number in range(3 * FAILURES)
    )
    answer = next(answer for answer in answers if refusal(answer) != (401, "invalid_api_key", None))
    assert refusal(answer) == (429, "invalid_api_key", None)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-should-retry"] == "false"
    assert content(chat(direct)) == "yes"
