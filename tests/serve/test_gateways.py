"""Two gateways: limits hold over both, and what is left when one of them dies, or the Redis between them.

Requests go to the gateways' own ports, so that it is known which of them gets what.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import demo
from tests.redis_server import RedisServer, running_redis
from tests.service import Gateway, Service, running_service, wait_for

CHAT = "/v1/chat/completions"
KEYS = {"plain": [], "narrow": ["--concurrent", "6"]}
GATEWAY = {"replicas": 2, "limits": {"lease_s": 3}}
STORY = "[[pace: 200ms]] a long story"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    yield from running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module", params=["actor", "redis"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose gateways share their limits through an actor, and one whose gateways do so through Redis."""
    variables = {}
    if request.param == "redis":
        variables["LIMITS_REDIS_URL"] = request.getfixturevalue("server").url.get_secret_value()
    model = demo("scripted", engine="scripted")
    model["vllm_args"] = {**model["vllm_args"], "reasoning_parser": "qwen3"}
    folder = tmp_path_factory.mktemp(request.param)
    with running_service(folder, [model], gateway=GATEWAY, keys=KEYS, variables=variables) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Service:
    """The service with both of its gateways, whatever an earlier test has killed."""
    wait_for(lambda: len(running.gateways()) == 2 and all(map(answers, running.gateways())), "two gateways", 240)
    return running


def answers(gateway: Gateway) -> bool:
    try:
        return httpx.get(f"{gateway.url}/api/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def chat(content: str, **settings: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **settings}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    await asyncio.to_thread(wait_for, condition, what, seconds)


def fallbacks(service: Service) -> float:
    """How often a gateway has decided alone."""
    texts = [httpx.get(f"{g.url}/metrics", headers=bearer(service.key)).text for g in service.gateways()]
    return sum(float(text.partition("\nvllm_chat_limiter_fallback_total ")[2].partition("\n")[0]) for text in texts)


async def new_key(service: Service, *options: str) -> str:
    """A key that both gateways take."""
    key = await asyncio.to_thread(service.new_key, "new", *options)
    urls = [f"{gateway.url}/metrics" for gateway in service.gateways()]
    await until(lambda: all(httpx.get(url, headers=bearer(key)).status_code == 403 for url in urls), "the key", 10)
    return key


async def statuses(service: Service, key: str, requests: int, **settings: Any) -> Counter[int]:
    """So many requests at once, to one gateway and the other in turn, each by a connection of its own."""
    urls = [gateway.url for gateway in service.gateways()] * requests
    async with httpx.AsyncClient(headers=bearer(key), timeout=60) as client:
        body = chat("[[answer: yes]]", **settings)
        posts = (client.post(url + CHAT, json=body) for url in urls[:requests])
        return Counter([answer.status_code for answer in await asyncio.gather(*posts)])


async def shared(service: Service, options: list[str], **settings: Any) -> Counter[int]:
    """The answers to 40 requests at once with a key of these limits, none of which a gateway decided alone.

    On a busy machine the limiter can take longer than gateways wait for it; then another key is tried.
    """
    for _ in range(10):
        key, before = await new_key(service, *options), fallbacks(service)
        counted = await statuses(service, key, 40, **settings)
        if fallbacks(service) == before:
            return counted
    raise AssertionError("the shared limiter was too slow in ten of ten cases")


async def test_requests_a_minute_are_counted_over_both(service: Service) -> None:
    assert await shared(service, ["--rpm", "5"]) == {200: 5, 429: 35}


async def test_tokens_a_minute_are_counted_over_both(service: Service) -> None:
    prompt = service.http.post("/tokenize", json=chat("[[answer: yes]]")).json()["count"]
    limits = ["--tpm", "200", "--feature", "benchmark"]
    assert await shared(service, limits, max_tokens=50 - prompt, ignore_eos=True) == {200: 4, 429: 36}


class Stream:
    """A stream of the key `narrow` that is read in the background, on a connection of its own."""

    def __init__(self, service: Service, gateway: Gateway) -> None:
        self.status, self.chunks, self.broke = 0, 0, False
        self.gateway = gateway
        self._task = asyncio.create_task(self._read(service.keys["narrow"]))

    async def _read(self, key: str) -> None:
        body = chat(STORY, stream=True)
        try:
            async with (
                httpx.AsyncClient(headers=bearer(key), timeout=240) as client,
                client.stream("POST", self.gateway.url + CHAT, json=body) as response,
            ):
                self.status = response.status_code
                async for _ in response.aiter_lines():
                    self.chunks += 1
        except httpx.HTTPError:
            self.broke = True

    async def let_in(self) -> bool:
        """Whether it was let in, once that is known."""
        await until(lambda: self.status or self.broke, "an answer")
        return self.status == 200

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def places(service: Service, gateway: Gateway, streams: int) -> list[Stream]:
    """So many streams more, as soon as there are places for them."""
    found: list[Stream] = []
    deadline = time.monotonic() + 60
    while len(found) < streams:
        assert time.monotonic() < deadline, f"{len(found)} of {streams} streams were let in"
        if await (stream := Stream(service, gateway)).let_in():
            found.append(stream)
    return found


async def test_places_are_counted_over_both(service: Service) -> None:
    one, other = service.gateways()
    streams = await places(service, one, 3) + await places(service, other, 3)
    assert not await Stream(service, one).let_in()
    assert not await Stream(service, other).let_in()
    await asyncio.gather(*(stream.leave() for stream in streams[:2]))
    streams = streams[2:] + await places(service, other, 2)
    assert not await Stream(service, one).let_in()
    await asyncio.gather(*(stream.leave() for stream in streams))


async def test_the_death_of_a_gateway_takes_its_own_requests_only(service: Service) -> None:
    victim, other = service.gateways()
    lost, kept = await places(service, victim, 4), await places(service, other, 2)
    victim.process.kill()
    await until(lambda: all(stream.broke for stream in lost), "the end of its streams")
    before = [stream.chunks for stream in kept]
    await until(
        lambda: all(s.chunks > count + 3 for s, count in zip(kept, before, strict=True)), "tokens on the others"
    )
    kept += await places(service, other, 4)  # once the dead gateway's leases have ended
    assert not await Stream(service, other).let_in()
    assert not any(stream.broke for stream in kept)
    await asyncio.gather(*(stream.leave() for stream in kept))
    await until(lambda: service.http.get("/api/usage").json()["gaps"], "the ledger's notice")


def test_reasoning_is_parsed_and_counted(service: Service) -> None:
    key = service.new_key("reader")
    body = chat("[[answer: <think> let me see </think> yes it is]]", n=2)
    answer = httpx.post(service.url + CHAT, json=body, headers=bearer(key)).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning"].strip(), message["content"].strip()) == ("let me see", "yes it is")
    told = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < told < answer["usage"]["completion_tokens"]
    total = wait_for(
        lambda: (t := httpx.get(f"{service.url}/api/usage", headers=bearer(key)).json()["total"])["requests"] and t,
        "the row in the ledger",
    )
    assert total["reasoning_tokens"] == told


@pytest.mark.parametrize("running", ["redis"], indirect=True)
async def test_without_its_redis_each_gateway_keeps_to_its_share(service: Service, server: RedisServer) -> None:
    sent: list[int] = []

    async def send() -> None:
        while len(sent) < 200:
            sent.extend((await statuses(service, service.keys["plain"], 2)).elements())

    key, before = await new_key(service, "--rpm", "8"), fallbacks(service)
    try:
        senders = asyncio.gather(*(send() for _ in range(4)))
        await until(lambda: len(sent) > 50, "the first answers")
        server.kill()
        await senders
        assert set(sent) == {200}
        assert await statuses(service, key, 40) == {200: 8, 429: 32}
        assert fallbacks(service) > before
    finally:
        server.start()
