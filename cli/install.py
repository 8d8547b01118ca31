"""`make install`: builds `.venv` from the lock files and repairs one that was cut off half way.

Standard library only, and syntax that an old Python can still read: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.machine import check_disk, find_python, nvidia_gpus
from cli.pip_run import InstallError, PipRun, Progress, installed_packages

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Plan:
    """What is to be in `.venv`: the project at `root` and the packages of `locks`, files in configs/locks."""

    root: Path
    platform: str
    locks: tuple[str, ...]

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / "installed.json"

    def lock_paths(self) -> list[Path]:
        return [self.root / "configs" / "locks" / name for name in self.locks]

    def packages(self) -> dict[str, str]:
        """Every locked package: normalised name to version."""
        lines = [line for path in self.lock_paths() for line in path.read_text().splitlines()]
        pinned = [line.split("==") for line in lines if "==" in line]
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}

    def state(self) -> dict[str, str]:
        """What a finished install is remembered by: where it is, for what, and the files it was made from."""
        files = [*self.lock_paths(), self.root / "pyproject.toml"]
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return {"root": str(self.root), "platform": self.platform, **digests}


def read_stamp(plan: Plan) -> dict[str, str]:
    """The state that the last finished install left, or nothing."""
    try:
        stamp: dict[str, str] = json.loads(plan.stamp.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def is_complete(plan: Plan) -> bool:
    """Whether `.venv` holds what `plan` asks for: the stamp agrees and every locked package is there."""
    stamp = read_stamp(plan)
    if any(stamp.get(key) != value for key, value in plan.state().items()) or not plan.python.exists():
        return False
    have = installed_packages(plan.venv)
    return all(have.get(name) == version for name, version in plan.packages().items())


def prepare_venv(plan: Plan, progress: Progress) -> None:
    """Makes `.venv`, or keeps the one that was made here for this platform, less what is broken in it."""
    origin = plan.venv / "origin.json"
    wanted = json.dumps({"root": str(plan.root), "platform": plan.platform})
    kept = origin.is_file() and origin.read_text() == wanted
    if kept and runs(plan.python):
        progress.phase("checking what an earlier install left")
        remove_half_installed(plan.venv)
        return
    check_disk(plan.root, plan.platform)
    python = find_python()
    progress.phase("making .venv")
    made = subprocess.run(
        [python, "-m", "venv", "--clear", str(plan.venv)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise InstallError(f"could not make .venv: {(made.stderr or made.stdout).strip().splitlines()[-1]}")
    origin.write_text(wanted)


def runs(python: Path) -> bool:
    """Whether the interpreter of a `.venv` still starts and finds its pip."""
    try:
        probe = subprocess.run([python, "-I", "-c", "import pip"], capture_output=True, check=False)
    except OSError:
        return False
    return probe.returncode == 0


def remove_half_installed(venv: Path) -> None:
    """Makes pip forget packages that lack a file they list, so that it installs them anew."""
    for site in venv.glob("lib/python*/site-packages"):
        for leftover in site.glob("~*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for info in site.glob("*.dist-info"):
            record = info / "RECORD"
            files = record.read_text().splitlines() if record.is_file() else []
            names = [line.rsplit(",", 2)[0].strip('"') for line in files]
            if not names or not all((site / name).exists() for name in names):
                shutil.rmtree(info)


def install_packages(plan: Plan, pip: PipRun) -> None:
    """Installs every locked package that is missing, then the project itself, editable."""
    locals_first = [f"{name}=={version}" for name, version in plan.packages().items() if "+" in version]
    for requirement in locals_first:
        install_local_version(requirement, pip)
    locks = [argument for path in plan.lock_paths() for argument in ("--requirement", str(path))]
    pip.install("packages", locks, plan.packages())
    pip.install("the project", ["--no-build-isolation", "--editable", str(plan.root)], {})


def install_local_version(requirement: str, pip: PipRun) -> None:
    """Installs a build such as torch==2.13.0+cpu from pip's own sources, or else from PyTorch's index."""
    try:
        pip.install(requirement, [requirement], {})
    except InstallError:
        if not pip.lacks(requirement):
            raise
        pytorch = ["--index-url", PYTORCH_CPU_INDEX, "--timeout", "15", "--retries", "1", requirement]
        try:
            pip.install(f"{requirement} from {PYTORCH_CPU_INDEX}", pytorch, {})
        except InstallError as error:
            raise InstallError(
                f"{requirement} is in none of pip's sources and {PYTORCH_CPU_INDEX} gave none; "
                f"put its wheel into a folder and run PIP_FIND_LINKS=/that/folder make install"
            ) from error


@contextmanager
def exclusive(path: Path, progress: Progress) -> Iterator[int]:
    """Holds a lock file. pip inherits it, so what a killed install left running is waited for."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.phase("another install is at work here, waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield held.fileno()


def install(plan: Plan, progress: Progress) -> None:
    """Brings `.venv` to `plan`, or does nothing where it is there already. Raises InstallError."""
    if is_complete(plan):
        progress.done(f".venv is up to date ({plan.platform})")
        return
    run = plan.root / ".run"
    with exclusive(run / "install.lock", progress) as lock:
        earlier = read_stamp(plan)
        prepare_venv(plan, progress)
        install_packages(plan, PipRun(plan.venv, run / "install.log", lock, progress))
        same_venv = all(earlier.get(key) == plan.state()[key] for key in ("root", "platform"))
        plan.stamp.write_text(json.dumps({**(earlier if same_venv else {}), **plan.state()}))
    progress.done(f".venv is ready ({plan.platform}, {len(plan.packages())} packages)")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 installed, 1 could not (one line says what to do), 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python3 -m cli.install", description=__doc__)
    parser.add_argument("--extra", choices=("auto", "cpu", "gpu"), default="auto", help="what vLLM is built for")
    parser.add_argument("--peers", action="store_true", help="also what `make compare` measures against")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the checkout")
    args = parser.parse_args(argv)
    platform = args.extra if args.extra != "auto" else "gpu" if nvidia_gpus() else "cpu"
    locks = (f"{platform}.txt", "dev.txt", *(["peers.txt"] if args.peers else []))
    progress = Progress(sys.stdout)
    try:
        install(Plan(args.root.resolve(), platform, locks), progress)
    except InstallError as error:
        progress.clear()
        sys.stderr.write(f"make install: {error}\n")
        return 1
    except KeyboardInterrupt:
        progress.clear()
        sys.stderr.write("make install: stopped; run it again to go on from here\n")
        return 130
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main())
