"""What health and requests are told of models that do not start."""

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import httpx
import pytest

from serve_app.fleet.journal import Journal
from serve_app.gateway import reports
from serve_app.gateway.errors import GatewayError, ModelFailed, ModelLoading
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.models import Models
from serve_app.ray_seam import Replicas
from serve_app.replica.count import ReplicaRange
from tests.unit.gateway.front_door import KEY, gateway, models_with

LOADING, FAILED = Replicas(), Replicas(failed=True)
CALLER = Caller.unlimited("admin")
ASLEEP, WAKING = Replicas(target=0), Replicas(target=1)


@pytest.mark.parametrize(
    ("replicas", "status"),
    [([FAILED], "failed"), ([FAILED, FAILED], "failed"), ([FAILED, LOADING], "loading"), ([LOADING], "loading")],
)
def test_health_is_failed_when_no_model_will_answer(replicas: list[Replicas], status: str) -> None:
    health = reports.health(models_with(*replicas))
    assert (health.status, health.model_loaded, health.upstream_healthy) == (status, False, False)
    assert [model.error for model in health.details.models] == [
        reports.FAILED if each.failed else None for each in replicas
    ]


@pytest.mark.parametrize(
    ("replicas", "error", "headers"),
    [
        (FAILED, ModelFailed, {b"x-should-retry": b"false"}),
        (LOADING, ModelLoading, {b"retry-after": b"10"}),
    ],
)
def test_only_a_request_to_a_model_that_loads_is_told_to_come_again(
    replicas: Replicas, error: type[GatewayError], headers: dict[bytes, bytes]
) -> None:
    models = models_with(replicas)
    with pytest.raises(error) as refusal:
        models.check(models.get("m0", CALLER))
    assert (refusal.value.status, dict(refusal.value.headers)) == (503, headers)
    assert "m0" in str(refusal.value)


def test_a_model_without_replicas_that_nobody_asks_for_is_not_unhealthy() -> None:
    models = models_with(ASLEEP, replicas={"min": 0, "max": 2})
    health = reports.health(models)
    assert (health.status, health.model_loaded, health.upstream_healthy) == ("ok", False, True)
    assert [(model.status, model.error) for model in health.details.models] == [("asleep", None)]
    assert (health.details.models[0].replicas.running, health.details.models[0].replicas.target) == (0, 0)


def test_requests_wait_for_a_model_that_sleeps_or_wakes_up_but_not_for_one_that_fails() -> None:
    models = models_with(ASLEEP, WAKING, FAILED, replicas={"min": 0, "max": 2})
    asleep, waking, failed = (models.get(name, CALLER) for name in ("m0", "m1", "m2"))
    models.check(asleep)
    models.check(waking)
    with pytest.raises(ModelFailed):
        models.check(failed)
    assert [model.status for model in reports.health(models).details.models] == ["asleep", "loading", "failed"]


def test_a_new_version_that_does_not_start_leaves_the_replicas_of_the_old_one_their_requests() -> None:
    models = models_with(Replicas(running=1, failed=True))
    (model,) = models
    model.frontend = cast("Any", SimpleNamespace(max_model_len=9, fleet=SimpleNamespace(journal=Journal())))
    models.check(models.get("m0", CALLER))
    assert reports.health(models).status == "ok"


def test_an_adapter_of_a_version_that_is_still_to_come_is_loading() -> None:
    models = models_with(Replicas(running=1), Replicas(), adapters={"law": "/law"}, fallback="m1")
    model, _ = models
    models.set([model])
    model.frontend, model.names = cast("Any", SimpleNamespace()), frozenset({"m0"})
    models.check(models.get("m0", CALLER))
    with pytest.raises(ModelLoading, match="`law` is loading"):
        models.check(models.get("law", CALLER))
    assert not models.ready(models.get("law", CALLER))


async def test_a_model_that_sleeps_is_waited_for_where_what_it_falls_back_on_cannot_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = models_with(ASLEEP, LOADING, fallback="m1")
    sleeping, loading = models
    sleeping.config = sleeping.config.model_copy(update={"replicas": ReplicaRange(min=0, max=1)})
    loading.config = loading.config.model_copy(update={"fallback": None})
    woken: list[str] = []
    monkeypatch.setattr(sleeping, "wake", lambda: woken.append("m0"))
    monkeypatch.setattr(sleeping, "opened", AsyncMock(side_effect=ModelFailed("m0")))  # what its waiting came to
    async with client_of(models) as client:
        body = {"model": "m0", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert (woken, answer.json()["error"]["code"]) == (["m0"], "model_failed")


def client_of(models: Models) -> httpx.AsyncClient:
    """A client of the gateway's own app, without Serve around it."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway(models)), base_url="http://gateway")


@pytest.mark.parametrize(
    ("replicas", "code", "headers"),
    [
        (LOADING, "model_loading", {"retry-after": "10"}),
        (FAILED, "model_failed", {"x-should-retry": "false"}),
    ],
)
async def test_while_no_model_can_answer_requests_and_health_are_503(
    replicas: Replicas, code: str, headers: dict[str, str]
) -> None:
    async with client_of(models_with(replicas)) as client:
        health = await client.get("/api/healthz")
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert (health.status_code, health.json()["model_loaded"]) == (503, False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert headers.items() <= dict(answer.headers).items()
