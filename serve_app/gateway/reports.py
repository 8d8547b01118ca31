"""What the service says of itself: health, the list of models, metrics."""

from collections.abc import Iterable
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry

from serve_app.fleet.watch import State
from serve_app.gateway.models import Model, Models, Name
from serve_app.telemetry.metrics import exposition

FAILED = "The replicas of this model do not start; their log tells why."


class ReplicaCount(msgspec.Struct):
    running: int
    target: int


class ModelHealth(msgspec.Struct):
    id: str
    status: State
    replicas: ReplicaCount
    tasks: list[str]
    max_model_len: int | None
    error: str | None


class Details(msgspec.Struct):
    models: list[ModelHealth]


class Health(msgspec.Struct):
    """Body of `GET /api/healthz`."""

    status: Literal["ok", "degraded", "loading", "failed"]
    """ok, degraded: all models answer, or some; loading, failed: none does, and some will, or none.

    A model that is asleep answers, if later."""
    gpu_available: bool
    model_loaded: bool
    upstream_healthy: bool
    queue_size: int
    details: Details


class ModelCard(msgspec.Struct):
    """One entry of `GET /v1/models`, as vLLM shows it."""

    id: str
    created: int
    root: str
    max_model_len: int | None
    object: str = "model"
    owned_by: str = "vllm"
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


def health(models: Models) -> Health:
    """The state of every model. `queue_size` counts requests of this gateway that have no token yet."""
    reports = [_model_health(models, model) for model in models]
    answering = [report.status in {State.READY, State.ASLEEP} for report in reports]
    return Health(
        status=_status(reports, answering),
        gpu_available=models.gpu_available,
        model_loaded=any(report.status is State.READY for report in reports),
        upstream_healthy=all(answering),
        queue_size=sum(model.frontend.fleet.journal.waiting() for model in models if model.frontend),
        details=Details(reports),
    )


def model_list(names: Iterable[Name]) -> ModelList:
    return ModelList([model_card(name) for name in names])


def model_card(name: Name) -> ModelCard:
    model = name.model
    return ModelCard(
        id=name.id,
        created=model.created,
        root=model.config.adapters.get(name.id, model.config.source),
        parent=name.parent,
        max_model_len=model.frontend.max_model_len if model.frontend else None,
    )


def metrics(models: Models, own: list[CollectorRegistry]) -> bytes:
    """Prometheus text of every model that has been up, and of the gateway's own registries."""
    return exposition([*(model.frontend.metrics for model in models if model.frontend), *own])


def _status(reports: list[ModelHealth], answering: list[bool]) -> Literal["ok", "degraded", "loading", "failed"]:
    if any(answering) or not reports:
        return "ok" if all(answering) else "degraded"
    return "failed" if all(report.status is State.FAILED for report in reports) else "loading"


def _model_health(models: Models, model: Model) -> ModelHealth:
    state, replicas = models.state(model), models.replicas(model)
    return ModelHealth(
        id=model.config.id,
        status=state,
        replicas=ReplicaCount(running=replicas.running, target=replicas.target),
        tasks=list(model.description.tasks) if model.description else [],
        max_model_len=model.frontend.max_model_len if model.frontend else None,
        error=FAILED if state is State.FAILED else None,
    )
