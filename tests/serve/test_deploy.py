"""Models that come, change and go by an edited config and `serve deploy`, while the others answer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import demo
from tests.load import load
from tests.service import Service, pids, running_service, wait_for

pytestmark = pytest.mark.slow
WORDS = "one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("deploy"), [scripted("first")]) as running:
        yield running


def scripted(name: str, **settings: Any) -> dict[str, Any]:
    return demo(name, engine="scripted", **settings)


def ask(service: Service, model: str, content: str = "[[answer: yes]]") -> str | None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0)
    chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
    assert chat.model == model
    return chat.choices[0].message.content


def listed(service: Service) -> list[str]:
    return [model["id"] for model in service.http.get("/v1/models").json()["data"]]


def ready(service: Service, *models: str) -> bool:
    details = service.health().get("details", {}).get("models", [])
    return {each["id"] for each in details if each["status"] == "ready"} == set(models)


def busy(service: Service) -> AbstractContextManager[list[str]]:
    """The model `first` answers all along."""
    return load(lambda content: ask(service, "first", content), [(WORDS, 20)] * 2)


def test_models_come_and_go_without_a_hiccup_for_the_others(service: Service) -> None:
    gateways = {gateway.process.pid for gateway in service.gateways()}
    replicas = pids(service.replicas("first"))
    with busy(service) as failures:
        service.deploy([scripted("first"), scripted("second")])
        wait_for(lambda: ready(service, "first", "second"), "the second model", 180)
        assert ask(service, "second") == "yes"
        assert listed(service) == ["first", "second"]
        service.deploy([scripted("first")])
        wait_for(lambda: listed(service) == ["first"], "the removal", 60)
        with pytest.raises(openai.NotFoundError, match="`second` does not exist"):
            ask(service, "second")
        wait_for(lambda: not service.replicas("second"), "the end of its replicas", 60)
    assert failures == []
    assert {gateway.process.pid for gateway in service.gateways()} == gateways
    assert pids(service.replicas("first")) == replicas


def test_a_changed_number_of_replicas_restarts_none(service: Service) -> None:
    replicas = pids(service.replicas("first"))
    with busy(service) as failures:
        service.deploy([scripted("first", replicas=2)])
        wait_for(lambda: service.up("first", 2), "the second replica", 120)
    assert failures == []
    assert pids(service.replicas("first")) > replicas


def test_a_changed_model_is_taken_over_once_its_new_replicas_are_up(service: Service) -> None:
    before = pids(service.replicas("first"))
    changed = scripted("first", replicas=2)
    service.deploy([{**changed, "vllm_args": {**changed["vllm_args"], "max_model_len": 1024}}])
    wait_for(lambda: model_card(service, "first")["max_model_len"] == 1024, "the new front end", 180)
    wait_for(lambda: service.up("first", 2) and not pids(service.replicas("first")) & before, "the new replicas", 180)
    assert ask(service, "first") == "yes"


def test_a_config_that_is_wrong_changes_nothing(service: Service) -> None:
    service.deploy([scripted("first", replicas=2), {"id": "wrong", "source": "acme/x", "vllm_args": {"port": 1}}])
    wait_for(lambda: "port is set by the service" in controller_log(service), "the refusal", 60)
    assert ask(service, "first") == "yes"
    assert listed(service) == ["first"]


def controller_log(service: Service) -> str:
    logs = Path(service.variables["RAY_TMPDIR"]).glob("ray/session_latest/logs/serve/controller_*.log")
    return "".join(log.read_text() for log in logs)


def model_card(service: Service, model: str) -> dict[str, Any]:
    card: dict[str, Any] = service.http.get(f"/v1/models/{model}").json()
    return card


def test_a_model_that_does_not_start_leaves_the_others_alone(service: Service) -> None:
    with busy(service) as failures:
        bad = scripted("bad") | {"source": "/no/such/model"}
        service.deploy([scripted("first", replicas=2), bad])
        wait_for(lambda: failed(service, "bad"), "the failure", 120)
    assert failures == []
    refused = service.http.post("/v1/completions", json={"model": "bad", "prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (httpx.codes.SERVICE_UNAVAILABLE, "model_failed")


def failed(service: Service, model: str) -> bool:
    details = service.health()["details"]["models"]
    return [each["status"] for each in details if each["id"] == model] == ["failed"]
