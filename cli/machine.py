"""What this machine offers an install: an interpreter, GPUs, free disk. Standard library only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cli.pip_run import InstallError

SUPPORTED = ("3.11", "3.12", "3.13")
DISK_GB = {"cpu": 5, "gpu": 20}
"""Free space a first install takes: the packages, and pip's copies while it unpacks them."""


def has_nvidia_gpu(driver: Path = Path("/proc/driver/nvidia/gpus")) -> bool:
    """Whether the NVIDIA driver, or `nvidia-smi -L` where /proc does not show it, names a GPU."""
    if driver.is_dir() and any(driver.iterdir()):
        return True
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


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
