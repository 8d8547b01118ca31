"""The service's routes as an OpenAPI document, made from the same table that requests are held against.

The gateway does not serve it; `python -m serve_app.gateway.policy.document > openapi.json` prints it. It describes
what a key without features may send to a model that takes text only, with the default settings.
"""

import json
from typing import Any

from serve_app.gateway.policy.entries import RoutePolicy
from serve_app.gateway.policy.fields import Object
from serve_app.gateway.policy.rules import Schema, takes_nothing
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.replies import ANTHROPIC_TYPES, style_of
from serve_app.gateway.routes import HEALTH, METRICS, MODEL_LISTS, MODEL_PREFIX, MODEL_ROUTES, USAGE, ModelRoute

Part = dict[str, Any]

ERRORS = {
    400: "The body or a parameter is not what the route takes; `param` names it.",
    401: "No key, or not a right one.",
    403: "The key may not use this route.",
    404: "No such model for this key, or the model cannot do this.",
    413: "The body is too large.",
    415: "The body has a content type or an encoding that the route does not take.",
    422: "The body is well formed, but what it refers to cannot be used.",
    429: "A limit of the key is reached; `retry-after` tells when to try again.",
    431: "The headers are too many or too large.",
    500: "The service or the model's replica failed.",
    503: "The model is loading, or has no place for the request; `retry-after` tells when to try again.",
    504: "The answer took longer than a deadline allows.",
}
OF_READS = (401, 403, 404, 429, 431, 500)
TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def document(config: PolicyConfig) -> Part:
    """The OpenAPI 3.1 document of a service with these settings."""
    policies = table(config)
    paths: dict[str, Part] = {
        path: {"post": _model_route(path, route, policies[route.path])} for path, route in MODEL_ROUTES.items()
    }
    for path in sorted(MODEL_LISTS):
        paths[path] = {"get": _read("The models that the key may use.")}
    named = {"name": "model", "in": "path", "required": True, "schema": {**TEXT, "minLength": 1}}
    paths[f"{MODEL_PREFIX}{{model}}"] = {"get": _read("One model.", parameters=[named])}
    paths[USAGE] = {"get": _read("What the key has used; an admin sees every key.", 400, 503, parameters=_usage())}
    paths[HEALTH] = {"get": _health()}
    paths[METRICS] = {"get": _read("Prometheus metrics, for admin keys.", kind="text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vLLM chat backend", "version": "1"},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _openai_error(), "AnthropicError": _anthropic_error()},
        },
    }


def _model_route(path: str, route: ModelRoute, policy: RoutePolicy) -> Part:
    required = (*policy.required, "model") if route.model_required else policy.required
    kind = "multipart/form-data" if route.multipart else "application/json"
    schema = _form(policy) if route.multipart else Object(policy.fields, required).schema()
    answers: Part = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in policy.fields:
        answers["text/event-stream"] = {"schema": TEXT}
    if route.multipart:
        answers["text/plain"] = {"schema": TEXT}
    return {
        "operationId": path.strip("/").replace("/", "-"),
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {"200": {"description": "The answer.", "content": answers}, **_errors(path, *ERRORS)},
    }


def _form(policy: RoutePolicy) -> Schema:
    fields = {name: rule.schema() for name, rule in policy.fields.items()}
    fields = {name: schema for name, schema in fields.items() if not takes_nothing(schema)}
    file = {"type": "string", "format": "binary"}
    return {
        "type": "object",
        "properties": {"file": file, **fields},
        "required": ["file"],
        "additionalProperties": False,
    }


def _read(says: str, *errors: int, kind: str = "application/json", parameters: list[Part] | None = None) -> Part:
    answer = {"schema": {"type": "object"} if kind == "application/json" else TEXT}
    return {
        "summary": says,
        "parameters": parameters or [],
        "responses": {"200": {"description": says, "content": {kind: answer}}, **_errors("", *OF_READS, *errors)},
    }


def _health() -> Part:
    content = {"application/json": {"schema": {"type": "object", "required": ["status", "details"]}}}
    says = {"200": "A model can answer.", "503": "No model can answer."}
    answers = {status: {"description": text, "content": content} for status, text in says.items()}
    return {"summary": "Whether the models can answer.", "security": [], "responses": answers}


def _usage() -> list[Part]:
    """Source: serve_app/ledger/usage.py."""
    schemas = {
        "by": {"enum": ["day", "key", "model"]},
        "key": TEXT,
        "model": TEXT,
        "since": TEXT,
        "until": TEXT,
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]


def _errors(path: str, *statuses: int) -> Part:
    name = "AnthropicError" if style_of(path) == "anthropic" else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {str(status): {"description": ERRORS[status], "content": content} for status in sorted(statuses)}


def _openai_error() -> Schema:
    fields = {"message": {**TEXT, "minLength": 1}, "type": TEXT, "param": TEXT_OR_NULL, "code": TEXT}
    return _closed({"error": _closed(fields)})


def _anthropic_error() -> Schema:
    kinds = sorted({*ANTHROPIC_TYPES.values(), "api_error"})
    error = _closed({"type": {"enum": kinds}, "message": {**TEXT, "minLength": 1}})
    return _closed({"type": {"const": "error"}, "error": error})


def _closed(fields: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


if __name__ == "__main__":
    print(json.dumps(document(PolicyConfig()), indent=2))  # noqa: T201 - its purpose
