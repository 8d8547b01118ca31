"""Processes that are there and do nothing: their streams go on elsewhere, and they are replaced."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from tests.chaos.test_failover import WORDS, Stream
from tests.service import Service, alive, command_line, wait_for

TOKENS = 1500
GREEDY = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    """Of a service all of whose replicas are there, whatever an earlier test has killed."""
    for model, replicas in {"scripted": 3, "demo-2": 2, "demo-tp": 1}.items():
        wait_for(lambda m=model, r=replicas: service.up(m, r), f"the replicas of {model}", 240)  # type: ignore[misc]
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=240)


def test_streams_survive_a_replica_that_is_stopped(client: openai.OpenAI, service: Service) -> None:
    contents = [f"[[answer: {WORDS} {number}]] [[pace: 100ms]]" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        streams = [Stream(client, "scripted", content) for content in contents]
        results = [threads.submit(stream.read) for stream in streams]
        for stream in streams:
            assert stream.grown.wait(60)
        stopped = service.replicas("scripted")[0]
        stopped.suspend()
        assert [result.result().text for result in results] == [f"{WORDS} {number}" for number in range(8)]
    wait_for(lambda: not alive(stopped), "the end of the stopped replica", 30)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 7])
def test_a_stream_survives_an_engine_that_hangs(client: openai.OpenAI, after: int) -> None:
    stream = Stream(client, "scripted", f"[[answer: {WORDS}]] [[hang after: {after}]]").read()
    assert (stream.text, stream.finish, len(stream.ids)) == (WORDS, "stop", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "title", "which"),
    [("demo-2", "VLLM::EngineCore", 0), ("demo-tp", "VLLM::Worker", 0), ("demo-tp", "VLLM::Worker", 1)],
)
def test_real_vllm_resumes_token_for_token(
    client: openai.OpenAI, service: Service, model: str, title: str, which: int
) -> None:
    replica = service.replicas(model)[0]
    engine_processes = [each for each in replica.children(recursive=True) if title in command_line(each)]
    contents = [f"Story number {number}" for number in range(4)]
    expected = [Stream(client, model, content, **GREEDY).read().text for content in contents]
    with ThreadPoolExecutor(4) as threads:
        streams = [Stream(client, model, content, **GREEDY) for content in contents]
        results = [threads.submit(stream.read) for stream in streams]
        for stream in streams:
            assert stream.grown.wait(60)
        engine_processes[which].suspend()
        assert [result.result().text for result in results] == expected
    wait_for(lambda: not any(map(alive, [replica, *engine_processes])), "the end of the hung replica", 30)
    assert [(stream.finish, stream.tokens) for stream in streams] == [("length", TOKENS)] * 4


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Twice as many processes that never wait as there are cores."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (psutil.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.slow
def test_slow_is_not_hung(client: openai.OpenAI, service: Service) -> None:
    models = ("scripted", "demo-2", "demo-tp")
    before = {model: service.replicas(model) for model in models}
    with busy_machine(), ThreadPoolExecutor(16) as threads:
        paced = [threads.submit(Stream(client, "scripted", f"[[answer: {WORDS}]] [[pace: 4000ms]]").read)]
        computed = [
            threads.submit(Stream(client, model, f"Story number {number}", **GREEDY).read)
            for model in models[1:]
            for number in range(6)
        ]
        assert [stream.result().text for stream in paced] == [WORDS]
        assert [stream.result().tokens for stream in computed] == [TOKENS] * 12
    assert {model: service.replicas(model) for model in models} == before
