"""A client that leaves: its request is aborted in the engine core."""

import asyncio
import re

import httpx
import pytest

from tests.service import Service, wait_for


def running(service: Service, model: str) -> float:
    text = service.http.get("/metrics").text
    found = re.search(rf'vllm:num_requests_running{{engine="0",model_name="{model}"}} (\S+)', text)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("model", ["demo", "demo-2"])
async def test_closing_a_stream_aborts_the_request(service: Service, model: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60) as client:

        async def read() -> None:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for _ in response.aiter_bytes():
                    pass

        reading = asyncio.create_task(read())
        await asyncio.to_thread(wait_for, lambda: running(service, model) == 1, "the start in the engine core")
        reading.cancel()
        await asyncio.to_thread(wait_for, lambda: running(service, model) == 0, "the abort in the engine core", 10)
