"""What a client's connection bears: over a real uvicorn and real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config

from serve_app.gateway import connection
from serve_app.gateway.body import ClientLeft, read_body
from serve_app.gateway.connection import GATHERED_BYTES, HEAD_BYTES, Connection, Gathering
from serve_app.gateway.errors import GatewayError
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import send_bytes, send_error
from tests.serve.refusals import refusal
from tests.unit.gateway.server import Client, ask, parse, served

HOST = b"host: service\r\n"
BAD = (400, "invalid_value", None)
SLOW = (400, "request_timeout", None)
LARGE = (431, "headers_too_large", None)


async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
    """Says which path was asked for, or below /read what came with it, read for so many seconds."""
    body = scope["raw_path"]
    if body.startswith(b"/read/"):
        try:
            body = await read_body(receive, 1000, float(body.removeprefix(b"/read/")))
        except GatewayError as error:
            return await send_error(error, send, [*COMMON, (b"x-request-id", b"0" * 32)])
        except ClientLeft:
            return
    await send_bytes(200, body, send, [])


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with served(gateway, http=Connection) as port:
        yield port


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.5)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a?b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: user@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a:port\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET http://service/v1/models HTTP/1.1\r\nhost: service\r\n\r\n",
        b"GET http://other/v1/models HTTP/1.1\r\nhost: service\r\n\r\n",
        b"GET v1/models HTTP/1.1\r\nhost: service\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: service\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: service\r\n\r\n",
        b"CONNECT service:443 HTTP/1.1\r\nhost: service\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nhost: service\r\n\r\n",
        b"BREW / HTTP/1.1\r\nhost: service\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: service\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: service\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: service\r\nx a: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: service\r\nx-a: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: service\r\nx-a: b\x00c\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: service\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: service\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda request: repr(request[:60]),
)
async def test_what_is_not_http_as_it_should_be_is_refused_and_the_connection_closed(
    port: int, request_: bytes
) -> None:
    response = parse(await ask(port, request_))
    assert refusal(response) == BAD
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    "host", ["a", "A.example.com:8787", "10.0.0.1", "[::1]:80", "my_service", "xn--bcher-kva.example."]
)
async def test_usual_hosts_are_taken(port: int, host: str) -> None:
    request = f"GET /path HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    assert parse(await ask(port, request.encode())).content == b"/path"


async def test_http_1_0_needs_no_host(port: int) -> None:
    """HAProxy asks so whether a gateway is well."""
    assert parse(await ask(port, b"GET /path HTTP/1.0\r\n\r\n")).content == b"/path"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nx: " + b"x" * HEAD_BYTES,
        b"GET /" + b"x" * HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (HEAD_BYTES // 6),
        b"GET / HTTP/1.1\r\n" + b"x" * HEAD_BYTES,
    ],
    ids=["a header", "the target", "many headers", "a name"],
)
async def test_a_head_without_end_is_refused_before_it_fills_the_memory(port: int, request_: bytes) -> None:
    client = await Client.connect(port)
    client.send(request_[:100])
    await client.writer.drain()
    client.send(request_[100:] + b"x" * 500_000)
    response = parse(await client.read_all())
    assert refusal(response) == LARGE


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [b"", b"GET /path HTTP/1.1\r\n" + HOST + b"\r\n"], ids=["first", "second"])
async def test_a_slow_head_has_bounded_time(port: int, before: bytes) -> None:
    client = await Client.connect(port)
    client.send(before + b"GET / HTTP/1.1\r\n")
    dripping = asyncio.create_task(drip(client, b"x: y\r\n"))
    answer = await client.read_all()
    dripping.cancel()
    if before:
        _, answer = answer.split(b"/path", 1)
    assert refusal(parse(answer)) == SLOW


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [b"", b"GET /path HTTP/1.1\r\n" + HOST + b"\r\n"], ids=["first", "second"])
async def test_a_connection_on_which_no_request_begins_is_closed(port: int, before: bytes) -> None:
    client = await Client.connect(port)
    client.send(before)
    dripping = asyncio.create_task(drip(client, b"\r\n"))
    answer = await client.read_all()
    dripping.cancel()
    assert answer.endswith(b"/path") if before else answer == b""


@pytest.mark.usefixtures("impatient")
async def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    assert await ask(port, b"") == b""


@pytest.mark.usefixtures("impatient")
async def test_a_slow_body_has_the_time_that_the_gateway_gives_it(port: int) -> None:
    client = await Client.connect(port)
    client.send(b"POST /read/1.5 HTTP/1.1\r\n" + HOST + b"content-length: 900\r\n\r\n")
    dripping = asyncio.create_task(drip(client, b"x"))
    response = parse(await client.read_all())
    dripping.cancel()
    assert refusal(response) == SLOW
    assert response.json()["error"]["message"] == "The body of the request did not come within 1.5 seconds."
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["/path", "/read/9"])
async def test_the_rest_of_a_body_that_is_answered_has_bounded_time(port: int, path: str) -> None:
    """/path does not read its body, /read gives it up where it is too large."""
    client = await Client.connect(port)
    client.send(f"POST {path} HTTP/1.1\r\n".encode() + HOST + b"content-length: 1000000\r\n\r\n")
    dripping = asyncio.create_task(drip(client, b"x" * 500))
    answer = parse(await client.read_all())
    dripping.cancel()
    assert answer.status_code == (200 if path == "/path" else 413)


async def test_requests_on_one_connection_are_answered_one_after_another(port: int) -> None:
    requests = [b"POST /%d HTTP/1.1\r\n" % number + HOST + b"content-length: 2\r\n\r\n{}" for number in range(3)]
    client = await Client.connect(port)
    client.send(b"".join(requests))
    for number in range(3):
        assert await client.read_until(b"/%d" % number)
    for number in range(3):
        client.send(requests[number])
        assert await client.read_until(b"/%d" % number)
    client.writer.close()


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_an_upgrade_is_answered_like_any_other_request(port: int, protocol: str) -> None:
    lines = f"upgrade: {protocol}\r\nconnection: Upgrade\r\n".encode()
    smuggled = b"GET /other HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = parse(await ask(port, b"GET /path HTTP/1.1\r\n" + HOST + lines + b"\r\n" + smuggled))
    assert (answer.status_code, answer.content, answer.headers["connection"]) == (200, b"/path", "close")


async def test_a_refusal_is_never_put_into_an_answer_that_has_begun() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await receive()

    async with served(endless, http=Connection) as port:
        client = await Client.connect(port)
        client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.read_until(b"begun\r\n")
        client.send(b"no HTTP\r\n\r\n")
        assert await client.read_all() == b""


@pytest.mark.usefixtures("impatient")
async def test_an_answer_is_not_cut_off_because_the_next_request_is_slow() -> None:
    ticks = asyncio.Semaphore(0)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await ticks.acquire()
        await send_bytes(200, b"whole", send, [])

    async with served(slow, http=Connection) as port:
        client = await Client.connect(port)
        client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\nGET / HTTP/1.1\r\n")
        asyncio.get_running_loop().call_later(1.2, ticks.release)
        answer, refused = (await client.read_all()).split(b"whole", 1)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert refusal(parse(refused)) == SLOW


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no time-out for it")
async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 1)
    gone = asyncio.Event()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with served(large, http=Connection) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            await asyncio.wait_for(gone.wait(), 20)


class Pieces(asyncio.Transport):
    """Takes down what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_what_is_written_in_one_turn_of_the_event_loop_is_sent_as_one_piece() -> None:
    pieces = Pieces()
    transport = Gathering(pieces, asyncio.get_running_loop())
    transport.write(b"head ")
    transport.write(b"body")
    assert pieces.written == []
    await asyncio.sleep(0)
    transport.write(b"x" * (GATHERED_BYTES + 1))  # too much to wait
    transport.write(b"end")
    transport.close()
    assert pieces.written == [b"head body", b"x" * (GATHERED_BYTES + 1), b"end"]
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert len(pieces.written) == 3


def test_the_servers_that_serve_starts_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.auto, "AutoHTTPProtocol", connection.auto.AutoHTTPProtocol)  # put back afterwards
    connection.install()
    config = Config(gateway)  # Serve names no protocol either
    config.load()
    assert config.http_protocol_class is Connection


async def drip(client: Client, piece: bytes) -> None:
    while True:
        client.send(piece)
        await asyncio.sleep(0.02)
