"""The policy as a request meets it."""

import asyncio
import json
from collections.abc import Collection
from typing import Any

from serve_app.gateway.errors import GatewayError, Headers
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.record import Limits
from serve_app.gateway.policy.check import Checked, Policy
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.routes import MODEL_ROUTES

CHAT = "/v1/chat/completions"
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
DEFAULT = Policy(PolicyConfig(), b"secret")
JSON: Headers = [(b"content-type", b"application/json")]
# The least that each route takes.
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    "/api/chat": {"model": "m", "messages": [USER]},
    "/v1/completions": {"prompt": "Once"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [USER], "max_tokens": 10},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}


def caller(*features: str, group: str = "group", max_tokens: int | None = None, context: int | None = None) -> Caller:
    limits = Limits(max_tokens=max_tokens, context=context)
    return Caller("key", "key", features=frozenset(features), cache_group=group, limits=limits)


def check(
    path: str,
    body: bytes,
    who: Caller | None = None,
    config: PolicyConfig | None = None,
    headers: Headers = JSON,
) -> Checked:
    """A body held against the policy, headers first."""
    policy = DEFAULT if config is None else Policy(config, b"secret")
    route = MODEL_ROUTES[path]
    policy.check_head(path.encode(), headers)
    policy.check_content(route, headers)

    async def read_and_check() -> Checked:
        return await policy.check(route, headers, body, await policy.read(route, headers, body), who or caller())

    return asyncio.run(read_and_check())


def passed(path: str, fields: Any, who: Caller | None = None, config: PolicyConfig | None = None) -> dict[str, Any]:
    """What vLLM gets for the least body and these fields, less what is ours."""
    sent = json.loads(check(path, json.dumps({**LEAST[path], **fields}).encode(), who, config).body)
    sent.pop("cache_salt", None)
    return dict(sent)


def refused(
    path: str,
    fields: dict[str, Any],
    who: Caller | None = None,
    config: PolicyConfig | None = None,
    without: Collection[str] = (),
) -> tuple[int, str, str | None]:
    """Status, code and param of the refusal of the least body and these fields."""
    body = {name: value for name, value in {**LEAST[path], **fields}.items() if name not in without}
    error = error_of(path, json.dumps(body).encode(), who, config)
    return error.status, error.code, error.param


def error_of(
    path: str,
    body: bytes,
    who: Caller | None = None,
    config: PolicyConfig | None = None,
    headers: Headers = JSON,
) -> GatewayError:
    try:
        check(path, body, who, config, headers)
    except GatewayError as error:
        return error
    raise AssertionError("the body was let through")
