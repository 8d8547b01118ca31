"""One service for all tests that need one: scripted models for pace and faults, real ones on CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import load_model
from tests.models import write_embedding_model
from tests.service import Service, launched_service

# Keys of the service, with the options of `vllm-chat keys create`.
KEYS: dict[str, list[str]] = {
    "plain": [],
    "other": [],
    "scoped": ["--models", "scripted", "--endpoints", "chat*,models"],
    "slow": ["--rpm", "3"],
    "small": ["--tpm", "400", "--rpm", "1000"],
    "narrow": ["--concurrent", "2"],
    "short": ["--max-tokens", "20", "--context", "100"],
}


def demo(name: str, **settings: Any) -> dict[str, Any]:
    """The demo model under another name, with a small share of the machine."""
    return {**load_model("demo").model_dump(), "id": name, "num_cpus": 0, **settings}


def narrow() -> dict[str, Any]:
    """A scripted model that computes one request at a time."""
    settings = demo("narrow", engine="scripted")
    return {**settings, "vllm_args": {**settings["vllm_args"], "max_num_seqs": 1}}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Models: scripted (three replicas), demo, demo-2 (two replicas), demo-tp (tensor parallel 2), embed, narrow.

    Its queues are short, and `narrow` computes one request at a time, so that tests can fill them. It is started as by
    `make run` and ended as by Ctrl+C; that nothing is left then is part of this fixture.
    """
    folder: Path = tmp_path_factory.mktemp("service")
    embed = write_embedding_model(folder / "embed")
    models: list[dict[str, Any] | str] = [
        demo("scripted", engine="scripted", replicas=3),
        demo("demo"),
        demo("demo-2", replicas=2),
        demo("demo-tp", tensor_parallel_size=2),
        {
            "id": "embed",
            "source": str(embed),
            "num_cpus": 0,
            "env": load_model("demo").env,
            "vllm_args": {"enforce_eager": True, "max_num_seqs": 16},
        },
        narrow(),
    ]
    # Tests send many wrong keys, all from one address.
    gateway = {"admission": {"max_waiting": 20, "max_wait_s": 60}, "keys": {"failures_per_minute": 0}}
    with launched_service(folder, models, gateway=gateway, keys=KEYS) as running:
        yield running
