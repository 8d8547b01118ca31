"""What is put into a request for its caller: the length of the answer, the salt of the cache, the stream."""

import json
from typing import Any

import pytest

from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.routes import MODEL_ROUTES
from tests.unit.policy.door import CHAT, DEFAULT, JSON, LEAST, caller, check, passed, refused

LENGTHS = [
    (CHAT, "max_completion_tokens"),
    (CHAT, "max_tokens"),
    ("/api/chat", "max_tokens"),
    ("/v1/completions", "max_tokens"),
    ("/v1/responses", "max_output_tokens"),
    ("/v1/messages", "max_tokens"),
]
SALTED = [
    CHAT,
    "/api/chat",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
]


def checked(path: str, fields: dict[str, Any], who: Caller, config: PolicyConfig | None = None) -> dict[str, Any]:
    return dict(json.loads(check(path, json.dumps({**LEAST[path], **fields}).encode(), who, config).body))


def bounded(path: str, fields: dict[str, Any]) -> bool:
    return check(path, json.dumps({**LEAST[path], **fields}).encode(), caller(max_tokens=50)).bounded


@pytest.mark.parametrize(("path", "name"), LENGTHS)
def test_an_answer_is_at_most_as_long_as_the_key_allows(path: str, name: str) -> None:
    who = caller(max_tokens=50)
    assert passed(path, {name: 50}, who)[name] == 50
    assert refused(path, {name: 51}, who) == (400, "invalid_value", name)
    assert refused(path, {name: 51.0}, who) == (400, "invalid_value", name)
    assert passed(path, {name: 51})[name] == 51
    assert bounded(path, {name: 3})


def test_the_strictest_limit_counts() -> None:
    config = PolicyConfig(max_tokens=30)
    assert refused(CHAT, {"max_tokens": 31}, caller(max_tokens=50), config) == (400, "invalid_value", "max_tokens")
    assert refused(CHAT, {"max_tokens": 31}, caller(), config) == (400, "invalid_value", "max_tokens")
    assert refused(CHAT, {"max_tokens": 21}, caller(max_tokens=20), config) == (400, "invalid_value", "max_tokens")
    both = {"max_tokens": 5, "max_completion_tokens": 31}
    assert refused(CHAT, both, caller(), config) == (400, "invalid_value", "max_completion_tokens")


@pytest.mark.parametrize(
    ("path", "name", "length"),
    [
        (CHAT, "max_completion_tokens", 50),
        ("/api/chat", "max_completion_tokens", 50),
        ("/v1/responses", "max_output_tokens", 50),
        ("/v1/completions", "max_tokens", 16),
    ],
)
def test_an_answer_without_a_length_gets_the_keys(path: str, name: str, length: int) -> None:
    assert passed(path, {}, caller(max_tokens=50))[name] == length
    assert passed(path, {name: None}, caller(max_tokens=50))[name] == length
    assert name not in passed(path, {})
    assert bounded(path, {}) is (path == "/v1/completions")


def test_vllms_short_completion_is_not_made_longer() -> None:
    assert passed("/v1/completions", {}, caller(max_tokens=5))["max_tokens"] == 5


def test_routes_without_an_answer_get_no_length() -> None:
    for path in ("/v1/embeddings", "/v1/messages/count_tokens", "/tokenize", "/v1/rerank"):
        assert passed(path, {}, caller(max_tokens=5)) == LEAST[path]


@pytest.mark.parametrize("path", SALTED)
def test_a_cache_group_has_a_salt_of_its_own(path: str) -> None:
    salt = checked(path, {}, caller(group="a"))["cache_salt"]
    assert len(bytes.fromhex(salt)) == 32
    assert checked(path, {}, caller("benchmark", group="a"))["cache_salt"] == salt
    assert checked(path, {"cache_salt": None}, caller(group="a"))["cache_salt"] == salt
    assert checked(path, {}, caller(group="b"))["cache_salt"] != salt


@pytest.mark.parametrize("path", sorted(set(LEAST) - set(SALTED)))
def test_what_reads_no_cache_has_no_salt(path: str) -> None:
    assert "cache_salt" not in checked(path, {}, caller())


async def test_the_salt_depends_on_the_secret() -> None:
    route, body = MODEL_ROUTES[CHAT], json.dumps(LEAST[CHAT]).encode()
    policies = [Policy(PolicyConfig(), secret) for secret in (b"a", b"a", b"b")]
    asked = [await policy.read(route, JSON, body) for policy in policies]
    pairs = zip(policies, asked, strict=True)
    one, same, other = [(await policy.check(route, JSON, body, each, caller())).body for policy, each in pairs]
    assert one == same
    assert one != other


def test_api_chat_streams_unless_told_not_to() -> None:
    assert passed("/api/chat", {})["stream"] is True
    assert passed("/api/chat", {"stream": None})["stream"] is True
    assert passed("/api/chat", {"stream": False})["stream"] is False
    assert "stream" not in passed(CHAT, {})


def test_api_chat_requires_a_model() -> None:
    assert refused("/api/chat", {"model": None}) == (400, "invalid_value", "model")
    assert refused("/api/chat", {}, without=["model"]) == (400, "invalid_value", "model")


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {}, (1, 1)),
        (CHAT, {"n": None}, (1, 1)),
        (CHAT, {"n": 3}, (1, 3)),
        (CHAT, {"n": 2.0}, (1, 2)),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, (3, 2)),
        ("/v1/completions", {"prompt": ["a"]}, (1, 1)),
        ("/v1/completions", {"prompt": [1, 2, 3]}, (1, 1)),
        ("/v1/completions", {"prompt": [[1, 2], [3]], "n": 4}, (2, 4)),
        ("/v1/responses", {}, (1, 1)),
        ("/v1/embeddings", {"input": ["a", "b"]}, (1, 1)),
        ("/tokenize", {"prompt": "abc"}, (1, 1)),
    ],
)
def test_prompts_and_choices_are_counted(path: str, fields: dict[str, Any], expected: tuple[int, int]) -> None:
    passed = check(path, json.dumps({**LEAST[path], **fields}).encode(), caller("token_ids"))
    assert (passed.prompts, passed.choices) == expected


@pytest.mark.parametrize(
    ("model", "read"), [({"model": "é"}, "é"), ({"model": None}, None), ({"model": 7}, None), ({}, None)]
)
async def test_the_model_is_read_before_anything_is_checked(model: dict[str, Any], read: str | None) -> None:
    body = json.dumps({**model, "nonsense": True}).encode()
    assert (await DEFAULT.read(MODEL_ROUTES[CHAT], JSON, body)).model == read
