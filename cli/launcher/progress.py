"""How far the start is, read from the service's log and, once it answers, from GET /api/healthz."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

State = Literal["waiting", "now", "done"]
STEPS = ("Ray", "gateway", "weights", "warm-up")
RAY_STARTED = "Started a local Ray instance"
WEIGHTS_LOADED = re.compile(r"Loading weights took|Model loading took|torch\.compile|init engine|KV cache size")


@dataclass
class Health:
    """What GET /api/healthz said last: whether chats are answered, and every model's entry."""

    ready: bool = False
    models: list[dict[str, Any]] = field(default_factory=list)

    def pending(self) -> list[str]:
        """Ids of the models that are still loading."""
        return [model["id"] for model in self.models if model["status"] == "loading"]

    def failed(self) -> list[str]:
        """Ids of the models that Serve has given up."""
        return [model["id"] for model in self.models if model["status"] == "failed"]


def ask_health(base_url: str) -> Health | None:
    """The service's health, or nothing while it does not answer."""
    try:
        answer = httpx.get(f"{base_url}/api/healthz", timeout=5.0, trust_env=False)
        models = answer.json()["details"]["models"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None
    return Health(answer.status_code == httpx.codes.OK, models)


def current_step(log: str, health: Health | None) -> int:
    """Index in STEPS of what the start waits for; len(STEPS) when all models answer."""
    if health is not None:
        if health.ready and not health.pending():
            return len(STEPS)
        return STEPS.index("warm-up" if WEIGHTS_LOADED.search(log) else "weights")
    return STEPS.index("gateway" if RAY_STARTED in log else "Ray")


def state(index: int, current: int) -> State:
    """Where step `index` stands while the start waits for `current`."""
    return "done" if index < current else "now" if index == current else "waiting"
