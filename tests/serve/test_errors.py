"""Keys, scopes, headers and failures: what is refused, how it is said, and never a word of the request."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from cli.keys_file import editing
from tests.serve.raw_http import exchange, head
from tests.serve.refusals import CHAT, MARK, PATH, assert_ours, chat, content, post, refusal
from tests.service import Service, wait_for


@pytest.fixture
def ended(service: Service) -> dict[str, str]:
    """A key that has expired, and one that is revoked."""
    keys = {name: service.new_key(name) for name in ("expired", "revoked")}
    past = datetime(2026, 1, 1, tzinfo=UTC)
    changes: dict[str, dict[str, Any]] = {"expired": {"expires": past}, "revoked": {"revoked": past}}
    with editing(service.keys_file) as records:
        records[:] = [record.model_copy(update=changes.get(record.name, {})) for record in records]
    wait_for(lambda: not any(map(service.takes, keys.values())), "the reading of the keys file", 2)
    return keys


def test_every_key_that_does_not_open_the_service_gets_the_same_answer(service: Service, ended: dict[str, str]) -> None:
    plain = service.keys["plain"]
    keys = [f"sk-{MARK}", plain[:-1], plain[:-1] + ("b" if plain[-1] == "a" else "a"), plain * 40, *ended.values()]
    sent: list[dict[str, str]] = [
        {},
        {"authorization": f"Basic {plain}"},
        {"authorization": plain},
        {"authorization": "Bearer"},
    ]
    sent += [{"authorization": f"Bearer {key}"} for key in keys] + [{"x-api-key": key} for key in keys]
    refused = [httpx.post(service.url + PATH, json=CHAT, headers=headers) for headers in sent]
    assert {refusal(response) for response in refused} == {(401, "invalid_api_key", None)}
    assert {response.headers["www-authenticate"] for response in refused} == {"Bearer"}
    assert len({response.content for response in refused}) == 1


def test_a_key_is_taken_from_either_header(service: Service) -> None:
    assert content(httpx.post(service.url + PATH, json=CHAT, headers={"x-api-key": service.keys["plain"]})) == "yes"
    assert content(chat(service, "plain")) == "yes"


def test_a_key_in_the_query_string_is_no_key(service: Service) -> None:
    for name in ("key", "api_key", "access_token"):
        response = httpx.post(service.url + PATH, json=CHAT, params={name: service.key})
        assert refusal(response) == (401, "invalid_api_key", None)
        assert service.key not in response.text


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_a_key_header_that_is_there_twice_is_refused(service: Service, name: str) -> None:
    value = f"Bearer {service.key}" if name == "authorization" else service.key
    request = head("GET", "/v1/models", f"{name}: {value}", f"{name}: {value}")
    assert refusal(exchange(service.url, request).response) == (400, "invalid_value", None)


def test_a_model_out_of_scope_is_as_absent_as_one_that_does_not_exist(service: Service) -> None:
    hidden, absent = chat(service, "scoped", model="narrow"), chat(service, "scoped", model="absent")
    assert refusal(hidden) == refusal(absent) == (404, "model_not_found", "model")
    assert hidden.text == absent.text.replace("absent", "narrow")
    headers = {"authorization": f"Bearer {service.keys['scoped']}"}
    listed = httpx.get(f"{service.url}/v1/models", headers=headers).json()
    assert [model["id"] for model in listed["data"]] == ["scripted"]


def test_an_endpoint_out_of_scope_is_forbidden(service: Service) -> None:
    assert refusal(post(service, b"{}", "/v1/embeddings", key="scoped")) == (403, "insufficient_scope", None)
    assert refusal(post(service, b"{}", "/v1/completions", key="scoped")) == (403, "insufficient_scope", None)
    assert content(chat(service, "scoped")) == "yes"


@pytest.mark.parametrize("key", ["plain", "scoped"])
def test_metrics_are_for_admins(service: Service, key: str) -> None:
    headers = {"authorization": f"Bearer {service.keys[key]}"}
    response = httpx.get(f"{service.url}/metrics", headers=headers)
    assert refusal(response) == (403, "insufficient_scope", None)


@pytest.mark.parametrize("given", ["mine", MARK, "x" * 200, "a b", "../../etc"])
def test_the_id_is_never_the_clients(service: Service, given: str) -> None:
    response = post(service, json.dumps(CHAT).encode(), x_request_id=given)
    assert content(response) == "yes"
    assert_ours(response)
    assert response.headers["x-request-id"] not in given
    assert given not in response.text


def test_headers_that_would_steer_serve_or_vllm_do_nothing(service: Service) -> None:
    steering = {
        "x-vllm-priority": "-9",
        "x-data-parallel-rank": "7",
        "x-session-id": "mine",
        "serve_multiplexed_model_id": "other",
        "serve-multiplexed-model-id": "other",
        "x-request-timeout-seconds": "0.001",
        "x-request-disconnect-disabled": "?1",
        "x-serve-router-replica": "none",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-proto": "https",
        "forwarded": "for=10.0.0.1",
    }
    assert content(post(service, json.dumps(CHAT).encode(), **steering)) == "yes"


def test_no_page_of_another_origin_is_allowed(service: Service) -> None:
    page = {"origin": "https://example.com", "access-control-request-method": "POST"}
    for response in (
        httpx.options(service.url + PATH, headers=page),
        post(service, b"{}", origin="https://example.com"),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]
        assert_ours(response)


def test_a_deadline_must_be_a_number(service: Service) -> None:
    for given in ("0", "-1", "1.5", "soon", "86400001"):
        response = post(service, json.dumps(CHAT).encode(), x_request_deadline_ms=given)
        assert refusal(response) == (400, "invalid_value", "x-request-deadline-ms")


def test_a_failure_before_the_first_token_is_a_status(service: Service) -> None:
    for stream in (False, True):
        response = chat(service, messages=[{"role": "user", "content": f"{MARK} [[fail]]"}], stream=stream)
        assert refusal(response)[0] == 500


def test_a_failure_in_a_stream_is_its_last_event_and_the_body_has_no_end(service: Service) -> None:
    messages = [{"role": "user", "content": "[[answer: one two three four five]] [[fail after: 3]]"}]
    body = {"model": "scripted", "messages": messages, "stream": True}
    lines: list[str] = []
    with service.http.stream("POST", PATH, json=body) as response:
        assert response.headers.get_list("content-type") == ["text/event-stream; charset=utf-8"]
        assert response.headers["x-accel-buffering"] == "no"
        assert_ours(response)
        with pytest.raises(httpx.RemoteProtocolError):
            lines.extend(response.iter_lines())
    last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "upstream_failed"
    assert "data: [DONE]" not in lines


def test_anthropics_route_has_anthropics_errors(service: Service) -> None:
    response = post(service, b"{}", "/v1/messages")
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert_ours(response)
