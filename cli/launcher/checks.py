"""What must hold before anything is started: a free port, enough memory, a model that exists."""

import errno
import socket
import subprocess
from pathlib import Path

import psutil
import yaml

from cli.launcher.errors import StartError


def read_address(config: Path) -> tuple[str, int]:
    """Host and port that the Serve config file gives its proxy."""
    try:
        document = yaml.safe_load(config.read_text())
        options = document.get("http_options") or {}
        return str(options.get("host", "127.0.0.1")), int(options.get("port", 8000))
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise StartError(f"cannot read {config}: {' '.join(str(error).split())}") from error


def check_port(host: str, port: int, config: Path) -> None:
    """Raises StartError where another process listens on the address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
            owner = listener(port)
            raise StartError(
                f"port {port} is in use{owner}; end that, or change http_options.port in {config}"
            ) from error


def listener(port: int) -> str:
    """` by NAME (process ID)` of whoever listens on `port`; nothing where this user may not see it."""
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f" by {psutil.Process(found.pid).name()} (process {found.pid})"
    except psutil.Error:
        return ""
    return ""


def check_memory(needed_gib: float) -> None:
    """Raises StartError where less than `needed_gib` GiB of memory is available."""
    available = psutil.virtual_memory().available / 2**30
    if available < needed_gib:
        raise StartError(
            f"needs {needed_gib:g} GiB of available memory, found {available:.1f} GiB; "
            "end other programs, or lower the bound with --memory"
        )


def check_models(command: list[str], environment: dict[str, str]) -> None:
    """Raises StartError with the last line of `command`, which reads the config, its models and variables."""
    checked = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if checked.returncode:
        lines = checked.stderr.strip().splitlines()
        raise StartError(lines[-1] if lines else f"{' '.join(command)} failed without a word")
