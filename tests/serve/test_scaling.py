"""Replicas that come and go with the load, to none and back, over the scripted engine."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.conftest import demo
from tests.service import Service, running_service, wait_for

pytestmark = pytest.mark.slow
QUICK = {"up_after_s": 0, "down_after_s": 5}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = [
        demo("grows", engine="scripted", replicas={"min": 1, "max": 2, "target_ongoing_requests": 2, **QUICK}),
        demo("sleeps", engine="scripted", replicas={"min": 0, "max": 1, **QUICK}),
    ]
    gateway = {"deadlines": {"keep_alive_s": 1}}
    with running_service(tmp_path_factory.mktemp("scaling"), models, gateway=gateway) as running:
        yield running


def model(service: Service, name: str) -> dict[str, Any]:
    found = [each for each in service.health()["details"]["models"] if each["id"] == name]
    return dict(found[0])


def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=240)


def ask(service: Service, name: str, content: str) -> str | None:
    chat = client(service).chat.completions.create(model=name, messages=[{"role": "user", "content": content}])
    return chat.choices[0].message.content


def test_a_busy_model_gets_a_second_replica_and_an_idle_one_loses_it(service: Service) -> None:
    over = threading.Event()

    def in_turn() -> None:
        while not over.is_set():
            assert ask(service, "grows", "[[answer: one two three four five six]] [[pace: 200ms]]")

    with ThreadPoolExecutor(6) as threads:
        busy = [threads.submit(in_turn) for _ in range(6)]
        try:
            wait_for(lambda: model(service, "grows")["replicas"] == {"running": 2, "target": 2}, "the second", 120)
        finally:
            over.set()
        for each in busy:
            each.result()
    wait_for(lambda: model(service, "grows")["replicas"] == {"running": 1, "target": 1}, "the end of one", 120)


def test_an_unused_model_has_no_replica_and_wakes_up_for_a_request(service: Service) -> None:
    wait_for(
        lambda: model(service, "sleeps")["status"] == "asleep" and not service.replicas("sleeps"), "its sleep", 120
    )
    assert service.health()["status"] == "ok"
    with ThreadPoolExecutor(1) as threads:
        whole = threads.submit(ask, service, "sleeps", "[[answer: good morning]]")
        body = {"model": "sleeps", "stream": True, "messages": [{"role": "user", "content": "[[answer: hello]]"}]}
        with service.http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            assert streamed.status_code == 200
            text = "".join(streamed.iter_text())
        assert whole.result() == "good morning"
    assert text.startswith(": keep-alive")
    assert text.endswith("data: [DONE]\n\n")
