"""The whole service as tests start it: `serve run` on a config of theirs, on ports of its own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

T = TypeVar("T")
FAST_PATH = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
START_S = 420


def wait_for(condition: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first true value of `condition`; fails the test when it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return value


@dataclass
class Service:
    """A running service."""

    url: str
    key: str
    process: psutil.Process
    log: Path

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=120)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The service's live processes whose command line contains `title`."""
        return [process for process in family(self.process) if title in command_line(process)]

    def replicas(self, model: str) -> list[psutil.Process]:
        """The live replica processes of a model that have started."""
        return [p for p in self.processes() if command_line(p).strip() == f"ray::ServeReplica:chat:replica-{model}"]

    def health(self) -> dict[str, Any]:
        try:
            return dict(httpx.get(f"{self.url}/api/healthz", timeout=10).json())
        except (httpx.HTTPError, ValueError):
            return {}

    def ready(self) -> bool:
        """Whether every model answers; fails the test at once if the service has ended."""
        if not alive(self.process):
            raise AssertionError(f"the service ended:\n{self.log.read_text()[-4000:]}")
        return self.health().get("status") == "ok"


@contextmanager
def running_service(
    folder: Path, models: list[dict[str, Any] | str], fast_path: bool = True, gateways: int = 1
) -> Iterator[Service]:
    """Start the service with these models, wait until all of them answer, and end it with all its processes."""
    port = free_port()
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "chat",
                "route_prefix": "/",
                "import_path": "serve_app.app:build",
                "args": {"models": models, "gateway": {"replicas": gateways}},
            }
        ],
    }
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    key = secrets.token_hex(16)
    log = folder / "serve.log"
    with log.open("wb") as output:
        started = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", folder / "serve_config.yaml"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), **(FAST_PATH if fast_path else {}), **free_ports(), "PROXY_API_KEY": key},
            start_new_session=True,
        )
    service = Service(f"http://127.0.0.1:{port}", key, psutil.Process(started.pid), log)
    try:
        wait_for(service.ready, "the service's start", START_S)
        yield service
    finally:
        stop(started)


def stop(started: subprocess.Popen[bytes]) -> None:
    """End a service as Ctrl+C does, and whatever is left of it after 10 seconds by force."""
    members = family(psutil.Process(started.pid))
    started.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        started.wait(10)
    for process in members:
        if alive(process):
            process.kill()
    started.wait(10)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its live descendants."""
    return [member for member in [process, *process.children(recursive=True)] if alive(member)]


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports() -> dict[str, str]:
    """Ports that Serve would otherwise share with another service on this machine."""
    first = free_port()
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(min(first, 65000)),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(min(first, 65000) + 100),
    }


def clean_environment() -> dict[str, str]:
    """The environment without what would steer the service, with a Ray of its own."""
    steering = ("PROXY_API_KEY", "DEFAULT_MODEL", "TP_SIZE", "MAX_MODEL_LEN", "RAY_", "OPENAI_", "VLLM_", "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return {**kept, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
