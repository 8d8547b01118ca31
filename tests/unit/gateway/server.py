"""An ASGI app under a real uvicorn, and requests to it as bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import uvicorn
from starlette.types import ASGIApp

PATIENCE_S = 60


@asynccontextmanager
async def served(app: ASGIApp, **settings: Any) -> AsyncIterator[int]:
    """The port of a server of this app; settings as uvicorn's."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="critical", **settings)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


class Client(NamedTuple):
    """A connection on which bytes are sent, and all that comes until the server closes it is read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read_all(self) -> bytes:
        """All until the server closes the connection, which it must; it may do so with bytes of ours unread."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                while more := await self.reader.read(65536):
                    data += more
        self.writer.close()
        return data

    async def read_until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), PATIENCE_S)


async def ask(port: int, request: bytes) -> bytes:
    """All that comes for these bytes until the server closes the connection."""
    client = await Client.connect(port)
    client.send(request)
    return await client.read_all()


def parse(answer: bytes) -> httpx.Response:
    """One whole answer with a content-length."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    response = httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]
    assert int(response.headers["content-length"]) == len(body)
    return response
