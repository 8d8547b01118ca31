"""Deaths by the dozen: a storm over the scripted engine, and real vLLM killed at chosen tokens."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from loadtests.storm import Storm, run_storm
from loadtests.target import Target
from loadtests.victims import ENGINE_CORE, WORKER, Killer, find
from tests.service import Service, alive, wait_for

pytestmark = pytest.mark.slow

TOKENS = 40
CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    """What the client of a stream got."""

    text: str
    ids: frozenset[str]
    finish: str
    tokens: int
    complete: bool


def ask(service: Service, model: str, on_token: Callable[[int], None] = lambda _: None) -> Answer:
    """A stream of TOKENS greedy tokens, read to its end; `on_token` is told how many have come, once or more."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the KV cache?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    text, ids, finish, tokens, complete = "", set[str](), "", 0, False
    with service.http as http, http.stream("POST", CHAT, json=body, timeout=300) as response:
        assert response.status_code == 200, response.read()
        for line in filter(None, response.iter_lines()):
            if line == "data: [DONE]":
                complete = True
                continue
            if line.startswith(":"):
                continue
            chunk: dict[str, Any] = msgspec.json.decode(line.removeprefix("data: "))
            ids.add(chunk["id"])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            on_token(tokens)
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return Answer(text, frozenset(ids), finish, tokens, complete)


def replica_of(service: Service, model: str) -> psutil.Process:
    """The one replica of a model, once it is up."""
    wait_for(lambda: service.up(model, 1), f"a replica of {model}", 240, every=0.5)
    (replica,) = service.replicas(model)
    return replica


async def test_a_storm_over_the_scripted_engine(service: Service) -> None:
    wait_for(lambda: service.up("scripted", 3), "three replicas", 240)
    key = service.new_key("storm", "--feature", "benchmark")
    target = Target(f"{service.url}/v1", "scripted", key)
    killer = Killer(service.process, "scripted", ["replica"], seed=1, spare=1)
    storm = Storm(streams=16, tokens=TOKENS, seconds=20, every_s=1, directives="[[pace: 50ms]]")
    outcome = await run_storm(target, killer, storm, lambda _: None)
    assert outcome.failures() == []
    assert outcome.exact == len(outcome.answers) >= 16


@pytest.mark.parametrize("after", [1, 7, TOKENS - 1, TOKENS])
@pytest.mark.parametrize("victim", ["", ENGINE_CORE], ids=["replica", "engine core"])
def test_real_vllm_dies_at_a_token(service: Service, victim: str, after: int) -> None:
    replica = replica_of(service, "demo")
    expected = ask(service, "demo")
    assert (expected.tokens, expected.finish, expected.complete) == (TOKENS, "length", True)

    def kill(seen: int) -> None:
        if seen >= after and alive(replica) and (process := find(replica, victim)) is not None:
            process.kill()

    got = ask(service, "demo", kill)
    wait_for(lambda: not replica.is_running(), "the end of the replica", 30)
    assert got._replace(ids=expected.ids) == expected
    assert len(got.ids) == 1


def test_real_vllm_dies_before_the_first_token(service: Service) -> None:
    replica = replica_of(service, "demo")
    expected = ask(service, "demo")
    engine_core = find(replica, ENGINE_CORE)
    assert engine_core is not None
    engine_core.suspend()
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(ask(service, "demo")))
    asking.start()
    wait_for(lambda: service.health().get("queue_size") == 1, "the arrival of the request")
    replica.kill()
    asking.join(300)
    assert [answer._replace(ids=expected.ids) for answer in answers] == [expected]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_of_a_tensor_parallel_replica_dies(service: Service, rank: int) -> None:
    replica = replica_of(service, "demo-tp")
    expected = ask(service, "demo-tp")
    workers = [each for each in replica.children(recursive=True) if WORKER in " ".join(each.cmdline())]
    assert len(workers) == 2

    def kill(seen: int) -> None:
        if seen >= 7 and alive(workers[rank]):
            workers[rank].kill()

    got = ask(service, "demo-tp", kill)
    wait_for(lambda: not replica.is_running(), "the end of the replica", 30)
    assert got._replace(ids=expected.ids) == expected
