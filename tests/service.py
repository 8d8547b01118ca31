"""The whole service as tests start it: `serve run` on a config of theirs, on ports of its own."""

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from cli.launcher import env_file
from cli.launcher.service import environment

T = TypeVar("T")
START_S = 600
END_S = 10
"""In which `make run` ends, whatever ends it."""
NOT_KEPT = httpx.Limits(max_keepalive_connections=0)


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 60, every: float = 0.05) -> T:
    """The first true value of `condition`, asked `every` so many seconds; fails the test when it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(every)
    return value


@dataclass(frozen=True)
class Gateway:
    """A live gateway, and the port of its own at which HAProxy reaches it."""

    process: psutil.Process
    url: str


@dataclass
class Service:
    """A running service."""

    url: str
    key: str
    process: psutil.Process
    log: Path
    """What the service writes; the keys file and the ledger are beside it."""
    output: Path
    """What is shown to whoever has started it."""
    keys: dict[str, str] = field(default_factory=dict)
    """Keys of the keys file, by name."""
    loading: frozenset[str] = frozenset()
    """Models that are never ready."""
    variables: dict[str, str] = field(default_factory=dict)
    """Its environment."""
    _asker: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10, limits=NOT_KEPT))
    """To ask again and again: a client of its own for each question would cost 30 ms of CPU time."""

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=120)

    @property
    def keys_file(self) -> Path:
        return self.log.with_name("keys.yaml")

    def new_key(self, name: str, *options: str) -> str:
        """A key that is added to the keys file now, once the service takes it; options as in `running_service`."""
        key = make_key(self.keys_file, name, options)
        wait_for(lambda: self.takes(key), "the reading of the keys file", 10)
        return key

    def takes(self, key: str) -> bool:
        """Whether a key opens the service. /metrics tells without using up the key's limits."""
        headers = {"authorization": f"Bearer {key}"}
        return self._asker.get(f"{self.url}/metrics", headers=headers).status_code in {200, 403}

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The service's live processes whose command line contains `title`."""
        return [process for process in family(self.process) if title in command_line(process)]

    def replicas(self, model: str) -> list[psutil.Process]:
        """The live replica processes of a model that have started."""
        return [p for p in self.processes() if command_line(p).strip() == f"ray::ServeReplica:chat:replica-{model}"]

    def health(self) -> dict[str, Any]:
        try:
            return dict(self._asker.get(f"{self.url}/api/healthz").json())
        except (httpx.HTTPError, ValueError):
            return {}

    def gateways(self) -> list[Gateway]:
        return [
            Gateway(process, f"http://127.0.0.1:{listening.laddr.port}")
            for process in self.processes()
            if command_line(process).strip() == "ray::ServeReplica:chat:gateway"
            for listening in process.net_connections("tcp4")
            if listening.status == psutil.CONN_LISTEN and 30000 <= listening.laddr.port < 31000
        ]

    def up(self, model: str, replicas: int) -> bool:
        """Whether so many replicas of a model are up, and the gateway counts none that is dead."""
        models = self.health().get("details", {}).get("models", [])
        running = [m["replicas"]["running"] for m in models if m["id"] == model]
        return running == [len(self.replicas(model))] and running[0] >= replicas

    def deploy(self, models: list[dict[str, Any] | str], **arguments: Any) -> None:
        """Edit the config, `gateway` and what else stands beside the models, and have it deployed as users do."""
        file = self.log.with_name("serve_config.yaml")
        config = yaml.safe_load(file.read_text())
        config["applications"][0]["args"] |= {"models": models, **arguments}
        file.write_text(yaml.safe_dump(config))
        serve = Path(sys.executable).with_name("serve")
        command = [serve, "deploy", file, "--address", self._dashboard()]
        subprocess.run(command, check=True, capture_output=True, env={**clean_environment(), **self.variables})

    def _dashboard(self) -> str:
        """The address of Ray's dashboard, which takes new configs."""
        (dashboard,) = self.processes("dashboard/dashboard.py")
        ports = {each.laddr.port for each in dashboard.net_connections("tcp4") if each.status == psutil.CONN_LISTEN}
        for url in (f"http://127.0.0.1:{port}" for port in ports):
            with contextlib.suppress(httpx.HTTPError):
                if self._asker.get(f"{url}/api/gcs_healthz").is_success:
                    return url
        raise AssertionError(f"no dashboard answers on {ports}")

    def ready(self) -> bool:
        """Whether every model answers that ever will; fails the test at once if the service has ended."""
        if not alive(self.process):
            raise AssertionError(f"the service ended:\n{self.output.read_text()[-4000:]}")
        models = self.health().get("details", {}).get("models", [])
        return bool(models) and {m["id"] for m in models if m["status"] != "ready"} == self.loading

    def end(self, number: signal.Signals) -> int | None:
        """Send a signal to the process that was started; its exit code, when nothing of the service is left."""
        all_of_it = self.processes()
        titles = ", ".join(map(command_line, all_of_it))
        self.process.send_signal(number)
        wait_for(lambda: not any(map(alive, all_of_it)), f"the end of {titles}", END_S)
        return self.process.wait()


@contextmanager
def launched_service(
    folder: Path,
    models: list[dict[str, Any] | str],
    *,
    gateway: dict[str, Any] | None = None,
    keys: dict[str, Sequence[str]] | None = None,
    variables: dict[str, str] | None = None,
) -> Iterator[Service]:
    """Start the service as `make run` does in `folder`, wait until all models answer, and end it as Ctrl+C does.

    The arguments are those of `running_service`.
    """
    port, run = free_port(), folder / ".run"
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(serve_config(port, models, gateway or {})))
    run.mkdir()
    own, made = files_of(run, keys or {})
    output = folder / "output"
    with output.open("wb") as stream:
        process = psutil.Popen(
            [sys.executable, "-m", "cli.launcher"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), **own, **(variables or {})},
            start_new_session=True,
        )
    service = Service(f"http://127.0.0.1:{port}", "", process, run / "serve.log", output, made)
    try:
        wait_for(service.ready, "the service's start", START_S, every=1)  # asking costs what it waits for
        service.key = env_file.read(folder / ".env")[env_file.KEY]
        yield service
    finally:
        code = service.end(signal.SIGINT) if alive(process) else None
    assert code in {0, None}


@contextmanager
def running_service(
    folder: Path,
    models: list[dict[str, Any] | str],
    *,
    plain: bool = False,
    loading: Collection[str] = (),
    gateway: dict[str, Any] | None = None,
    keys: dict[str, Sequence[str]] | None = None,
    variables: dict[str, str] | None = None,
) -> Iterator[Service]:
    """Start `serve run` with these models, wait until all of them answer, and end it with all its processes.

    Args:
        folder: for its files.
        models: what it serves.
        plain: as `serve run` alone starts it, without the launcher's variables and without a key.
        loading: models that will never answer.
        gateway: settings of the gateway.
        keys: names of keys, with the options of `vllm-chat keys create` for each.
        variables: environment of the service.
    """
    port = free_port()
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump(serve_config(port, models, gateway or {})))
    key = "" if plain else secrets.token_hex(16)
    scratch = tempfile.TemporaryDirectory(prefix="vchat-", dir="/tmp")
    ray = {"RAY_TMPDIR": scratch.name} if plain else {**environment({}, folder), "PROXY_API_KEY": key}
    own, made = files_of(folder, keys or {})
    serve = Path(sys.executable).with_name("serve")
    supervise = [sys.executable, "-m", "cli.launcher.supervisor", folder / "ray_logs", serve, "run", config]
    log = folder / "serve.log"
    with log.open("wb") as output, scratch:
        started = psutil.Popen(
            supervise,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), **ray, **own, **(variables or {})},
            start_new_session=True,
        )
        service = Service(f"http://127.0.0.1:{port}", key, started, log, log, made, frozenset(loading), {**ray, **own})
        try:
            wait_for(service.ready, "the service's start", START_S, every=1)
            yield service
            processes = {process: command_line(process) for process in service.processes()}
        finally:
            started.communicate(timeout=30)
    left = [line for process, line in processes.items() if alive(process)]
    assert left == [], f"processes outlived the service: {left}"


def files_of(folder: Path, keys: dict[str, Sequence[str]]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that put the service's files into a folder, and the keys that are made there, by name."""
    made = {name: make_key(folder / "keys.yaml", name, options) for name, options in keys.items()}
    variables = {"XDG_STATE_HOME": str(folder / "state")}
    return variables | ({"KEYS_FILE": str(folder / "keys.yaml")} if made else {}), made


def make_key(file: Path, name: str, options: Sequence[str]) -> str:
    """A new key in a keys file, as an operator makes one."""
    command = [sys.executable, "-m", "cli", "keys", "create", name, "--file", str(file), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def serve_config(port: int, models: list[dict[str, Any] | str], gateway: dict[str, Any]) -> dict[str, Any]:
    """The shipped Serve config with another port, other models and other settings of the gateway."""
    config: dict[str, Any] = yaml.safe_load(Path("serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] = {"models": models, "gateway": gateway}
    return config


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its live descendants."""
    return [member for member in [process, *process.children(recursive=True)] if alive(member)]


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    """A port that nobody has; the system itself gives none of this range, so it stays free until the service starts."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port in 100 tries")


def clean_environment() -> dict[str, str]:
    """The environment without what would steer the service, or have each of its processes compile all it imports."""
    steering = ("PROXY_API_KEY", "DEFAULT_MODEL", "TP_SIZE", "MAX_MODEL_LEN", "RAY_", "OPENAI_", "VLLM_", "HF_TOKEN")
    steering += ("PYTHONDONTWRITEBYTECODE",)
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}
