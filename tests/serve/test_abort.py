"""A client that leaves: its request is aborted in the engine core."""

import asyncio
import re

import httpx
import pytest

from tests.service import Service, wait_for

TOKENS = 2000


def metric(service: Service, name: str, model: str) -> float:
    text = service.http.get("/metrics").text
    found = re.search(rf'vllm:{name}{{engine="0",model_name="{model}"}} (\S+)', text)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["demo", "demo-2", "demo-tp"])
async def test_closing_the_connection_aborts_the_request(service: Service, model: str, stream: bool) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": stream,
    }
    headers = {"authorization": f"Bearer {service.key}"}
    before = metric(service, "generation_tokens_total", model)
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60) as client:

        async def read() -> None:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200, await response.aread()
                async for _ in response.aiter_bytes():
                    pass

        reading = asyncio.create_task(read())
        await running(service, model, 1, "the start in the engine core", reading)
        assert not reading.done(), reading.exception()
        reading.cancel()
        await running(service, model, 0, "the abort in the engine core")
    assert metric(service, "generation_tokens_total", model) - before < TOKENS


async def running(
    service: Service, model: str, count: int, what: str, reading: asyncio.Task[None] | None = None
) -> None:
    """Wait until so many requests run; or until `reading` one ends."""

    def met() -> bool:
        return metric(service, "num_requests_running", model) == count or (reading is not None and reading.done())

    await asyncio.to_thread(wait_for, met, what)
