"""What this machine offers an install: an interpreter, GPUs, free disk. Standard library only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cli.pip_run import InstallError

DRIVER = Path("/proc/driver/nvidia/gpus")
SUPPORTED = ("3.11", "3.12", "3.13")
DISK_GB = {"cpu": 5, "gpu": 20}
"""Free space a first install takes: the packages, and pip's copies while it unpacks them."""


def nvidia_gpus(driver: Path = DRIVER) -> int:
    """How many GPUs the NVIDIA driver names, or `nvidia-smi -L` where /proc does not show it."""
    entries = list(driver.iterdir()) if driver.is_dir() else []
    if entries:
        return len(entries)
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return 0 if listing.returncode else sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def visible_gpus(environment: Mapping[str, str], driver: Path = DRIVER) -> int:
    """How many of them a process with these variables may use."""
    gpus, visible = nvidia_gpus(driver), environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    return min(gpus, len([name for name in visible.split(",") if name.strip() not in {"", "-1", "NoDevFiles"}]))


def find_python() -> str:
    """The interpreter for `.venv`: 3.11, which the locks are resolved for, before newer ones."""
    names = [shutil.which(f"python{version}") for version in SUPPORTED]
    candidates = [path for path in [*names, sys.executable] if path]
    if sys.version_info[:2] == (3, 11):
        candidates.insert(0, sys.executable)
    without_venv = ""
    probe = "import sys; print('%d.%d' % sys.version_info[:2]); import ensurepip, venv; print('venv')"
    for path in candidates:
        found = subprocess.run([path, "-c", probe], capture_output=True, text=True, check=False)
        words = found.stdout.split()
        if words and words[0] in SUPPORTED:
            if "venv" in words:
                return path
            without_venv = words[0]
    if without_venv:
        raise InstallError(
            f"Python {without_venv} has no venv module; install it (apt install python{without_venv}-venv)"
        )
    mine = ".".join(str(part) for part in sys.version_info[:2])
    raise InstallError(f"needs Python 3.11, 3.12 or 3.13, found {mine}; install python3.11")


def check_disk(root: Path, platform: str) -> None:
    """Raises InstallError where a first install would fill the disk."""
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < DISK_GB[platform]:
        raise InstallError(f"needs {DISK_GB[platform]} GB of free disk at {root}, found {free_gb:.1f}")
