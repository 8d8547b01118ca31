"""A client that leaves: its request is aborted in the engine core."""

import asyncio
import re

import httpx
import pytest

from tests.service import Service, wait_for

TOKENS, CHOICES = 2000, 4
ATTEMPTS = 5


def metric(service: Service, name: str, model: str) -> float:
    text = service.http.get("/metrics").text
    found = re.search(rf'vllm:{name}{{engine="0",model_name="{model}"}} (\S+)', text)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["demo", "demo-2", "demo-tp"])
async def test_closing_the_connection_aborts_the_request(service: Service, model: str, stream: bool) -> None:
    before = metric(service, "generation_tokens_total", model)
    for _ in range(ATTEMPTS):
        if await left_while_it_ran(service, model, stream):
            break
        before += CHOICES * TOKENS  # a machine that stood still has slept through it
    else:
        pytest.fail(f"none of {ATTEMPTS} requests was seen to run")
    await asyncio.to_thread(wait_for, lambda: running(service, model) == 0, "the abort in the engine core")
    assert metric(service, "generation_tokens_total", model) - before < CHOICES * TOKENS


async def left_while_it_ran(service: Service, model: str, stream: bool) -> bool:
    """Ask, and leave when the engine core runs the request; false if it was answered before it was seen to run."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": TOKENS,
        "n": CHOICES,
        "ignore_eos": True,
        "stream": stream,
    }
    headers = {"authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60) as client:
        reading = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.to_thread(
            wait_for, lambda: reading.done() or running(service, model) > 0, "the start in the engine core"
        )
        if not reading.done():
            reading.cancel()
            return True
    answer = reading.result()
    assert answer.status_code == 200, answer.text
    assert '"error"' not in answer.text, answer.text[-1000:]
    return False


def running(service: Service, model: str) -> float:
    return metric(service, "num_requests_running", model)
