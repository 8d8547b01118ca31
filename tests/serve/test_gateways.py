"""Two gateways: limits hold over both, and what is left when one of them dies, or the Redis between them."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import demo
from tests.redis_server import RedisServer, running_redis
from tests.service import Service, command_line, running_service, wait_for

KEYS = {
    "plain": [],
    "slow": ["--rpm", "5"],
    "fresh": ["--rpm", "8"],
    "dear": ["--tpm", "200", "--feature", "benchmark"],
    "narrow": ["--concurrent", "6"],
}
GATEWAY = {"replicas": 2, "limits": {"lease_s": 3}}
STORY = "[[pace: 200ms]] a long story"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    yield from running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module", params=["actor", "redis"])
def gateways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
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
def service(gateways: Service) -> Service:
    """The service with both of its gateways, whatever an earlier test has killed."""
    wait_for(lambda: len(processes(gateways)) == 2 and gateways.ready(), "two gateways", 240)
    return gateways


def processes(service: Service) -> list[Any]:
    return [p for p in service.processes() if command_line(p).strip() == "ray::ServeReplica:chat:gateway"]


def chat(content: str, **settings: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **settings}


async def statuses(service: Service, key: str, requests: int, **settings: Any) -> Counter[int]:
    """Requests that come all at once, each by a connection of its own."""
    headers = {"authorization": f"Bearer {service.keys[key]}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60) as client:
        body = chat("[[answer: yes]]", **settings)
        posts = (client.post("/v1/chat/completions", json=body) for _ in range(requests))
        return Counter([answer.status_code for answer in await asyncio.gather(*posts)])


def used_gateways(service: Service, key: str) -> int:
    """How many gateways have answered requests of this key."""
    with sqlite3.connect(f"file:{service.log.parent}/state/vllm-chat-backend/usage.db?mode=ro", uri=True) as database:
        counted = database.execute(
            "SELECT count(DISTINCT run) FROM usage WHERE key_id = ?", (service.keys[key].split("-")[2],)
        )
        return int(counted.fetchone()[0])


async def test_requests_a_minute_are_counted_over_both(service: Service) -> None:
    assert await statuses(service, "slow", 40) == {200: 5, 429: 35}
    await asyncio.to_thread(wait_for, lambda: used_gateways(service, "slow") == 2, "rows of both gateways", 10)


async def test_tokens_a_minute_are_counted_over_both(service: Service) -> None:
    prompt = service.http.post("/tokenize", json=chat("[[answer: yes]]")).json()["count"]
    answers = await statuses(service, "dear", 40, max_tokens=50 - prompt, ignore_eos=True)
    assert answers == {200: 4, 429: 36}


class Stream:
    """A stream that is read in the background, on a connection of its own."""

    def __init__(self, service: Service, content: str = STORY) -> None:
        self.status, self.chunks, self.broke = 0, 0, False
        self._task = asyncio.create_task(self._read(service, chat(content, stream=True)))

    async def _read(self, service: Service, body: dict[str, Any]) -> None:
        headers = {"authorization": f"Bearer {service.keys['narrow']}"}
        try:
            async with (
                httpx.AsyncClient(base_url=service.url, headers=headers, timeout=240) as client,
                client.stream("POST", "/v1/chat/completions", json=body) as response,
            ):
                self.status = response.status_code
                async for _ in response.aiter_lines():
                    self.chunks += 1
        except httpx.HTTPError:
            self.broke = True

    async def known(self) -> bool:
        """Whether it was let in, once that is known."""
        await until(lambda: self.status or self.broke, "an answer")
        return self.status == 200

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    await asyncio.to_thread(wait_for, condition, what, seconds)


async def let_in(service: Service, streams: int) -> list[Stream]:
    """So many streams more, as soon as there are places for them."""
    found: list[Stream] = []
    deadline = time.monotonic() + 60
    while len(found) < streams:
        assert time.monotonic() < deadline, f"only {len(found)} of {streams} streams were let in"
        if await (stream := Stream(service)).known():
            found.append(stream)
    return found


async def test_places_are_counted_over_both(service: Service) -> None:
    streams = [Stream(service) for _ in range(16)]
    assert Counter([await stream.known() for stream in streams]) == {True: 6, False: 10}
    running = [stream for stream in streams if stream.status == 200]
    await asyncio.gather(*(stream.leave() for stream in running[:2]))
    running = running[2:] + await let_in(service, 2)
    assert not await Stream(service).known()
    await asyncio.gather(*(stream.leave() for stream in running))


async def test_the_death_of_a_gateway_takes_its_own_requests_only(service: Service) -> None:
    streams = await let_in(service, 6)
    processes(service)[0].kill()
    await until(lambda: any(stream.broke for stream in streams), "the end of a stream")
    before = [stream.chunks for stream in streams]
    await until(
        lambda: all(stream.broke or stream.chunks > chunks + 3 for stream, chunks in zip(streams, before, strict=True)),
        "more tokens on the others",
    )
    kept = [stream for stream in streams if not stream.broke]
    assert 0 < len(kept) < 6
    kept += await let_in(service, 6 - len(kept))  # when the dead gateway's leases have ended
    assert not await Stream(service).known()
    await asyncio.gather(*(stream.leave() for stream in kept))
    gaps = await asyncio.to_thread(
        wait_for, lambda: service.http.get("/api/usage").json()["gaps"], "the ledger's notice"
    )
    assert [gap["rows"] for gap in gaps] == [None]


async def test_reasoning_is_parsed_and_counted(service: Service) -> None:
    body = chat("[[answer: <think> let me see </think> yes it is]]", n=2)
    answer = service.http.post("/v1/chat/completions", json=body).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning"].strip(), message["content"].strip()) == ("let me see", "yes it is")
    told = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < told < answer["usage"]["completion_tokens"]
    await until(
        lambda: service.http.get("/api/usage", params={"key": "admin"}).json()["total"]["reasoning_tokens"] == told,
        "the row in the ledger",
    )


@pytest.mark.parametrize("gateways", ["redis"], indirect=True)
async def test_without_its_redis_each_gateway_keeps_to_its_share(service: Service, server: RedisServer) -> None:
    sent: list[int] = []

    async def send() -> None:
        while len(sent) < 200:
            sent.extend((await statuses(service, "plain", 1)).elements())

    try:
        senders = asyncio.gather(*(send() for _ in range(4)))
        await until(lambda: len(sent) > 50, "the first answers")
        server.kill()
        await senders
        assert set(sent) == {200}
        assert await statuses(service, "fresh", 40) == {200: 8, 429: 32}
        await until(lambda: fallbacks(service) > 0, "the count of it")
    finally:
        server.start()


def fallbacks(service: Service) -> float:
    """As the gateway counts them that answers."""
    text = service.http.get("/metrics").text
    return float(text.partition("\nvllm_chat_limiter_fallback_total ")[2].partition("\n")[0])
