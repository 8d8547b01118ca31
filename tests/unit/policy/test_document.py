"""The OpenAPI document says what the policy holds bodies to: what fits it passes, and what does not is refused."""

import json
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig

from serve_app.gateway.errors import GatewayError
from serve_app.gateway.policy.document import ERRORS, document
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.routes import MODEL_ROUTES
from tests.unit.policy.door import LEAST, check

DOCUMENT = document(PolicyConfig())
# Without this, a case of the negative kind may have a right body and a wrong header.
ONLY_BODIES = SchemathesisConfig(
    projects=ProjectsConfig(default=ProjectConfig(generation=GenerationConfig(with_security_parameters=False)))
)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT, config=ONLY_BODIES)
FEW = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# What a JSON schema cannot say of a JSON schema: its depth, its keywords, its size.
BEYOND = {"invalid_schema"}


def body_of(case: Any) -> bytes:
    body: Any = case.body
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize("path", LEAST)
def test_what_fits_the_document_passes(path: str) -> None:
    @FEW
    @given(SCHEMA[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def send(case: Any) -> None:
        try:
            check(path, body_of(case))
        except GatewayError as error:
            if error.code not in BEYOND:
                raise

    send()


@pytest.mark.parametrize("path", LEAST)
def test_what_does_not_fit_is_refused(path: str) -> None:
    @FEW
    @given(SCHEMA[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def send(case: Any) -> None:
        with pytest.raises(GatewayError) as error:
            check(path, body_of(case))
        assert error.value.status == 400

    send()


def test_the_document_is_one() -> None:
    assert schemathesis.openapi.from_dict(DOCUMENT).config is not None
    SCHEMA.validate()
    for path in LEAST:
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
        validator = jsonschema.Draft202012Validator(content["application/json"]["schema"])
        validator.check_schema(validator.schema)
        validator.validate(LEAST[path])


def test_it_names_every_route_and_its_errors() -> None:
    reads = {"/v1/models", "/v1/models/{model}", "/api/models", "/api/healthz", "/api/usage", "/metrics"}
    assert set(DOCUMENT["paths"]) == set(MODEL_ROUTES) | reads
    for path in MODEL_ROUTES:
        statuses = set(DOCUMENT["paths"][path]["post"]["responses"])
        assert statuses == {"200", *map(str, ERRORS)}
    assert DOCUMENT["security"] == [{"bearer": []}]
    assert DOCUMENT["paths"]["/api/healthz"]["get"]["security"] == []


def test_forms_are_described_as_forms() -> None:
    form = DOCUMENT["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"]
    assert "vllm_xargs" not in form["schema"]["properties"]


def test_api_chat_requires_a_model_in_the_document() -> None:
    schema = DOCUMENT["paths"]["/api/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"messages", "model"}


def test_the_module_prints_it() -> None:
    command = [sys.executable, "-m", "serve_app.gateway.policy.document"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    assert json.loads(printed) == json.loads(json.dumps(DOCUMENT))
