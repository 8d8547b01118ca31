"""How every refusal looks, and requests that are like those of clients."""

import json
import re
from typing import Any

import httpx

from tests.service import Service

MARK = "plum-4711"
"""In keys, prompts and paths here, and in no answer."""
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": f"{MARK} [[answer: yes]]"}]}
PATH = "/v1/chat/completions"
SECURITY = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
SOFTWARE = re.compile(r"uvicorn|haproxy|\bray\b|vllm|python|starlette", re.IGNORECASE)
Refusal = tuple[int, str, str | None]


def refusal(response: httpx.Response) -> Refusal:
    """Status, code and field of an answer, which must be a refusal as they all are."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert MARK not in response.text
    assert response.headers.get_list("content-type") == ["application/json"]
    assert_ours(response)
    return response.status_code, body["error"]["code"], body["error"]["param"]


def assert_ours(response: httpx.Response) -> None:
    """One id of ours, the security headers, and neither the request nor the software in any header."""
    assert [len(value) for value in response.headers.get_list("x-request-id")] == [32]
    assert {name: response.headers.get_list(name) for name in SECURITY} == {n: [v] for n, v in SECURITY.items()}
    headers = [pair for pair in response.headers.multi_items() if pair != ("server", "uvicorn")]  # Serve's server
    assert not SOFTWARE.search(str(headers))
    assert MARK not in str(headers)


def chat(service: Service, key: str | None = None, **fields: Any) -> httpx.Response:
    return post(service, json.dumps({**CHAT, **fields}).encode(), key=key)


def post(service: Service, body: bytes, path: str = PATH, key: str | None = None, **more: str) -> httpx.Response:
    headers = {
        "authorization": f"Bearer {service.keys[key] if key else service.key}",
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return httpx.post(service.url + path, content=body, headers=headers, timeout=60)


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def bearer(service: Service) -> str:
    return f"authorization: Bearer {service.key}"
