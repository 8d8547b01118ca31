"""`serve run` alone: without the launcher, its variables, or a key; two gateways."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import demo
from tests.service import Service, running_service


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("plain")
    with running_service(folder, [demo("scripted", engine="scripted")], plain=True, gateway={"replicas": 2}) as service:
        yield service


@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_loopback_without_a_key(plain: Service, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "[[answer: plain tea]]"}], "stream": stream}
    for _ in range(8):  # whichever gateway gets it
        response = httpx.post(f"{plain.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 200
        assert '"finish_reason":"stop"' in response.text
