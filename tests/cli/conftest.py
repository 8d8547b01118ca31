"""Every test of the client gets a service of its own, and nothing of the machine's environment."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.service import KEY, Service, serving


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    with serving(Service()) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.delenv("PROXY_API_KEY", raising=False)
        monkeypatch.chdir(tmp_path)
        yield running
