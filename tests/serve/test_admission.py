"""A model that computes one request at a time, with a queue of twenty: what waits, what is refused, who is next."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.service import Service

MAX_WAITING = 20
WORDS = " ".join(["tea"] * 100)
Ask = Callable[..., Awaitable[httpx.Response]]


class Model:
    """The model, with one client for all keys."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    def request(self, key: str, content: str, **fields: Any) -> httpx.Request:
        headers = {"authorization": f"Bearer {key}", **fields.pop("headers", {})}
        messages = [{"role": "user", "content": content}]
        body = {"model": "narrow", "messages": messages, "max_tokens": 10, **fields}
        return self.client.build_request("POST", "/v1/chat/completions", json=body, headers=headers)

    async def ask(self, key: str, content: str = "[[answer: yes]]", **fields: Any) -> httpx.Response:
        return await self.client.send(self.request(key, content, **fields))

    @asynccontextmanager
    async def busy(self, key: str) -> AsyncIterator[AsyncIterator[str]]:
        """While the model answers this key; the answer's chunks."""
        content = f"[[answer: {WORDS}]] [[pace: 300ms]]"
        response = await self.client.send(self.request(key, content, max_tokens=300, stream=True), stream=True)
        try:
            assert response.status_code == 200
            chunks = response.aiter_text()
            await anext(chunks)
            yield chunks
        finally:
            await response.aclose()


@pytest.fixture
async def model(service: Service) -> AsyncIterator[Model]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
        yield Model(client)


def assert_overloaded(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert 1 <= int(response.headers["retry-after"]) <= 60


async def first_refusals(asked: list[asyncio.Task[httpx.Response]], number: int) -> set[asyncio.Task[httpx.Response]]:
    """Those that are answered while the model is busy, which can only be refusals, when there are so many."""
    answered: set[asyncio.Task[httpx.Response]] = set()
    while len(answered) < number:
        pending = [task for task in asked if task not in answered]
        answered |= (await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))[0]
    return answered


async def test_a_full_queue_refuses_and_keeps_what_it_has(service: Service, model: Model) -> None:
    async with model.busy(service.key) as chunks:
        asked = [asyncio.create_task(model.ask(service.key)) for _ in range(MAX_WAITING + 5)]
        refused = await first_refusals(asked, 5)
        assert '"finish_reason":null' in await anext(chunks)
    answers = [await task for task in asked]
    for task in refused:
        assert_overloaded(task.result())
    assert [answer.status_code for answer in answers].count(200) == MAX_WAITING
    assert {a.json()["choices"][0]["message"]["content"] for a in answers if a.status_code == 200} == {"yes"}


async def test_keys_take_turns_and_the_one_that_fills_the_queue_makes_room(service: Service, model: Model) -> None:
    greedy, modest = [await asyncio.to_thread(service.new_key, name) for name in ("greedy", "modest")]
    order: list[str] = []

    async def ask(name: str, key: str) -> httpx.Response:
        response = await model.ask(key, "[[answer: yes]] [[pace: 200ms]]")
        order.append(name)
        return response

    async with model.busy(service.key):
        first = [asyncio.create_task(ask("greedy", greedy)) for _ in range(MAX_WAITING)]
        others = [asyncio.create_task(ask("modest", modest)) for _ in range(3)]
        refused = await first_refusals(first + others, 3)
        assert refused <= set(first)
        for task in refused:
            assert_overloaded(task.result())
        order.clear()
    answers = [await task for task in others]
    assert [answer.status_code for answer in answers] == [200] * 3
    while len(order) < 6:
        await asyncio.wait([task for task in first if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    assert [set(order[at : at + 2]) for at in (0, 2, 4)] == [{"greedy", "modest"}] * 3
    for task in first:
        task.cancel()


@pytest.mark.parametrize("header", [{"x-request-deadline-ms": "100"}, {"x-stainless-read-timeout": "0.1"}])
async def test_what_cannot_begin_in_time_is_refused(service: Service, model: Model, header: dict[str, str]) -> None:
    async with model.busy(service.key) as chunks:
        assert_overloaded(await model.ask(service.key, headers=header))
        assert '"finish_reason":null' in await anext(chunks)


@pytest.mark.parametrize("header", [{"x-request-deadline-ms": "60000"}, {"x-stainless-read-timeout": "60"}])
async def test_what_can_begin_in_time_is_answered(service: Service, model: Model, header: dict[str, str]) -> None:
    assert (await model.ask(service.key, headers=header)).status_code == 200
