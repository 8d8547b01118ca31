"""Replicas and gateways that are stopped on purpose: nothing that runs is cut, and nothing new fails."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.chaos.test_failover import WORDS, Stream
from tests.conftest import demo
from tests.load import load
from tests.service import Service, alive, pids, running_service, wait_for

pytestmark = pytest.mark.slow
DRAIN_S = 20
# Longer than a replica that is being stopped has.
LONG = " ".join(f"{WORDS} {number}" for number in range(4))
LONG_PACE_MS = 500
STREAMS = 6


def scripted(**settings: Any) -> dict[str, Any]:
    return demo("scripted", engine="scripted", **{"replicas": 2, "drain_timeout_s": DRAIN_S, **settings})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("drain"), [scripted()]) as running:
        yield running


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    wait_for(lambda: service.up("scripted", 2), "two replicas", 120)
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=240)


@contextmanager
def long_streams(client: openai.OpenAI) -> Iterator[list["Future[Stream]"]]:
    """Streams that have begun, and that nothing may disturb."""
    contents = [f"[[answer: {number} {LONG}]] [[pace: {LONG_PACE_MS}ms]]" for number in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as threads:
        streams = [Stream(client, "scripted", content) for content in contents]
        results = [threads.submit(stream.read) for stream in streams]
        for stream in streams:
            assert stream.grown.wait(60)
        yield results
        assert [result.result().text for result in results] == [f"{number} {LONG}" for number in range(STREAMS)]
        assert [(len(stream.ids), stream.roles, stream.finish) for stream in streams] == [(1, 1, "stop")] * STREAMS


def test_streams_move_off_a_replica_that_gets_sigterm(client: openai.OpenAI, service: Service) -> None:
    with long_streams(client) as results:
        terminated = service.replicas("scripted")[0]
        terminated.terminate()
        wait_for(lambda: not alive(terminated), "the end of the process", DRAIN_S)
        assert not any(result.done() for result in results)


def test_streams_move_off_the_replicas_of_an_old_version(client: openai.OpenAI, service: Service) -> None:
    old = service.replicas("scripted")
    with long_streams(client) as results:
        service.deploy([scripted(script_delay_s=0.001)])
        wait_for(lambda: not pids(service.replicas("scripted")) & pids(old), "the end of the old replicas", 120)
        assert any(not result.done() for result in results)


def test_a_redeploy_under_load_fails_nothing(client: openai.OpenAI, service: Service) -> None:
    replicas, (gateway,) = service.replicas("scripted"), service.gateways()
    kinds = [("yes", 0), ("yes", 0), (WORDS, 20), (WORDS, 200), (LONG, 200)]  # short answers, streams of seconds
    with load(lambda content: Stream(client, "scripted", content).read().text, kinds) as failures:
        service.deploy([scripted(script_delay_s=0.002)], gateway={"deadlines": {"total_s": 590}})
        wait_for(lambda: not pids(service.replicas("scripted")) & pids(replicas), "new replicas", 180)
        wait_for(lambda: not alive(gateway.process), "the end of the old gateway", 240)
        wait_for(lambda: service.up("scripted", 2), "the return of two replicas", 120)
    assert failures == []
