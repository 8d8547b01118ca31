"""A loopback chat completions server that answers as it is told: the peer of the load clients' tests."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

KEY = "loopback-key"


def frame(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(content: str, finish_reason: str | None = None) -> bytes:
    return frame(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}])


def usage(tokens: int) -> bytes:
    return frame(choices=[], usage={"prompt_tokens": 3, "completion_tokens": tokens})


DONE = b"data: [DONE]\n\n"
GOOD = [text(""), text("one "), text("two", "length"), usage(2), DONE]


@dataclass
class Script:
    """What the server does with every stream, and what clients asked for so far.

    `hold_s` is how long it keeps the last piece back; `cut` drops the connection after it. `refuse` are the numbers,
    from 0, of the requests that are told to come again at once.
    """

    pieces: list[bytes] = field(default_factory=lambda: list(GOOD))
    status: int = 200
    hold_s: float = 0
    cut: bool = False
    refuse: frozenset[int] = frozenset()
    models: tuple[str, ...] = ("loopback",)
    bodies: list[dict[str, object]] = field(default_factory=list)
    active: int = 0
    most_active: int = 0


def build(script: Script) -> web.Application:
    async def chat(request: web.Request) -> web.StreamResponse:
        script.bodies.append(await request.json())
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "bad key"}}, status=401)
        if script.status != 200:
            return web.json_response({"error": {"message": "not now"}}, status=script.status)
        if len(script.bodies) - 1 in script.refuse:
            return web.json_response({"error": {"message": "loading"}}, status=503, headers={"Retry-After": "0"})
        if not script.bodies[-1]["stream"]:
            choice = {"index": 0, "message": {"content": "one two"}, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": {"completion_tokens": 2}})
        return await stream(request)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        script.active += 1
        script.most_active = max(script.most_active, script.active)
        *most, last = script.pieces
        for piece in most:
            await response.write(piece)
        await asyncio.sleep(script.hold_s)
        await response.write(last)
        script.active -= 1
        if script.cut and request.transport:
            request.transport.abort()
        return response

    async def models(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "bad key"}}, status=401)
        return web.json_response({"data": [{"id": name} for name in script.models]})

    async def ledger(request: web.Request) -> web.Response:
        asked, refused = len(script.bodies), len([number for number in script.refuse if number < len(script.bodies)])
        prompt, output = 3 * (asked - refused), 2 * (asked - refused)
        return web.json_response({"total": {"requests": asked, "prompt_tokens": prompt, "output_tokens": output}})

    app = web.Application()
    app.add_routes(
        [web.post("/v1/chat/completions", chat), web.get("/v1/models", models), web.get("/api/usage", ledger)]
    )
    return app


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Serves on a free loopback port from a thread; yields the base URL, `/v1` included."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(build(script))

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
