"""What schemathesis makes of the service's OpenAPI document, right and wrong, sent to the running service."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig

from serve_app.gateway.policy.document import document
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.replies import style_of
from serve_app.gateway.routes import MODEL_ROUTES
from tests.service import Service

EXAMPLES = 8
ROUTES = [path for path, route in MODEL_ROUTES.items() if not route.multipart]
POOLING = {"/v1/embeddings", "/v1/rerank", "/v1/score"}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FEW = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

DOCUMENT = document(PolicyConfig())
# Keys are tested elsewhere: without this, a body of the negative kind may be right and its header wrong.
ONLY_BODIES = SchemathesisConfig(
    projects=ProjectsConfig(default=ProjectConfig(generation=GenerationConfig(with_security_parameters=False)))
)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT, config=ONLY_BODIES)
ERRORS = {
    style: jsonschema.Draft202012Validator(DOCUMENT["components"]["schemas"][name])
    for style, name in (("openai", "Error"), ("anthropic", "AnthropicError"))
}


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http as client:
        yield client


def body_of(case: Any, path: str, mode: GenerationMode) -> bytes:
    """The body, for a model that is there; one that fits the document is for a short answer, too."""
    body: Any = case.body
    if isinstance(body, bytes):
        return body
    if isinstance(body, dict):
        model = body.get("model")
        if model is None or (isinstance(model, str) and 1 <= len(model) <= 256):
            body = {**body, "model": "embed" if path in POOLING else "scripted"}
        if mode is GenerationMode.POSITIVE:
            body |= {name: 4 for name in LENGTHS if body.get(name) is not None}
    return json.dumps(body).encode()


def sent(http: httpx.Client, path: str, mode: GenerationMode) -> list[tuple[bytes, httpx.Response]]:
    """The answers to a few bodies."""
    answers: list[tuple[bytes, httpx.Response]] = []

    @FEW
    @given(SCHEMA[path]["POST"].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        body = body_of(case, path, mode)
        answers.append((body, http.post(path, content=body, headers={"content-type": "application/json"})))

    send()
    return answers


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_of_the_document_never_fails_the_service(http: httpx.Client, path: str) -> None:
    for body, response in sent(http, path, GenerationMode.POSITIVE):
        assert response.status_code == 200 or 400 <= response.status_code < 429, body
        if response.status_code != 200:
            ERRORS[style_of(path)].validate(response.json())


@pytest.mark.parametrize("path", ROUTES)
def test_another_body_is_refused(http: httpx.Client, path: str) -> None:
    for body, response in sent(http, path, GenerationMode.NEGATIVE):
        # A model that there is not is said before anything else.
        assert response.status_code in (400, 404), body
        ERRORS[style_of(path)].validate(response.json())
