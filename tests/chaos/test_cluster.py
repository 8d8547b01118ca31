"""Ray's own processes die: running streams go on, and the service serves as before."""

import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from cli.launcher.service import environment
from tests.conftest import demo
from tests.redis_server import RedisServer
from tests.service import Service, alive, clean_environment, command_line, running_service, wait_for

pytestmark = pytest.mark.slow

STREAMS = 8
WORDS = " ".join(f"one two three four five six seven eight nine ten {number}" for number in range(10))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | None]:
    """For the GCS to keep its state in, where there is one."""
    binary = shutil.which("redis-server")
    server = RedisServer(binary, tmp_path_factory.mktemp("redis")) if binary else None
    yield server
    if server is not None:
        server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer | None) -> Iterator[Service]:
    """The service on two nodes, its gateway on the first and one of its two replicas on each.

    The service's `process` is that above the nodes, as its gateway and replicas are below their raylets.
    """
    folder, nodes = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("nodes")
    key = secrets.token_hex(16)
    variables = {**environment({}, nodes), "PROXY_API_KEY": key, "XDG_STATE_HOME": str(folder / "state")}
    if redis is not None:
        variables["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{redis.port}"
    model = {**demo("scripted", engine="scripted", replicas=2), "num_cpus": 1}
    with two_nodes(nodes, variables) as process:
        address = (nodes / "address").read_text()
        with running_service(folder, [model], variables={**variables, "RAY_ADDRESS": address}) as service:
            (nodes / "second").touch()
            yield dataclasses.replace(service, key=key, process=process)


@contextmanager
def two_nodes(folder: Path, variables: dict[str, str]) -> Iterator[psutil.Process]:
    """The nodes of tests/chaos/cluster.py, under a supervisor that leaves nothing of them behind."""
    nodes = [sys.executable, "-m", "tests.chaos.cluster", str(folder)]
    with (folder / "nodes.log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "cli.launcher.supervisor", folder / "node_logs", *nodes],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        try:
            wait_for((folder / "address").exists, "the first node", 120)
            yield psutil.Process(started.pid)
        finally:
            started.communicate(timeout=30)


@pytest.fixture
def service(cluster: Service) -> Service:
    """The service with both nodes up, whatever an earlier test has killed."""
    wait_for(lambda: cluster.up("scripted", 2), "a replica on each node", 240, every=0.5)
    return cluster


def read(service: Service, number: int, begun: "Future[None]") -> str:
    """The text of a stream that lasts some ten seconds."""
    body: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": f"[[answer: {number} {WORDS}]] [[pace: 100ms]]"}],
        "stream": True,
    }
    text = ""
    with service.http as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {"))
        for line in lines:
            for choice in msgspec.json.decode(line)["choices"]:
                text += choice["delta"].get("content") or ""
            if text and not begun.done():
                begun.set_result(None)
    return text


def kill_under_streams(service: Service, victim: psutil.Process) -> None:
    """Kill a process while streams run, and have all of them come to their end, and new ones too."""
    for _ in range(2):
        begun: list[Future[None]] = [Future() for _ in range(STREAMS)]
        with ThreadPoolExecutor(STREAMS) as threads:
            reading = [threads.submit(read, service, number, each) for number, each in enumerate(begun)]
            for each in begun:
                each.result(120)
            if alive(victim):
                victim.kill()
            assert [stream.result() for stream in reading] == [f"{number} {WORDS}" for number in range(STREAMS)]


def the_one(service: Service, words: str) -> psutil.Process:
    (found,) = service.processes(words)
    return found


def raylet_above(process: psutil.Process) -> psutil.Process:
    return next(parent for parent in process.parents() if "raylet/raylet" in command_line(parent))


def test_the_controller_of_serve(service: Service) -> None:
    kill_under_streams(service, the_one(service, "ray::ServeController"))
    wait_for(lambda: service.processes("ray::ServeController"), "another controller")


def test_the_gcs(service: Service, redis: RedisServer | None) -> None:
    if redis is None:
        pytest.skip("redis-server is not installed")
    kill_under_streams(service, the_one(service, "gcs_server"))
    service.replicas("scripted")[0].kill()  # what needs the GCS works again
    wait_for(lambda: service.up("scripted", 2), "the return of a replica", 240)


@pytest.mark.parametrize("process", ["raylet", "dashboard agent"])
def test_a_node_without_a_gateway(service: Service, process: str) -> None:
    """Ray's raylet ends with its dashboard agent, and all of its node with the raylet."""
    (gateway,) = service.gateways()
    raylets = {raylet_above(replica) for replica in service.replicas("scripted")}
    (other,) = raylets - {raylet_above(gateway.process)}
    agent = next(child for child in other.children() if "DashboardAgent" in command_line(child))
    kill_under_streams(service, {"raylet": other, "dashboard agent": agent}[process])
    wait_for(lambda: not alive(other), "the end of the node")
