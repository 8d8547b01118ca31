"""What health and requests are told of models that do not start."""

from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from serve_app.config import ModelConfig, load_model
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway import reports
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.errors import GatewayError, ModelFailed, ModelLoading
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.keyring import Keyring, KeysConfig
from serve_app.gateway.limits.limiter import Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.ledger.usage import UsageReports
from serve_app.ray_seam import Replicas

KEY = "a key of thirty-two characters.."
LOADING, FAILED = Replicas(), Replicas(failed=True)
ASLEEP, WAKING = Replicas(target=0), Replicas(target=1)


class Watch(dict[str, Replicas]):
    """The replicas of each deployment, as a test says."""

    gpu_available = False


def models_with(*replicas: Replicas, **settings: Any) -> Models:
    watch, models = Watch(), []
    for number, each in enumerate(replicas):
        handle: Any = SimpleNamespace(deployment_name=f"replica-{number}")
        watch[handle.deployment_name] = each
        config = ModelConfig.model_validate({**load_model("demo").model_dump(), "id": f"m{number}", **settings})
        models.append(Model(config, handle))
    return Models(models, {}, cast("FleetWatch", watch))


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
        models.check(next(iter(models)))
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
    asleep, waking, failed = models
    models.check(asleep)
    models.check(waking)
    with pytest.raises(ModelFailed):
        models.check(failed)
    assert [model.status for model in reports.health(models).details.models] == ["asleep", "loading", "failed"]


def client_of(models: Models) -> httpx.AsyncClient:
    """A client of the gateway's own app, without Serve around it."""
    policy = Policy(PolicyConfig(), b"secret")
    app = GatewayApp(
        models=models,
        keyring=Keyring(KeysConfig(), {"PROXY_API_KEY": KEY}),
        limits=RequestLimits(MemoryLimiter(30), 30),
        quota=Quota(),
        inference=Inference(models, policy, None, GatewayConfig()),
        policy=policy,
        usage=UsageReports(None),
        registries=[],
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


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
