"""The request body: read whole and bounded, and given to vLLM's app as if it had just come."""

import asyncio

from starlette.types import Message, Receive

from serve_app.gateway.errors import RequestTooSlow, TooLarge

DISCONNECT: Message = {"type": "http.disconnect"}


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


async def read_body(receive: Receive, limit: int, limit_s: float) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it is over `limit` bytes.
        RequestTooSlow: it is not whole within `limit_s` seconds; 0: it has any time.
        ClientLeft: it ended early.
    """
    try:
        async with asyncio.timeout(limit_s or None):
            return await _read(receive, limit)
    except TimeoutError:
        raise RequestTooSlow("The body of the request", limit_s) from None


async def _read(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        if not message.get("more_body", False):
            return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the connection gives."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def receive_until(over: asyncio.Future[None], receive: Receive) -> Message:
    """The connection's next message, or a disconnect once `over` is done."""
    if over.done():
        return DISCONNECT
    incoming = asyncio.ensure_future(_await(receive))
    try:
        await asyncio.wait((incoming, over), return_when=asyncio.FIRST_COMPLETED)
        return incoming.result() if incoming.done() else DISCONNECT
    finally:
        incoming.cancel()


async def _await(receive: Receive) -> Message:
    return await receive()
