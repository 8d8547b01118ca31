"""`vllm-chat models` and `vllm-chat health` against a real service: exact tables, JSON and exit codes."""

import json

from starlette.responses import PlainTextResponse

from tests.cli.program import run
from tests.cli.service import Service, healthy

LOADING = {"status": "loading", "model_loaded": False}


def test_models(service: Service) -> None:
    service.cards.append({"id": "other\x1b[2J", "max_model_len": 512})
    result = run("models")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "    model   status   tasks      context",
        "*   demo    ready    generate      2048",
        "    other   -        -              512",
    ]
    assert result.exit_code == 0


def test_models_as_json_of_a_service_without_health(service: Service) -> None:
    service.healths[0] = PlainTextResponse("not here", 404)
    result = run("models", "--json")
    assert json.loads(result.stdout) == [
        {"id": "demo", "default": True, "status": None, "tasks": None, "max_model_len": 2048}
    ]


def test_health(service: Service) -> None:
    result = run("health")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"ok   {service.url.removesuffix('/v1')}   GPU no, 0 queued",
        "",
        "model   status   replicas   tasks      context",
        "demo    ready    1/1        generate      2048",
    ]


def test_health_of_a_failed_model(service: Service) -> None:
    sick = healthy(status="failed", replicas={"running": 0, "target": 1}, error="out of\nmemory")
    service.healths[0] = sick | {"status": "degraded", "queue_size": 4, "gpu_available": True}
    result = run("health")
    assert result.exit_code == 1
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"degraded   {service.url.removesuffix('/v1')}   GPU yes, 4 queued",
        "",
        "model   status                  replicas   tasks      context",
        "demo    failed: out of memory   0/1        generate      2048",
    ]


def test_health_as_json(service: Service) -> None:
    service.healths[0] = healthy() | LOADING
    result = run("health", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, healthy() | LOADING)


def test_health_waits_for_a_service_that_loads(service: Service) -> None:
    service.healths.appendleft(healthy(status="loading") | LOADING)
    result = run("health", "--json", "--wait", "20")
    assert (result.exit_code, json.loads(result.stdout)) == (0, healthy())


def test_health_does_not_wait_for_what_has_failed(service: Service) -> None:
    service.healths.appendleft(healthy(status="failed") | {"status": "failed"})
    result = run("health", "--json", "--wait", "20")
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "failed")


def test_health_waits_no_longer_than_told(service: Service) -> None:
    service.healths[0] = healthy(status="loading") | LOADING
    assert run("health", "--json", "--wait", "0.1").exit_code == 1


def test_health_of_something_else(service: Service) -> None:
    service.healths[0] = PlainTextResponse("ok")
    result = run("health", "--wait", "20")
    root = service.url.removesuffix("/v1")
    assert (result.exit_code, result.stderr) == (
        1,
        f"✗ {root} answered 200, but not with its health.\n  Check that OPENAI_BASE_URL points at this service.\n",
    )
