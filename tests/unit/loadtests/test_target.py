"""Where the load goes: address, key and model from the environment, with a reason when there is none."""

import asyncio
from pathlib import Path

import pytest

from loadtests.stream import Plan, run_load
from loadtests.target import Target, TargetError, find_target
from tests.unit.loadtests.sse_server import KEY, Script, serving


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "PROXY_API_KEY", "DEFAULT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_key_comes_from_dotenv_last(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(f"PROXY_API_KEY={KEY}\n")
    with serving(Script()) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert find_target() == Target(url, "loopback", KEY)
        monkeypatch.setenv("PROXY_API_KEY", "wrong")
        with pytest.raises(TargetError, match="refused the key"):
            find_target()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert find_target().key == KEY


def test_default_model_is_used_where_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Script(models=("first", "second"))) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert find_target().model == "first"
        monkeypatch.setenv("DEFAULT_MODEL", "second")
        assert find_target().model == "second"
        monkeypatch.setenv("DEFAULT_MODEL", "/a/directory")
        assert find_target().model == "first"
        with pytest.raises(TargetError, match=r"no model 'third'. It serves: first, second\."):
            find_target("third")


def test_a_key_never_shows() -> None:
    assert KEY not in repr(Target("http://x/v1", "m", KEY))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_service_on_this_machine_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Script()) as url:
        target = find_target(base_url=url)
        load = asyncio.run(run_load(target, Plan(concurrency=1, requests=1)))
    assert (target.model, load.errors) == ("loopback", ())


def test_nobody_there_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Script()) as url:
        pass
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(TargetError, match=url):
        find_target()
