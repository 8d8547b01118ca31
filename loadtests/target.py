"""Finds the service under load: its address, its key and the model to ask."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from dotenv import dotenv_values

from cli.settings import LOCAL_HOSTS

DEFAULT_BASE_URL = "http://127.0.0.1:8787/v1"


class TargetError(Exception):
    """The service cannot be put under load; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI API. `base_url` ends in `/v1`; the key never shows in a repr."""

    base_url: str
    model: str = ""
    key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The authorization header, or none where the service has no key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, where no proxy of the environment leads to it."""
        return urlsplit(self.base_url).hostname in LOCAL_HOSTS


def find_target(model: str | None = None, base_url: str | None = None) -> Target:
    """The running service, at OPENAI_BASE_URL unless told, with the model to use. Raises TargetError."""
    address = base_url or os.environ.get("OPENAI_BASE_URL", DEFAULT_BASE_URL)
    target = Target(address.rstrip("/"), key=find_key())
    served = list_models(target)
    if model and model not in served:
        raise TargetError(f"The service has no model {model!r}. It serves: {', '.join(served)}.")
    default = os.environ.get("DEFAULT_MODEL", "")
    return replace(target, model=model or (default if default in served else served[0]))


def find_key() -> str | None:
    """OPENAI_API_KEY, else PROXY_API_KEY from the environment, else PROXY_API_KEY from ./.env."""
    from_environment = os.environ.get("OPENAI_API_KEY") or os.environ.get("PROXY_API_KEY")
    return from_environment or dotenv_values(Path(".env")).get("PROXY_API_KEY")


def list_models(target: Target) -> list[str]:
    """Model ids of the service, at least one. Raises TargetError."""
    try:
        response = httpx.get(
            f"{target.base_url}/models", headers=target.headers, timeout=10, trust_env=not target.is_local
        )
    except httpx.HTTPError as error:
        reason = type(error).__name__
        raise TargetError(f"Nothing answers at {target.base_url} ({reason}). Start it: make run") from error
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise TargetError("The service refused the key. Set OPENAI_API_KEY, or run where .env is.")
    if response.status_code != httpx.codes.OK:
        raise TargetError(f"{target.base_url}/models answered HTTP {response.status_code}.")
    models = [str(model["id"]) for model in response.json()["data"]]
    if not models:
        raise TargetError("The service has no model ready yet. Look at: vllm-chat health")
    return models
