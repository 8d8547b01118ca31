"""A replica dies while it works for any of the routes: what the client is told is what it would have been told."""

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.ledger.row import Row
from serve_app.replica.arguments import engine_config
from tests.answers import CASES
from tests.unit.fleet.bed import Bed, running_bed, scripted_model, until

TEXT, CALL = CASES["utf-8"][0], CASES["tool call"][0]
SCHEMA = {"type": "object", "properties": {}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": (
        "/completions",
        {"prompt": [TEXT, CASES["plain"][0]], "n": 2, "temperature": 1, "logprobs": 2, "max_tokens": 24},
    ),
    "responses": ("/responses", {"input": TEXT}),
    "responses with a tool": (
        "/responses",
        {"input": CALL, "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]},
    ),
    "messages": ("/messages", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 60}),
    "messages with a tool": (
        "/messages",
        {
            "messages": [{"role": "user", "content": CALL}],
            "max_tokens": 60,
            "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
        },
    ),
}
PIECES = frozenset({"text", "delta", "partial_json"})
EMBEDDING = scripted_model(
    **{"runner": "pooling", "convert": "embed", "tool_call_parser": None, "reasoning_parser": None},
    enable_auto_tool_choice=None,
    default_chat_template_kwargs=None,
)


@pytest.mark.parametrize(
    "stream", [pytest.param(True, id="stream"), pytest.param(False, id="whole", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", REQUESTS)
async def test_a_resumed_answer_is_the_undisturbed_one(
    config: VllmConfig, model: ModelConfig, case: str, stream: bool
) -> None:
    path, body = REQUESTS[case]
    async with running_bed(config, model) as bed:
        undisturbed = await told(bed, path, body, stream)
        expected = await row(bed)
        choices = len(body["prompt"]) * body["n"] if case == "completions" else 1
        for place in (0, 1, 7, expected.output_tokens // choices - 1):
            await bed.start_replica()
            bed.kill_at(place)
            assert await told(bed, path, body, stream) == undisturbed, place
            assert bill(await row(bed)) == bill(expected), place
            assert (bed.ledger.rows[-1].attempts, len(bed.handle.living)) == (2, 3), place


async def test_texts_to_embed_are_embedded_elsewhere_or_the_request_fails() -> None:
    async with running_bed(engine_config(EMBEDDING), EMBEDDING, replicas=5) as bed:
        body = {"input": ["one", "two three"], "encoding_format": "float"}
        undisturbed = await told(bed, "/embeddings", body)
        bed.handle.die_unanswered = 1
        assert await told(bed, "/embeddings", body) == undisturbed
        assert ((await row(bed)).attempts, len(bed.handle.living)) == (2, 4)
        bed.handle.die_unanswered = 3
        with pytest.raises(openai.InternalServerError) as failure:
            await told(bed, "/embeddings", {**body, "input": "four"})
        assert (failure.value.code, (await row(bed)).finish, len(bed.handle.living)) == ("upstream_failed", "error", 1)
        assert await told(bed, "/embeddings", body) == undisturbed


async def test_many_texts_to_embed_at_once() -> None:
    async with running_bed(engine_config(EMBEDDING), EMBEDDING, replicas=1) as bed:
        body = {"input": ["one", "two three"], "encoding_format": "float"}
        alone = await told(bed, "/embeddings", body)
        assert await asyncio.gather(*(told(bed, "/embeddings", body) for _ in range(16))) == [alone] * 16


async def row(bed: Bed) -> Row:
    """The ledger's last row, once the request of it has ended."""
    await until(lambda: bed.ledger.rows and not bed.entries, "the end of the request")
    return bed.ledger.rows[-1]


def bill(row: Row) -> tuple[Any, ...]:
    return row.prompt_tokens, row.cached_tokens, row.output_tokens, row.finish, row.status


async def told(bed: Bed, path: str, body: dict[str, Any], stream: bool = False) -> Any:
    """What the client is told, but for ids and times; of a stream, its chunks put together by their type."""
    kind = {"stream": stream} if path != "/embeddings" else {}
    answer = await bed.client.post(path, cast_to=httpx.Response, body={"model": "scripted", **kind, **body})
    text = re.sub(r"(?<![.\d])[0-9a-f]{16,}", "id", answer.text)
    text = re.sub(r'("(?:created|created_at|completed_at|sequence_number)"): ?\d+', r"\1: 0", text)
    if not stream:
        return json.loads(text)
    whole: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            put_together(whole.setdefault(chunk.get("type", ""), {}), chunk)
    return whole


def put_together(whole: dict[str, Any], chunk: dict[str, Any]) -> None:
    for name, value in chunk.items():
        if name == "choices":
            for choice in value:
                put_together(whole.setdefault(f"choice {choice['index']}", {}), choice)
        elif isinstance(value, dict):
            put_together(whole.setdefault(name, {}), value)
        elif isinstance(value, list):
            whole[name] = [*(whole.get(name) or ()), *value]
        elif name in PIECES and isinstance(value, str):
            whole[name] = whole.get(name, "") + value
        elif value is not None:
            whole[name] = value
