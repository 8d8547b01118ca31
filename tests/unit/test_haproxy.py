"""HAProxy as `vllm-chat-haproxy` runs it, over the configuration that the pinned Ray version writes."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from serve_app.gateway.haproxy import UnknownTemplate, configure
from tests.haproxy import haproxy, written_by_ray
from tests.serve.refusals import assert_ours
from tests.service import free_port

PAGE = "https://chat.example.com"


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
def test_pages_may_read_what_no_gateway_answers(tmp_path: Path, backends: int) -> None:
    port = free_port()
    file = written_by_ray(tmp_path, port, *(free_port() for _ in range(backends)))
    with haproxy(file, port, CORS_ORIGINS=f"{PAGE}, http://[::1]:3000"):
        for path in ("/v1/models", "/-/routes", "/-/healthz"):
            for origin in (PAGE, "http://[::1]:3000", "https://example.com", f"{PAGE}.example.org"):
                answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers={"origin": origin})
                allowed = [origin] if origin in {PAGE, "http://[::1]:3000"} else []
                assert answer.headers.get_list("access-control-allow-origin") == allowed
                assert answer.headers.get_list("vary") == ["Origin"]
                assert ("retry-after" in answer.headers.get("access-control-expose-headers", "")) == bool(allowed)


def test_without_pages_nothing_is_said_to_browsers(tmp_path: Path) -> None:
    port = free_port()
    with haproxy(written_by_ray(tmp_path, port), port):
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"origin": PAGE})
    assert not {"access-control-allow-origin", "vary"} & set(answer.headers)


async def test_the_health_check_has_the_shape_and_headers_of_all_answers(tmp_path: Path) -> None:
    port, target = free_port(), free_port()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with haproxy(written_by_ray(tmp_path, port, target), port):
            while (answer := await client.get("/-/healthz")).status_code == 200:
                pass  # HAProxy has not looked yet
            assert answer.json()["error"]["code"] == "gateway_unavailable"
            assert_ours(answer)
            async with await asyncio.start_server(Gateway(), "127.0.0.1", target):
                while (answer := await client.get("/-/healthz")).status_code == 503:
                    pass
    assert (answer.status_code, answer.text) == (200, "success")
    assert_ours(answer)


def test_logs_have_no_query(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log:
        log.bind(("127.0.0.1", 0))
        log.settimeout(10)
        where = f"127.0.0.1:{log.getsockname()[1]}"
        with haproxy(written_by_ray(tmp_path, port, free_port(), log=where), port):
            httpx.get(f"http://127.0.0.1:{port}/v1/models?key=sk-secret")
            while b"/v1/models" not in (line := log.recv(9000)):
                pass  # what it says of its start
    assert b'"GET /v1/models HTTP/1.1"' in line
    assert b"sk-secret" not in line


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
    for gone in ("splice", "httplog", "errorfile 503", "3600s", "16384", 'text/plain string "Service'):
        assert gone not in once


@pytest.mark.parametrize("lost", ["frontend http_frontend", "option abortonclose", " if routes"])
def test_another_template_is_not_guessed_at(tmp_path: Path, lost: str) -> None:
    config = written_by_ray(tmp_path, 8787, 9000).read_text().replace(lost, "something else")
    with pytest.raises(UnknownTemplate):
        configure(config)


def test_the_template_still_has_what_is_changed(tmp_path: Path) -> None:
    config = written_by_ray(tmp_path, 8787, 9000).read_text()
    for line in (
        "option splice-request",
        "option splice-response",
        "option httplog",
        "errorfile 503",
        "timeout client 3600s",
        "tune.bufsize 16384",
        'http-request return status 200 content-type text/plain string "success" if healthcheck backend_chat_server_up',
        'http-request return status 503 content-type text/plain string "Service Unavailable" if healthcheck',
        "http-request return status 404",
    ):
        assert line in config
