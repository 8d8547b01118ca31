"""What the service answers about itself: its models, its health and its usage."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

import msgspec


class Replicas(msgspec.Struct):
    """Replicas of one model that run, and how many should."""

    running: int = 0
    target: int = 0


class ModelHealth(msgspec.Struct):
    """One model as `/api/healthz` sees it."""

    id: str
    status: str = "unknown"
    replicas: Replicas = msgspec.field(default_factory=Replicas)
    tasks: list[str] = []
    max_model_len: int | None = None
    error: str | None = None


class Details(msgspec.Struct):
    """The part of a Health about single models."""

    models: list[ModelHealth] = []


class Health(msgspec.Struct):
    """The answer of `/api/healthz`."""

    status: str
    gpu_available: bool = False
    model_loaded: bool = False
    upstream_healthy: bool = False
    queue_size: int = 0
    details: Details = msgspec.field(default_factory=Details)


class ModelCard(msgspec.Struct):
    """One entry of `/v1/models`."""

    id: str
    max_model_len: int | None = None


class ModelCards(msgspec.Struct):
    """The answer of `/v1/models`."""

    data: list[ModelCard]


class Total(msgspec.Struct):
    """What one day, key or model used; `failed`, `aborted` and `refused` are part of `requests`."""

    group: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    failed: int
    aborted: int
    refused: int
    ttft_avg_s: float | None


class Gap(msgspec.Struct):
    """Requests that the ledger lacks: `rows` given up before `at`; null: those that ended after `at`, in a crash."""

    at: datetime
    rows: int | None


class Usage(msgspec.Struct):
    """The answer of `/api/usage`."""

    by: str
    key: str | None
    model: str | None
    since: datetime | None
    until: datetime | None
    data: list[Total]
    total: Total
    gaps: list[Gap]


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. `tasks` and `status` are None where the service does not tell."""

    id: str
    max_model_len: int | None
    tasks: tuple[str, ...] | None
    status: str | None

    @classmethod
    def of(cls, card: ModelCard, health: ModelHealth | None) -> Self:
        """Join what `/v1/models` and `/api/healthz` say about one model."""
        if health is None:
            return cls(card.id, card.max_model_len, None, None)
        return cls(card.id, card.max_model_len or health.max_model_len, tuple(health.tasks), health.status)

    @property
    def chats(self) -> bool:
        """Whether it can answer a chat, as far as known."""
        return self.tasks is None or "generate" in self.tasks


def default_model(models: list[Model]) -> Model | None:
    """Return the model of a chat that names none: the first that can chat."""
    return next((model for model in models if model.chats), None)
