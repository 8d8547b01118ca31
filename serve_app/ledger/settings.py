"""Where the usage ledger is kept: the settings, the environment, and the default file."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, PositiveInt, field_validator
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from serve_app.settings import Closed, ConfigError, secret_variable

OFF = "off"
VARIABLE = "USAGE_DATABASE_URL"


class LedgerConfig(Closed):
    """The usage ledger."""

    database_url: str | None = Field(default=None, max_length=1024)
    """`postgresql://...`, `sqlite:////file` or `off`; null: a SQLite file of the user's. USAGE_DATABASE_URL wins."""
    keep_rows: PositiveInt = 100_000
    """Rows a gateway keeps in memory while the database is away; beyond it the oldest are dropped and counted."""

    @field_validator("database_url")
    @classmethod
    def _check(cls, text: str | None) -> str | None:
        if text is not None and text != OFF:
            url = _parse(text, "database_url")
            if url.password or "password" in url.query:
                raise ConfigError(f"a password belongs into {VARIABLE}_FILE, not into the settings")
        return text


def database_url(config: LedgerConfig, environment: Mapping[str, str] = os.environ) -> URL | None:
    """The ledger's database; None where it is off.

    USAGE_DATABASE_URL, or the file that USAGE_DATABASE_URL_FILE names, wins over the settings.

    Raises:
        ConfigError: what is given cannot be used; the message holds nothing of the URL.
    """
    text, source = secret_variable(environment, VARIABLE) or (config.database_url, "ledger.database_url")
    if text is None:
        return URL.create("sqlite", database=str(_default_file(environment)))
    return None if text == OFF else _parse(text, source)


def _parse(text: str, source: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"{source} is no database URL, such as postgresql://user@host/database") from None
    backend = url.drivername.partition("+")[0]
    if backend in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"{source} must begin with postgresql:// or sqlite:////, or be {OFF}")
    if not (url.database or "").startswith("/") or url.query:
        raise ConfigError(f"{source}: SQLite needs the absolute path of a file and nothing else, as sqlite:////path")
    return url.set(drivername="sqlite")


def _default_file(environment: Mapping[str, str]) -> Path:
    """In the state directory of the user, https://specifications.freedesktop.org/basedir/latest/."""
    state = environment.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "vllm-chat-backend" / "usage.db"
