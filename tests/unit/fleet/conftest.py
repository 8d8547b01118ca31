"""The scripted model that most tests of the fleet serve, and vLLM's configuration of it, which is slow to make."""

import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.replica.arguments import engine_config
from tests.unit.fleet.bed import scripted_model


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return scripted_model()


@pytest.fixture(scope="module")
def config(model: ModelConfig) -> VllmConfig:
    return engine_config(model)
