"""Bare vLLM and the whole service give the same tokens to the same requests."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config import DEMO_MODEL, load_model
from serve_app.replica.arguments import vllm_flags
from tests.service import Service, clean_environment, free_port, wait_for

SUBJECTS = ["a lamp", "the sea", "seven keys", "an old engine", "Müller's café"]


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Fifty requests: chat and completions, short and long, with stop strings, penalties, bias and grammars."""
    varied: list[tuple[str, dict[str, Any]]] = []
    for number, subject in enumerate(SUBJECTS):
        chat = {"messages": [{"role": "user", "content": f"Tell me about {subject}."}]}
        talk = {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": subject},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Go on."},
            ]
        }
        text = {"prompt": f"Once there was {subject}"}
        varied += [
            ("/v1/chat/completions", {**chat, "max_tokens": 1 + number}),
            ("/v1/chat/completions", {**chat, "max_tokens": 300}),
            ("/v1/chat/completions", {**talk, "max_tokens": 40}),
            ("/v1/chat/completions", {**talk, "max_tokens": 40, "frequency_penalty": 0.5}),
            ("/v1/chat/completions", {**chat, "max_tokens": 40, "stop": ["token", "the"]}),
            ("/v1/chat/completions", {**chat, "max_tokens": 20, "logit_bias": {str(300 + number): 4}}),
            ("/v1/chat/completions", {**chat, "max_tokens": 60, "response_format": {"type": "json_object"}}),
            ("/v1/completions", {**text, "max_tokens": 64}),
            ("/v1/completions", {**text, "max_tokens": 24, "repetition_penalty": 1.3}),
            ("/v1/completions", {"prompt": subject * 100, "max_tokens": 16, "min_tokens": 16}),
        ]
    return varied


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server on the demo model, with the arguments of its model file."""
    port, demo = free_port(), load_model("demo")
    log: Path = tmp_path_factory.mktemp("bare") / "vllm.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port), "--host", "127.0.0.1"]
    command += ["--model", str(DEMO_MODEL), "--served-model-name", "demo"]
    command += vllm_flags(demo.vllm_args)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**clean_environment(), **demo.env}
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(ready, "bare vLLM's start", 300)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def choices(client: httpx.Client, path: str, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    sent = {"model": "demo", "temperature": 0, "return_token_ids": True, **body}
    answer = client.post(path, json=sent).raise_for_status().json()
    return [
        (choice["token_ids"], choice["finish_reason"], choice.get("text") or choice.get("message", {}).get("content"))
        for choice in answer["choices"]
    ] + [(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])]


def test_fifty_varied_requests(service: Service, bare: str) -> None:
    varied = requests()
    assert len(varied) == 50
    with httpx.Client(base_url=bare, timeout=120) as client:
        expected = [choices(client, path, body) for path, body in varied]
    assert all(tokens for tokens, *_ in (found[0] for found in expected))
    assert [choices(service.http, path, body) for path, body in varied] == expected
