"""What chaos and soak serve is what the service takes."""

import pytest

from loadtests.fleet import Engine, settings
from serve_app.config import ModelConfig


@pytest.mark.parametrize(("engine", "of_the_replica"), [("scripted", "scripted"), ("demo", "vllm")])
def test_the_settings_are_those_of_a_model(engine: Engine, of_the_replica: str) -> None:
    model = ModelConfig.model_validate(settings(engine, 3))
    assert (model.id, model.engine, model.replicas, model.num_cpus) == (engine, of_the_replica, 3, 0)
