"""Two gateways with one budget, which they share through an actor or through Redis: clients that race for it by both
never get more than there is.

Requests go to the gateways' own ports, so that each gets half of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import demo
from tests.redis_server import running_redis
from tests.service import Gateway, Service, running_service, wait_for

pytestmark = pytest.mark.slow

LEASE_S = 3
CLIENTS = 12
ATTEMPTS = 10
CHAT = "/v1/chat/completions"
SLOW = "[[answer: one two three four five six seven eight nine ten]] [[pace: 1000ms]]"


@pytest.fixture(scope="module", params=["actor", "redis"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, variables = tmp_path_factory.mktemp(request.param), {}
    redis = running_redis(folder)
    if request.param == "redis":
        variables["LIMITS_REDIS_URL"] = next(redis).url.get_secret_value()
    gateway = {"replicas": 2, "limits": {"lease_s": LEASE_S}}
    models = [demo("scripted", engine="scripted")]
    with running_service(folder, models, gateway=gateway, keys={"first": []}, variables=variables) as service:
        wait_for(lambda: len(service.gateways()) == 2 and all(map(answers, service.gateways())), "two gateways", 240)
        yield service
    redis.close()


def answers(gateway: Gateway) -> bool:
    try:
        return httpx.get(f"{gateway.url}/api/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": SLOW}], **fields}


def new_key(service: Service, *options: str) -> str:
    """A key that both gateways take."""
    key = service.new_key("raced", *options)
    urls = [f"{gateway.url}/metrics" for gateway in service.gateways()]
    wait_for(lambda: all(httpx.get(url, headers=bearer(key)).status_code == 403 for url in urls), "the key", 10)
    return key


def decided_alone(service: Service) -> float:
    """How often a gateway has decided by its share, because the shared limiter took too long."""
    name, total = "\nvllm_chat_limiter_fallback_total ", 0.0
    for gateway in service.gateways():
        text = httpx.get(f"{gateway.url}/metrics", headers=bearer(service.key)).text
        total += float(text.partition(name)[2].partition("\n")[0])
    return total


@asynccontextmanager
async def race(gateways: list[Gateway], key: str, clients: int, **fields: Any) -> AsyncIterator[int]:
    """So many streams asked for at once, by one gateway and the other in turn: how many begin. They stay open."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(headers=bearer(key), timeout=60))

        async def ask(gateway: Gateway) -> int:
            response = await client.send(
                client.build_request("POST", gateway.url + CHAT, json=chat(stream=True, **fields)), stream=True
            )
            stack.push_async_callback(response.aclose)
            assert response.status_code in {200, 429}
            return response.status_code

        statuses = await asyncio.gather(*(ask(gateways[number % len(gateways)]) for number in range(clients)))
        yield statuses.count(200)


async def budget_of(service: Service, options: list[str], **fields: Any) -> tuple[int, float]:
    """How many of the clients a new key lets in, and how many minutes that took.

    No gateway may have decided alone: on a busy machine the shared limiter can be too slow, and then another key
    is tried.
    """
    for _ in range(ATTEMPTS):
        key = await asyncio.to_thread(new_key, service, *options)
        alone, began = decided_alone(service), time.monotonic()
        async with race(service.gateways(), key, CLIENTS, **fields) as let_in:
            minutes = (time.monotonic() - began) / 60
        if decided_alone(service) == alone:
            return let_in, minutes
    raise AssertionError(f"the shared limiter was too slow in {ATTEMPTS} of {ATTEMPTS} cases")


async def test_requests(service: Service) -> None:
    let_in, minutes = await budget_of(service, ["--rpm", "5"])
    assert 5 <= let_in <= 5 + 5 * minutes


@pytest.mark.parametrize("choices", [1, 2])
async def test_tokens_of_all_choices(service: Service, choices: int) -> None:
    budget, most = 1000, 100
    prompt = service.http.post("/tokenize", json=chat()).json()["count"]
    cost = prompt + choices * most
    let_in, minutes = await budget_of(service, ["--tpm", str(budget)], max_tokens=most, n=choices)
    assert budget // cost <= let_in <= (budget + budget * minutes) // cost


async def test_places(service: Service) -> None:
    let_in, _ = await budget_of(service, ["--concurrent", "3"])
    assert let_in == 3


async def test_the_places_of_a_gateway_that_dies_come_free(service: Service) -> None:
    victim, other = service.gateways()
    key = await asyncio.to_thread(new_key, service, "--concurrent", "2")
    async with race([victim], key, 2) as let_in, race([other], key, 2) as more:
        assert (let_in, more) == (2, 0)
        victim.process.kill()
        deadline, freed = time.monotonic() + 60, 0
        while freed < 2:
            assert time.monotonic() < deadline
            async with race([other], key, 3) as freed:
                assert freed <= 2
