"""What a key may use, over HTTP: requests, tokens, requests at a time, and the size of one request."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest

from tests.service import Service, wait_for

PROMPT_TOKENS = 23
"""Of TEA, with the demo model's tokenizer and chat template."""
TEA = "[[answer: green tea]]"
SLOW = "[[answer: one two three four five six seven eight nine ten]] [[pace: 1000ms]]"


def request(content: str = TEA, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **fields}


class Caller:
    """The holder of one key."""

    def __init__(self, service: Service, key: str) -> None:
        self.options: dict[str, Any] = {
            "base_url": service.url,
            "headers": {"authorization": f"Bearer {key}"},
            "timeout": 60,
        }

    def models(self) -> httpx.Response:
        with httpx.Client(**self.options) as client:
            return client.get("/v1/models")

    def chat(self, content: str = TEA, **fields: Any) -> httpx.Response:
        with httpx.Client(**self.options) as client:
            return client.post("/v1/chat/completions", json=request(content, **fields))

    @contextmanager
    def stream(self, **fields: Any) -> Iterator[httpx.Response]:
        """A long answer that has begun."""
        with httpx.Client(**self.options) as client:
            body = request(SLOW, stream=True, **fields)
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                chunks = response.iter_bytes()  # once this is gone, so is the connection
                next(chunks)
                yield response


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def limits_of(response: httpx.Response) -> dict[str, str]:
    """The headers about limits, less the times."""
    return {
        name: value
        for name, value in response.headers.items()
        if "ratelimit" in name and "reset" not in name and name != "ratelimit"
    }


def assert_waits(response: httpx.Response, most_ms: int) -> None:
    """It says to come back, and when: in `most_ms` at the latest, and a tenth more so that not all come together."""
    told = int(response.headers["retry-after-ms"])
    assert 0 < told <= most_ms * 1.1
    assert response.headers["retry-after"] == str(-(-told // 1000))
    assert "x-should-retry" not in response.headers


def test_requests_a_minute(service: Service) -> None:
    caller = Caller(service, service.new_key("two-a-minute", "--rpm", "2"))
    answers = [caller.models() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    for answer, remaining in zip(answers, ("1", "0", "0"), strict=True):
        assert limits_of(answer) == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": remaining,
            "ratelimit-policy": '"requests";q=2;w=60',
        }
        assert answer.headers["ratelimit"].startswith(f'"requests";r={remaining};t=')
    assert error_of(answers[2]) == (429, "rate_limit_exceeded", None)
    assert_waits(answers[2], 30_000)


def test_tokens_a_minute_are_reserved_and_then_settled(service: Service) -> None:
    caller = Caller(service, service.new_key("400-tokens", "--tpm", "400"))
    first = caller.chat(max_tokens=100)
    assert limits_of(first) == {
        "x-ratelimit-limit-tokens": "400",
        "x-ratelimit-remaining-tokens": "277",
        "ratelimit-policy": '"tokens";q=400;w=60',
    }
    used = first.json()["usage"]["total_tokens"]
    assert used == PROMPT_TOKENS + 4
    second = caller.chat(max_tokens=100)
    assert 277 - used <= int(second.headers["x-ratelimit-remaining-tokens"]) <= 277


def test_an_answer_without_a_length_gets_what_the_limit_leaves(service: Service) -> None:
    caller = Caller(service, service.new_key("open-length", "--tpm", "400"))
    answer = caller.chat()
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"


def test_a_request_that_could_never_pass_is_not_to_be_tried_again(service: Service) -> None:
    refused = Caller(service, service.keys["small"]).chat(max_tokens=400)
    assert error_of(refused) == (429, "rate_limit_exceeded", None)
    assert "423 tokens" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert "retry-after-ms" not in refused.headers


def test_tokens_of_an_open_stream_are_held_and_come_back(service: Service) -> None:
    caller = Caller(service, service.new_key("held-tokens", "--tpm", "400", "--rpm", "1000"))
    with caller.stream(max_tokens=300):
        refused = caller.chat(max_tokens=200)
        assert error_of(refused) == (429, "rate_limit_exceeded", None)
        assert refused.headers["x-ratelimit-limit-tokens"] == "400"
        assert int(refused.headers["x-ratelimit-remaining-tokens"]) < PROMPT_TOKENS + 200
        assert_waits(refused, 60_000)
    wait_for(lambda: caller.chat(max_tokens=200).status_code == 200, "the return of the tokens", 10)


def test_requests_at_a_time(service: Service) -> None:
    caller = Caller(service, service.keys["narrow"])
    with caller.stream(), caller.stream():
        refused = caller.chat()
        assert error_of(refused) == (429, "rate_limit_exceeded", None)
        assert_waits(refused, 1000)
    wait_for(lambda: caller.chat().status_code == 200, "the end of the streams", 10)


def test_one_request_is_bounded(service: Service) -> None:
    caller = Caller(service, service.keys["short"])
    assert error_of(caller.chat(max_tokens=21)) == (400, "invalid_value", "max_tokens")
    assert caller.chat(max_tokens=20).status_code == 200
    unbounded = caller.chat("Tell me a story.").json()
    assert unbounded["choices"][0]["finish_reason"] == "length"
    assert unbounded["usage"]["completion_tokens"] == 20


def test_the_context_of_a_key_is_bounded(service: Service) -> None:
    caller, prompt = Caller(service, service.keys["short"]), "tea " * 37
    asked = Caller(service, service.key).chat(prompt, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert 80 < asked < 100
    assert error_of(caller.chat(prompt, max_tokens=20)) == (400, "context_length_exceeded", None)
    assert caller.chat(prompt, max_tokens=100 - asked).status_code == 200
    assert caller.chat(prompt).json()["usage"]["total_tokens"] == 100
    assert error_of(caller.chat(prompt * 2)) == (400, "context_length_exceeded", None)


@asynccontextmanager
async def held(caller: Caller, clients: int, **fields: Any) -> AsyncIterator[list[int]]:
    """The statuses of so many streams that are asked for at once; those that were let in stay open."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(**caller.options))
        body = request(SLOW, stream=True, **fields)

        async def ask() -> httpx.Response:
            sent = client.build_request("POST", "/v1/chat/completions", json=body)
            response = await client.send(sent, stream=True)
            stack.push_async_callback(response.aclose)
            return response

        yield [response.status_code for response in await asyncio.gather(*(ask() for _ in range(clients)))]


async def test_clients_that_race_for_tokens_never_get_more_than_the_budget(service: Service) -> None:
    budget, each = 600, 200
    key = await asyncio.to_thread(service.new_key, "raced-tokens", "--tpm", str(budget))
    prompt = Caller(service, service.key).chat(SLOW, max_tokens=1).json()["usage"]["prompt_tokens"]
    began = time.monotonic()
    async with held(Caller(service, key), 16, max_tokens=each - prompt) as statuses:
        refilled = (time.monotonic() - began) * budget / 60
    assert set(statuses) == {200, 429}
    assert budget // each <= statuses.count(200) <= (budget + refilled) // each


async def test_clients_that_race_for_places_get_no_more_than_there_are(service: Service) -> None:
    key = await asyncio.to_thread(service.new_key, "raced-places", "--concurrent", "3")
    async with held(Caller(service, key), 16) as statuses:
        assert sorted(statuses) == [200] * 3 + [429] * 13


async def test_clients_that_race_for_requests_get_no_more_than_there_are(service: Service) -> None:
    key = await asyncio.to_thread(service.new_key, "raced-requests", "--rpm", "4")
    began = time.monotonic()
    async with held(Caller(service, key), 16) as statuses:
        refilled = (time.monotonic() - began) * 4 / 60
    assert 4 <= statuses.count(200) <= 4 + refilled
    assert statuses.count(429) == 16 - statuses.count(200)


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere"])
def test_every_answer_tells_the_limits(service: Service, path: str) -> None:
    headers = {"authorization": f"Bearer {service.keys['small']}"}
    response = httpx.get(service.url + path, headers=headers)
    assert response.headers["x-ratelimit-limit-requests"] == "1000"
    assert response.headers["x-ratelimit-limit-tokens"] == "400"
    assert response.headers["ratelimit-policy"] == '"requests";q=1000;w=60, "tokens";q=400;w=60'
