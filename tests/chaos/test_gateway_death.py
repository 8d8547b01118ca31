"""A gateway dies: only its own connections end, and what it had asked for is given up in the replicas."""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import msgspec
import pytest

from tests.conftest import demo
from tests.service import Gateway, Service, running_service, wait_for

pytestmark = pytest.mark.slow

WORDS = " ".join(f"one two three four five six seven eight nine ten {number}" for number in range(20))
STREAMS = 6
ABORTED_WITHIN_S = 5


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two gateways over one replica."""
    folder = tmp_path_factory.mktemp("gateways")
    model = demo("scripted", engine="scripted")
    with running_service(folder, [model], gateway={"replicas": 2}) as service:
        wait_for(lambda: len(service.gateways()) == 2, "two gateways", 120)
        yield service


def read(service: Service, gateway: Gateway, number: int, begun: "Future[None]") -> str | None:
    """The text of a stream of one gateway, of some ten seconds; None if its connection broke."""
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": f"[[answer: {number} {WORDS}]] [[pace: 50ms]]"}],
        "stream": True,
    }
    text = ""
    headers = {"authorization": f"Bearer {service.key}"}
    try:
        with httpx.stream(
            "POST", f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    for choice in msgspec.json.decode(line.removeprefix("data: "))["choices"]:
                        text += choice["delta"].get("content") or ""
                if text and not begun.done():
                    begun.set_result(None)
    except httpx.RemoteProtocolError:
        return None
    return text


def running(service: Service, gateway: Gateway) -> float:
    """How many requests the replica computes, as a gateway knows from it."""
    headers = {"authorization": f"Bearer {service.key}"}
    text = httpx.get(f"{gateway.url}/metrics", headers=headers).text
    found = re.search(r'vllm:num_requests_running{engine="0",model_name="scripted"} (\S+)', text)
    assert found is not None
    return float(found[1])


def test_only_its_own_connections_end_and_its_requests_are_aborted(service: Service) -> None:
    dying, other = service.gateways()
    begun: list[Future[None]] = [Future() for _ in range(2 * STREAMS)]
    with ThreadPoolExecutor(2 * STREAMS) as threads:
        reading = [
            threads.submit(read, service, dying if number < STREAMS else other, number, each)
            for number, each in enumerate(begun)
        ]
        for each in begun:
            each.result(60)
        wait_for(lambda: running(service, other) == 2 * STREAMS, "all streams in the replica")
        dying.process.kill()
        wait_for(lambda: running(service, other) <= STREAMS, "the abort of its requests", ABORTED_WITHIN_S)
        texts = [stream.result() for stream in reading]
    assert texts == [None] * STREAMS + [f"{number} {WORDS}" for number in range(STREAMS, 2 * STREAMS)]
    wait_for(lambda: running(service, other) == 0, "the end of all requests")


def test_another_takes_its_place(service: Service) -> None:
    wait_for(lambda: len(service.gateways()) == 2, "a new gateway", 120)
    for gateway in service.gateways():
        wait_for(lambda gateway=gateway: answers(service, gateway), "its answer")  # type: ignore[misc]


def answers(service: Service, gateway: Gateway) -> bool:
    try:
        return httpx.get(f"{gateway.url}/api/healthz").json()["status"] == "ok"
    except (httpx.HTTPError, KeyError):
        return False
