"""HAProxy as `vllm-chat-haproxy` runs it, over the configuration that the pinned Ray version writes."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from cli.launcher.service import SERVE
from tests.service import free_port, wait_for

OURS = SERVE["RAY_SERVE_HAPROXY_BINARY_PATH"]


def written_by_ray(folder: Path, port: int, *servers: int, host: str = "127.0.0.1", log: str = "127.0.0.1:514") -> Path:
    """Serve's configuration, with backends of the application at these ports; `log`: where the log goes, by UDP."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=port),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        stats_port=free_port(),
        metrics_port=free_port(),
        has_received_routes=True,
        has_received_servers=True,
        log_target=log,
    )
    targets = [ServerConfig(name=f"gateway-{target}", host="127.0.0.1", port=target) for target in servers]
    backend = BackendConfig(name="chat", path_prefix="/", app_name="chat", servers=targets)
    file = folder / "haproxy.cfg"
    (folder / "state").touch()
    HAProxyApi(config, {"chat": backend} if servers else {}, str(file))._generate_config_file_internal()
    return file


@contextmanager
def haproxy(file: Path, port: int, **environment: str) -> Iterator[None]:
    """HAProxy on this port while the context lasts."""
    command, variables = [OURS, "-db", "-f", str(file)], {**os.environ, **environment}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=variables)
    try:
        wait_for(lambda: _listens(port), "HAProxy's port")
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
