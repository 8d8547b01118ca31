"""Three generations of the `openai` client against the service; openai_client.py plays the scenarios."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve import openai_client
from tests.serve.openai_client import CALM, SCENARIOS
from tests.service import Service, wait_for

CLIENTS = Path(__file__).parents[2] / ".run" / "clients"
# What the old clients need beside what the newest has.
NEEDS = "distro==1.9.0"
VERSIONS = ["1.60.0", "2.20.0", openai.__version__]
ONCE = ["0"]


def install(version: str) -> Path:
    """The folder of that client alone, filled when it is first asked for."""
    folder = CLIENTS / f"openai-{version}"
    if not folder.exists():
        CLIENTS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CLIENTS) as scratch:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{scratch}/new"]
            done = subprocess.run([*command, f"openai=={version}", NEEDS], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"openai {version} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
            shutil.move(f"{scratch}/new", folder)
    return folder


def play(service: Service, version: str, keys: dict[str, str], *scenarios: str) -> dict[str, Any]:
    """What that version of the client saw of each scenario."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    if version != openai.__version__:
        environment["PYTHONPATH"] = str(install(version))
    done = subprocess.run(
        [sys.executable, openai_client.__file__, *scenarios],
        input=json.dumps({"url": service.url, "keys": {**service.keys, **keys, "admin": service.key}}),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module", params=VERSIONS)
def seen(service: Service, request: pytest.FixtureRequest) -> dict[str, Any]:
    """All scenarios that disturb nobody, played by one version with new keys."""
    version: str = request.param
    keys = {
        "single": service.new_key(f"single-{version}", "--concurrent", "1"),
        "limited": service.new_key(f"limited-{version}", "--rpm", "6", "--tpm", "600"),
    }
    played = play(service, version, keys, *SCENARIOS)
    assert played["version"] == version
    return played


def test_a_chat(seen: dict[str, Any]) -> None:
    assert seen["chat"] == {
        "object": "chat.completion",
        "model": "scripted",
        "role": "assistant",
        "content": "green tea",
        "finish": "stop",
        "usage": [23, 4, 27],
        "id": True,
    }


def test_a_stream(seen: dict[str, Any]) -> None:
    whole = {"text": "green tea", "finish": ["stop"], "ids": 1, "raised": None}
    assert seen["stream"] == {**whole, "usage": [[23, 4, 27]]}
    assert seen["stream_without_usage"] == {**whole, "usage": []}


def test_the_asynchronous_client(seen: dict[str, Any]) -> None:
    assert seen["asynchronous_streams"] == ["tea 0", "tea 1", "tea 2"]


def test_a_tool_call(seen: dict[str, Any]) -> None:
    assert seen["tool_call"] == {"finish": "tool_calls", "name": "look", "arguments": "{}"}


def test_a_completion(seen: dict[str, Any]) -> None:
    assert seen["completion"] == {"finish": "length", "tokens": 5}


def test_responses_where_the_client_has_them(seen: dict[str, Any]) -> None:
    assert seen["responses"] == (
        None
        if seen["version"] == "1.60.0"
        else {
            "status": "completed",
            "text": "green tea",
            "streamed": "green tea",
            "first": "response.created",
            "last": "response.completed",
        }
    )


def test_embeddings(seen: dict[str, Any]) -> None:
    assert seen["embeddings"] == {"lengths": [64, 64], "same": True}


def test_models(seen: dict[str, Any]) -> None:
    assert seen["models"] == {"scripted": True, "one": ["scripted", "model"]}


def test_the_headers_of_a_raw_response(seen: dict[str, Any]) -> None:
    headers = seen["headers"]
    resets = [headers["limits"].pop(f"x-ratelimit-reset-{unit}") for unit in ("requests", "tokens")]
    state = headers["limits"].pop("ratelimit")
    assert headers == {
        "limits": {
            "x-ratelimit-limit-requests": "6",
            "x-ratelimit-remaining-requests": "5",
            "x-ratelimit-limit-tokens": "600",
            "x-ratelimit-remaining-tokens": "567",  # 23 of the prompt and 10 of the answer are taken
            "ratelimit-policy": '"requests";q=6;w=60, "tokens";q=600;w=60',
        },
        "id": [32, True],
        "content": "green tea",
        "tokens": 23,
    }
    assert resets[1] == "4s"
    assert state == f'"requests";r=5;t={resets[0].removesuffix("s")}, "tokens";r=569;t=4'
    assert 1 <= int(resets[0].removesuffix("s")) <= 10


@pytest.mark.parametrize(
    ("refusal", "expected"),
    {
        "wrong key": ("AuthenticationError", 401, "authentication_error", "invalid_api_key", None),
        "endpoint out of scope": ("PermissionDeniedError", 403, "permission_error", "insufficient_scope", None),
        "absent model": ("NotFoundError", 404, "invalid_request_error", "model_not_found", "model"),
        "model out of scope": ("NotFoundError", 404, "invalid_request_error", "model_not_found", "model"),
        "wrong task": ("NotFoundError", 404, "invalid_request_error", "task_not_supported", "model"),
        "wrong value": ("BadRequestError", 400, "invalid_request_error", "invalid_value", "temperature"),
        "unknown field": ("BadRequestError", 400, "invalid_request_error", "unknown_parameter", "nonsense"),
        "internal field": ("BadRequestError", 400, "invalid_request_error", "unsupported_parameter", "cache_salt"),
        "too long": ("BadRequestError", 400, "invalid_request_error", "context_length_exceeded", "max_tokens"),
        "large body": ("APIStatusError", 413, "invalid_request_error", "request_too_large", None),
        "more than the limit": ("RateLimitError", 429, "rate_limit_error", "rate_limit_exceeded", None),
    }.items(),
)
def test_a_refusal_is_the_clients_own_class_and_not_tried_again(
    seen: dict[str, Any], refusal: str, expected: tuple[str, int, str, str, str | None]
) -> None:
    got = seen["errors"][refusal]
    assert (got["class"], got["status"], got["type"], got["code"], got["param"]) == expected
    assert (got["id"], got["attempts"]) == (True, ONCE)


def test_a_limit_that_passes_is_tried_again_as_often_as_allowed(seen: dict[str, Any]) -> None:
    assert seen["retries"] == {
        "class": "RateLimitError",
        "status": 429,
        "type": "rate_limit_error",
        "code": "rate_limit_exceeded",
        "param": None,
        "id": True,
        "attempts": ["0", "1", "2"],
        "waited": True,
    }


def test_a_stream_closed_early_makes_room_for_the_next_attempt(seen: dict[str, Any]) -> None:
    assert seen["success_after_a_retry"] == {"content": "green tea", "retried": True}
    assert seen["early_close"] == {"first": ["chat.completion.chunk"], "then": "green tea"}


def test_an_overload_is_an_internal_server_error_and_tried_again(seen: dict[str, Any]) -> None:
    assert seen["overload"] == {
        "class": "InternalServerError",
        "status": 503,
        "type": "service_unavailable_error",
        "code": "server_is_overloaded",
        "param": None,
        "id": True,
        "attempts": ["0", "1"],
    }


def test_a_stream_that_fails_never_ends_silently(seen: dict[str, Any]) -> None:
    assert_cut(seen["failing_stream"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stream_that_loses_its_replica_for_good_never_ends_silently(service: Service, version: str) -> None:
    wait_for(lambda: len(service.replicas("scripted")) > 1 and running(service) > 1, "the return of a replica", 240)
    assert_cut(play(service, version, {}, "dying_stream")["dying_stream"])


def assert_cut(stream: dict[str, Any]) -> None:
    text = stream.pop("text")
    assert text
    assert text != CALM
    assert CALM.startswith(text)
    assert stream == {
        "finish": [],
        "usage": [],
        "ids": 1,
        "raised": {
            "class": "APIError",
            "code": "upstream_failed",
            "type": "server_error",
            "message": "The model failed while it answered. The answer is not complete.",
        },
    }


def running(service: Service) -> int:
    """Replicas of the scripted model that Serve counts."""
    models = service.health().get("details", {}).get("models", [])
    return sum(model["replicas"]["running"] for model in models if model["id"] == "scripted")
