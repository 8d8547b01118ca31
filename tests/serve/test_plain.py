"""`serve run` alone: the demo model without the launcher, its variables, or a key; two gateways."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.test_demo import ANSWER, QUESTION
from tests.service import Service, running_service, wait_for


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("plain")
    with running_service(folder, ["demo"], plain=True, gateway={"replicas": 2}) as service:
        yield service


def test_it_has_serves_own_proxy(plain: Service) -> None:
    assert plain.processes("ray::ProxyActor")
    assert not plain.processes("haproxy")


@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_loopback_without_a_key(plain: Service, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "stream": stream}
    for _ in range(8):  # whichever gateway gets it
        answer = wait_for(partial(answered, plain, body), "the start of both gateways")
        assert said(answer) == ANSWER


def answered(service: Service, body: dict[str, Any]) -> httpx.Response | None:
    """The answer; none while the gateway that gets the request waits for the model, as one of two may do longer."""
    response = httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)
    if response.status_code == 503 and response.json()["error"]["code"] == "model_loading":
        assert int(response.headers["retry-after"]) > 0
        return None
    assert response.status_code == 200, response.text
    return response


def said(response: httpx.Response) -> str:
    """What the model says, in one piece or in chunks."""
    if response.headers["content-type"] == "application/json":
        return str(response.json()["choices"][0]["message"]["content"])
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
