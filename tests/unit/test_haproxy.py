"""HAProxy as `vllm-chat-haproxy` runs it, over the configuration that the pinned Ray version writes."""

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from cli.launcher.service import SERVE
from serve_app.gateway.haproxy import UnknownTemplate, configure
from tests.service import free_port, wait_for

OURS = SERVE["RAY_SERVE_HAPROXY_BINARY_PATH"]


def written_by_ray(folder: Path, port: int, *servers: int, host: str = "127.0.0.1") -> Path:
    """Serve's configuration, with backends of the application at these ports."""
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
    )
    targets = [ServerConfig(name=f"gateway-{target}", host="127.0.0.1", port=target) for target in servers]
    backend = BackendConfig(name="chat", path_prefix="/", app_name="chat", servers=targets)
    file = folder / "haproxy.cfg"
    (folder / "state").touch()
    HAProxyApi(config, {"chat": backend} if servers else {}, str(file))._generate_config_file_internal()
    return file


@contextmanager
def haproxy(file: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen([OURS, "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(port), "HAProxy's port")
        yield
    finally:
        process.kill()
        process.wait()


class Gateway:
    """Answers health checks, and of a client's request its arrival and its end are known."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self.left: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /-/healthz"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        else:
            await reader.readexactly(4)
            self.arrived.put_nowait(writer)
            with suppress(ConnectionResetError):
                await reader.read()
            self.left.put_nowait(None)
        writer.close()


async def test_a_client_that_leaves_is_noticed_at_once(tmp_path: Path) -> None:
    port, target, gateway = free_port(), free_port(), Gateway()
    async with await asyncio.start_server(gateway, "127.0.0.1", target):
        with haproxy(written_by_ray(tmp_path, port, target), port):
            for _ in range(12):
                async with httpx.AsyncClient() as client:
                    asking = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/", content=b"body"))
                    await asyncio.wait_for(gateway.arrived.get(), 10)
                    asking.cancel()
                    await asyncio.wait_for(gateway.left.get(), 10)


async def test_a_gateway_that_dies_before_it_answers_is_no_page_of_html(tmp_path: Path) -> None:
    port, target, gateway = free_port(), free_port(), Gateway()
    async with await asyncio.start_server(gateway, "127.0.0.1", target), httpx.AsyncClient() as client:
        with haproxy(written_by_ray(tmp_path, port, target), port):
            asking = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/", content=b"body"))
            (await asyncio.wait_for(gateway.arrived.get(), 10)).close()
            answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "gateway_unavailable")


@pytest.mark.parametrize("backends", [0, 1], ids=["no application", "no gateway"])
def test_what_no_gateway_answers_has_the_shape_of_all_errors(tmp_path: Path, backends: int) -> None:
    port = free_port()
    with haproxy(written_by_ray(tmp_path, port, *(free_port() for _ in range(backends))), port):
        answers = [httpx.get(f"http://127.0.0.1:{port}/v1/models") for _ in range(2)]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert json.loads(answer.text)["error"] == {
            "message": "The service does not answer now; it may be starting or restarting. Try again in a second.",
            "type": "service_unavailable_error",
            "param": None,
            "code": "gateway_unavailable",
        }
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert {len(each) for each in ids} == {32}


@pytest.mark.parametrize("backends", [0, 1], ids=["no application", "no gateway"])
def test_serves_list_of_applications_is_no_route(tmp_path: Path, backends: int) -> None:
    port = free_port()
    with haproxy(written_by_ray(tmp_path, port, *(free_port() for _ in range(backends))), port):
        for path in ("/-/routes", "/-/ROUTES"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_every_port_listens_where_the_service_does(tmp_path: Path, host: str, bound: str) -> None:
    config = configure(written_by_ray(tmp_path, 8787, 9000, host=host).read_text())
    binds = [line.split()[1].rpartition(":")[0] for line in config.splitlines() if line.strip().startswith("bind")]
    assert binds == [bound] * 3


def test_configuring_twice_changes_nothing(tmp_path: Path) -> None:
    once = configure(written_by_ray(tmp_path, 8787, 9000).read_text())
    assert configure(once) == once
    assert "splice" not in once
    assert "errorfile" not in once


@pytest.mark.parametrize("lost", ["frontend http_frontend", "option abortonclose", " if routes"])
def test_another_template_is_not_guessed_at(tmp_path: Path, lost: str) -> None:
    config = written_by_ray(tmp_path, 8787, 9000).read_text().replace(lost, "something else")
    with pytest.raises(UnknownTemplate):
        configure(config)


def test_the_template_still_has_what_is_changed(tmp_path: Path) -> None:
    config = written_by_ray(tmp_path, 8787, 9000).read_text()
    for line in ("option splice-request", "option splice-response", "errorfile 503", "http-request return status 404"):
        assert line in config


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
