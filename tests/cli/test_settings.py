"""Address and key from the environment."""

from pathlib import Path

import pytest

from cli.errors import SettingsError
from cli.settings import load_settings


def test_defaults(tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path)
    assert settings.base_url == "http://127.0.0.1:8787/v1"
    assert settings.root_url == "http://127.0.0.1:8787"
    assert settings.api_key is None
    assert settings.is_local


@pytest.mark.parametrize(
    ("environ", "key", "source"),
    [
        ({"OPENAI_API_KEY": "a", "PROXY_API_KEY": "b"}, "a", "OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": " ", "PROXY_API_KEY": " b\n"}, "b", "PROXY_API_KEY"),
        ({}, "c", "PROXY_API_KEY in ./.env"),
        ({"OPENAI_BASE_URL": "http://localhost:1/v1"}, "c", "PROXY_API_KEY in ./.env"),
        ({"OPENAI_BASE_URL": "https://elsewhere.example/v1"}, None, ""),
        ({"OPENAI_BASE_URL": "https://elsewhere.example/v1", "PROXY_API_KEY": "b"}, "b", "PROXY_API_KEY"),
    ],
)
def test_where_the_key_comes_from(tmp_path: Path, environ: dict[str, str], key: str | None, source: str) -> None:
    (tmp_path / ".env").write_text('# written by make run\nPROXY_API_KEY="c"\n')
    settings = load_settings(environ, tmp_path)
    assert (settings.api_key, settings.key_source) == (key, source)


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    assert "secret" not in repr(load_settings({"OPENAI_API_KEY": "secret"}, tmp_path))


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://127.0.0.1:9/v1/", "http://127.0.0.1:9"),
        ("http://[::1]:9/v1", "http://[::1]:9"),
        ("https://host/prefix/v1", "https://host/prefix"),
        ("https://host/prefix", "https://host/prefix"),
    ],
)
def test_root_url(tmp_path: Path, url: str, root: str) -> None:
    assert load_settings({"OPENAI_BASE_URL": url}, tmp_path).root_url == root


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"])
def test_an_address_that_cannot_be_used(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL is not an http address.$"):
        load_settings({"OPENAI_BASE_URL": url}, tmp_path)


def test_no_password_in_the_address(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL carries a password.$"):
        load_settings({"OPENAI_BASE_URL": "http://me:secret@host/v1"}, tmp_path)


def test_a_key_with_a_line_end_inside(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY holds characters that no key has.$"):
        load_settings({"OPENAI_API_KEY": "a\nb"}, tmp_path)
