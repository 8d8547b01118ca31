"""Where the service is and which key opens it, from the environment; never from the command line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cli.errors import SettingsError

DEFAULT_BASE_URL = "http://127.0.0.1:8787/v1"
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Address and key. `key_source` says in words where the key was found, empty when there is none."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    key_source: str = ""

    @property
    def root_url(self) -> str:
        """The address without `/v1`, where `/api/healthz` lives."""
        return self.base_url.removesuffix("/v1")

    @property
    def is_local(self) -> bool:
        """Whether the service runs on this machine, so `make run` can start it and no proxy may see it."""
        return urlsplit(self.base_url).hostname in LOCAL_HOSTS


def load_settings(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> Settings:
    """Read OPENAI_BASE_URL and the key: OPENAI_API_KEY, else PROXY_API_KEY, else PROXY_API_KEY of ./.env.

    The file is asked only for a service on this machine: its key is of no use, and no business, elsewhere.
    Raises SettingsError for a value that cannot be used.
    """
    base_url = _checked_url(environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_BASE_URL)
    for name in ("OPENAI_API_KEY", "PROXY_API_KEY"):
        if key := environ.get(name, "").strip():
            return Settings(base_url, _checked_key(key, name), name)
    local = Settings(base_url)
    env_file = (directory or Path.cwd()) / ".env"
    if local.is_local and (key := _key_of(env_file)):
        return Settings(base_url, _checked_key(key, "PROXY_API_KEY"), "PROXY_API_KEY in ./.env")
    return local


def _checked_url(url: str) -> str:
    advice = f"Give it the form {DEFAULT_BASE_URL}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError("OPENAI_BASE_URL is not an http address.", advice)
    if parts.username or parts.password:
        raise SettingsError("OPENAI_BASE_URL carries a password.", "Put the key in OPENAI_API_KEY instead.")
    return url.rstrip("/")


def _checked_key(key: str, name: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{name} holds characters that no key has.", "Copy the key again.")
    return key


def _key_of(env_file: Path) -> str:
    if not env_file.is_file():
        return ""
    from dotenv import dotenv_values  # noqa: PLC0415  only a checkout has the file, so only it pays

    try:
        return (dotenv_values(env_file, interpolate=False).get("PROXY_API_KEY") or "").strip()
    except OSError as error:
        raise SettingsError(f"./.env cannot be read: {error.strerror}.", "Run as the user who owns it.") from None
