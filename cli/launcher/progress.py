"""How far the start is, read from the service's log and, once it answers, from GET /api/healthz."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from cli.launcher.errors import StartError

State = Literal["waiting", "now", "done"]
STEPS = ("Ray", "gateway", "weights", "warm-up")
RAY_STARTED = "Started a local Ray instance"
BUILD_FAILED = "Exception importing application"
REPLICA_FAILED = "Exception in Replica("
REPLICA_TRIES = 3
"""So often does Serve start a replica before it gives a deployment up."""
WEIGHTS_LOADED = re.compile(r"Loading weights took|Model loading took|torch\.compile|init engine|KV cache size")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
ERROR_LINE = re.compile(r"(?:^|[\s.])((?:[A-Z]\w*(?:Error|Exception)): .+)")


@dataclass
class Health:
    """What GET /api/healthz said last: whether chats are answered, and every model's entry."""

    ready: bool = False
    models: list[dict[str, Any]] = field(default_factory=list)

    def pending(self) -> list[str]:
        """Ids of the models that are still loading."""
        return [model["id"] for model in self.models if model["status"] == "loading"]


def ask_health(base_url: str) -> Health | None:
    """The service's health, or nothing while it does not answer. Raises StartError for a failed model."""
    try:
        answer = httpx.get(f"{base_url}/api/healthz", timeout=5.0, trust_env=False)
        models = answer.json()["details"]["models"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None
    for model in models:
        if model["status"] == "failed":
            reason = " ".join(str(model.get("error") or "no reason given").split())
            raise StartError(f"model {model['id']} failed to start: {reason}")
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


def deploy_failure(log: str, controller_log: str) -> str | None:
    """Why Serve gave the application up, which it says in its own log only and does not end for."""
    if BUILD_FAILED in controller_log:
        return find_error(log)  # the builder's error arrives a little later than the controller's word
    if controller_log.count(REPLICA_FAILED) >= REPLICA_TRIES:
        return find_error(controller_log)
    return None


def find_error(log: str) -> str | None:
    """The last line of a log that names an error, from that name on."""
    for line in reversed(log.splitlines()):
        if found := ERROR_LINE.search(ANSI.sub("", line).strip()):
            return found[1]
    return None


def last_words(log: str) -> str:
    """The last error of a log, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return find_error(log) or (ANSI.sub("", lines[-1]) if lines else "it wrote nothing")
