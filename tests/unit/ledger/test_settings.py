"""Where the ledger is kept: every way to say it, and errors that name the setting and never a password."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.ledger.database import connect, place
from serve_app.ledger.settings import LedgerConfig, database_url
from serve_app.settings import ConfigError

WITH_PASSWORD = "postgresql://chat:s3cret@db.example:5433/usage?sslmode=require"


def shown(settings: str | None = None, **environment: str) -> str | None:
    url = database_url(LedgerConfig(database_url=settings), environment)
    return None if url is None else url.render_as_string(hide_password=False)


def test_the_default_is_a_file_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(XDG_STATE_HOME="/state") == "sqlite:////state/vllm-chat-backend/usage.db"
    monkeypatch.setenv("HOME", "/home/chat")
    assert shown() == "sqlite:////home/chat/.local/state/vllm-chat-backend/usage.db"
    assert shown(XDG_STATE_HOME="not/absolute") == "sqlite:////home/chat/.local/state/vllm-chat-backend/usage.db"


def test_a_url_by_settings_variable_or_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{WITH_PASSWORD}\n")
    rewritten = WITH_PASSWORD.replace("postgresql:", "postgresql+psycopg:")
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert shown("sqlite:////a/b.db", USAGE_DATABASE_URL=WITH_PASSWORD) == rewritten
    assert shown("sqlite:////a/b.db", USAGE_DATABASE_URL_FILE=str(file)) == rewritten
    assert shown(USAGE_DATABASE_URL="postgres://u@h/d") == "postgresql+psycopg://u@h/d"
    assert shown(USAGE_DATABASE_URL="postgresql+psycopg://u@h/d") == "postgresql+psycopg://u@h/d"


def test_off() -> None:
    assert shown("off") is None
    assert shown(USAGE_DATABASE_URL="off") is None
    assert shown("off", USAGE_DATABASE_URL="sqlite:////a/b.db") == "sqlite:////a/b.db"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"USAGE_DATABASE_URL": "s3cret"}, "USAGE_DATABASE_URL is no database URL, such as"),
        ({"USAGE_DATABASE_URL": "postgresql://u:s3cret@h:port/d"}, "USAGE_DATABASE_URL is no database URL, such as"),
        ({"USAGE_DATABASE_URL": "mysql://u:s3cret@h/d"}, r"USAGE_DATABASE_URL must begin with postgresql:// or"),
        ({"USAGE_DATABASE_URL": "sqlite:///s3cret.db"}, "USAGE_DATABASE_URL: SQLite needs the absolute path"),
        ({"USAGE_DATABASE_URL": "sqlite://"}, "USAGE_DATABASE_URL: SQLite needs the absolute path"),
        ({"USAGE_DATABASE_URL": "sqlite:////s3cret.db?mode=ro"}, "USAGE_DATABASE_URL: SQLite needs the absolute path"),
        ({"USAGE_DATABASE_URL_FILE": "/no/such"}, "USAGE_DATABASE_URL_FILE cannot be read: No such file or directory"),
        ({"USAGE_DATABASE_URL_FILE": os.devnull}, "USAGE_DATABASE_URL_FILE is no database URL, such as"),
        (
            {"USAGE_DATABASE_URL": "off", "USAGE_DATABASE_URL_FILE": "/x"},
            "USAGE_DATABASE_URL and USAGE_DATABASE_URL_FILE are both set: choose one",
        ),
    ],
)
def test_a_wrong_url_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        shown(**environment)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="a password belongs into USAGE_DATABASE_URL_FILE"):
        LedgerConfig(database_url=WITH_PASSWORD)
    with pytest.raises(ValidationError, match="must begin with postgresql:// or"):
        LedgerConfig(database_url="mysql://h/d")
    with pytest.raises(ValidationError, match="greater than 0"):
        LedgerConfig(keep_rows=0)


def test_a_place_for_logs_has_no_user_password_or_options() -> None:
    url = database_url(LedgerConfig(), {"USAGE_DATABASE_URL": WITH_PASSWORD + "&password=s3cret"})
    assert url is not None
    assert place(url) == "PostgreSQL db.example:5433/usage"


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    url = database_url(LedgerConfig(), {"XDG_STATE_HOME": str(tmp_path / "file")})
    assert url is not None
    with pytest.raises(ConfigError, match=r"usage\.db: Not a directory; set USAGE_DATABASE_URL to a place that can"):
        connect(url)
