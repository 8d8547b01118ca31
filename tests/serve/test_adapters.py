"""LoRA adapters as models of their own, on the replicas of the model that they adapt."""

from collections.abc import Iterator

import openai
import pytest

from tests.conftest import demo
from tests.models import write_adapter
from tests.service import Service, running_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {name: str(write_adapter(folder / name, scale)) for name, scale in (("same", 0.0), ("other", 0.5))}
    with running_service(folder, [demo("demo", adapters=adapters)]) as running:
        yield running


def ask(service: Service, model: str) -> str | None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0)
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is a KV cache?"}], max_tokens=24, temperature=0
    )
    assert chat.model == model
    return chat.choices[0].message.content


def test_an_adapter_changes_what_its_model_answers_and_nothing_else(service: Service) -> None:
    base = ask(service, "demo")
    assert ask(service, "same") == base
    assert ask(service, "other") != base
    assert ask(service, "demo") == base


def test_adapters_are_listed_with_their_model(service: Service) -> None:
    cards = service.http.get("/v1/models").json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [("demo", None), ("other", "demo"), ("same", "demo")]
