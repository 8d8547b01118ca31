"""The running service as the launcher sees it: its environment, its supervisor, its log."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cli.launcher.env_file import in_shell
from cli.launcher.processes import adopt_orphans, kill_descendants
from cli.private_file import write_private

STOP_S = 9.0
PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    # HAProxy turns here while no gateway is up. Proxies of two services could both listen on it, and each would
    # get requests of the other.
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
# How Serve runs where this service is meant to be fast and closed.
SERVE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.gateway.edge:middlewares",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("vllm-chat-haproxy")),
    # Streams of a gateway that is being replaced get this long to end (`gateway.drain_timeout_s`).
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "660",
    # An idle Serve works for its own sake: its controller looks at everything ten times a second, and every replica
    # hands its figures to Ray as often, which passes them on every ten seconds.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Ray would keep the process that built the application, 145 MB that wake up a hundred times a second.
    "RAY_num_workers_soft_limit": "0",
}
FIXED = {
    # `local` starts a cluster of our own; another user's is neither joined nor stopped.
    "RAY_ADDRESS": "local",
    # Ray's own switch for a single machine: its processes then listen on loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    **SERVE,
}
QUIET = {
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}


def environment(dotenv: Mapping[str, str], run: Path) -> dict[str, str]:
    """Every variable of the service's processes. The shell's win over `dotenv`; Ray's are fixed.

    Ray and HAProxy get a scratch folder of their own, so that two services on a machine do not meet; its
    path is short, because Unix sockets in it may have 97 characters. The token that Ray's processes show
    each other is made anew.
    """
    scratch = tempfile.mkdtemp(prefix="vchat-", dir="/tmp")
    token = run / "ray_token"
    write_private(token, secrets.token_hex(32))
    proxy = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{scratch}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{scratch}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{scratch}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": scratch,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{scratch}/server-state",
        **{name: str(free_port(port)) for name, port in PORTS.items()},
    }
    own = {"RAY_TMPDIR": scratch, "RAY_AUTH_TOKEN_PATH": str(token.resolve())}
    return {**dotenv, **QUIET, **proxy, **in_shell(), **FIXED, **own}


def free_port(preferred: int) -> int:
    """`preferred`, or a port that the system picks where that one is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return preferred


class Service:
    """The supervisor and, under it, `command`; as a context manager it leaves no process behind."""

    def __init__(self, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.log = log
        self.ray_logs = log.parent / "ray_logs"
        """Where the supervisor keeps Ray's logs once the service has ended."""
        self._scratch = Path(variables["RAY_TMPDIR"])
        adopt_orphans()  # should the supervisor be killed, its processes come to us
        supervise = [sys.executable, "-m", "cli.launcher.supervisor", str(self.ray_logs), *command]
        read_end, self._pipe = os.pipe()
        with log.open("wb") as output:
            self._supervisor = subprocess.Popen(
                supervise, stdin=read_end, stdout=output, stderr=output, env=variables, start_new_session=True
            )
        os.close(read_end)

    @property
    def has_ended(self) -> bool:
        """Whether the command has ended by itself and nothing is left of it."""
        return self._supervisor.poll() is not None

    def controller_log(self) -> str:
        """What Serve's controller has written so far; it goes to a file of Ray's and not to `log`."""
        files = sorted(self._scratch.glob("ray/session_latest/logs/serve/controller_*.log"))
        return "".join(path.read_text(errors="replace") for path in files)

    def wait(self) -> None:
        """Returns when the service has ended."""
        self._supervisor.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._pipe)
        try:
            self._supervisor.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
        kill_descendants(1.0)
        shutil.rmtree(self._scratch, ignore_errors=True)
