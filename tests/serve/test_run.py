"""`make run` as a newcomer meets it: what it shows leads to a first token, and its end leaves nothing."""

import json
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from cli.launcher import env_file
from cli.launcher.progress import STEPS
from serve_app.config import DEMO_MODEL
from tests.serve.test_demo import ANSWER, QUESTION
from tests.service import Service, clean_environment, launched_service, wait_for

PARTS = (
    "raylet",
    "gcs_server",
    "haproxy",
    "ray::ServeController",
    "ray::ServeReplica:chat:gateway",
    "VLLM::EngineCore",
)


@pytest.fixture
def shown(service: Service) -> str:
    """What `make run` has printed once the service is ready."""
    return wait_for(lambda: "curl" in (text := service.output.read_text()) and text, "the last line of `make run`")


def folder_of(service: Service) -> Path:
    """Where `make run` was typed."""
    return service.output.parent


def address(shown: str) -> str:
    found = re.search(r"^address +(\S+) *$", shown, re.MULTILINE)
    assert found is not None
    return found[1]


def first_token(base_url: str, key: str, model: str) -> str:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60) as client:
        messages: Any = [{"role": "user", "content": QUESTION}]
        stream = client.chat.completions.create(model=model, messages=messages, stream=True)
        return next(filter(None, (chunk.choices[0].delta.content for chunk in stream)))


def vllm_chat(service: Service, shown: str, *arguments: str) -> str:
    """What the client prints where `make run` was typed; the port is the one thing that differs from the default."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=folder_of(service),
        env={**clean_environment(), "OPENAI_BASE_URL": address(shown)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_address_and_the_written_key_give_a_first_token(service: Service, shown: str) -> None:
    dotenv = folder_of(service) / ".env"
    assert stat.S_IMODE(dotenv.stat().st_mode) == 0o600
    assert re.search(r"^key +PROXY_API_KEY in \.env *$", shown, re.MULTILINE)
    assert first_token(address(shown), env_file.read(dotenv)["PROXY_API_KEY"], "demo")


def test_every_step_of_the_start_was_shown(shown: str) -> None:
    assert set(re.findall(r"^(\S+): ready after \d+ s$", shown, re.MULTILINE)) == set(STEPS)


def test_the_printed_line_is_answered(service: Service, shown: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["sh", "-c", shown.splitlines()[-1]],
        cwd=folder_of(service),
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"object":"chat.completion"' in done.stdout


def test_the_client_finds_address_and_key(service: Service, shown: str) -> None:
    asked = ("chat", "--model", "demo", "--temperature", "0", "--no-stats", "--once", QUESTION)
    assert vllm_chat(service, shown, *asked) == f"{ANSWER}\n"
    assert json.loads(vllm_chat(service, shown, "health", "--json"))["status"] == "ok"


@pytest.mark.parametrize("part", PARTS)
def test_what_has_to_be_gone_in_the_end_is_there_now(service: Service, part: str) -> None:
    """The service's fixture looks after its end: exit code 0, and each process gone."""
    assert service.processes(part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_process_outlives_make_run(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with launched_service(tmp_path, ["demo"]) as service:
        assert all(service.processes(part) for part in PARTS)
        assert first_token(f"{service.url}/v1", service.key, "demo")
        assert service.end(number) == code


@pytest.mark.slow
def test_default_model_may_be_a_directory(tmp_path: Path) -> None:
    """Without a model file vLLM decides everything itself, and compiles."""
    mine = shutil.copytree(DEMO_MODEL, tmp_path / "my model")
    with launched_service(tmp_path, ["llama-3.1-8b"], variables={"DEFAULT_MODEL": str(mine)}) as service:
        assert first_token(f"{service.url}/v1", service.key, "my-model")
