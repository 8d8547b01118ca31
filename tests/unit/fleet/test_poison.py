"""A request that kills replicas: it gets two, and then no more; those that were there with it lose nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.fleet.quarantine import Verdict
from tests.answers import ask
from tests.unit.fleet.bed import Bed, running_bed, until

WORDS = "one two three four five six seven eight nine ten eleven twelve"
POISON = "[[answer: boom]] [[die after: 0]]"


@pytest.fixture
async def bed(config: VllmConfig, model: ModelConfig) -> AsyncIterator[Bed]:
    async with running_bed(config, model, replicas=3) as bed:
        yield bed


FAILED, REFUSED = (500, "upstream_failed"), (422, "request_refused")


async def failing(bed: Bed, content: str, stream: bool = True, **settings: Any) -> tuple[int, str]:
    """The status and code with which a request fails; asserts that it is not to be sent again."""
    with pytest.raises(openai.APIStatusError) as failure:
        await ask(bed.client, content, stream=stream, **settings)
    headers = failure.value.response.headers
    assert (headers["x-should-retry"], "retry-after" in headers) == ("false", False)
    return failure.value.status_code, failure.value.code or ""


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", ["die", "engine dies"])
async def test_a_request_that_kills_gets_two_replicas_and_is_refused_from_then_on(
    bed: Bed, fault: str, stream: bool
) -> None:
    poison = f"[[answer: boom]] [[{fault}]]"
    assert await failing(bed, poison, stream) == FAILED
    assert (len(bed.handle.living), bed.handle.calls) == (1, 2)
    assert await failing(bed, poison, stream) == REFUSED
    assert await failing(bed, poison, not stream) == REFUSED
    assert (len(bed.handle.living), bed.handle.calls) == (1, 2)
    assert [(each.finish, each.attempts, each.status) for each in bed.ledger.rows] == [
        ("error", 2, 500),
        ("refused", 0, 422),
        ("refused", 0, 422),
    ]
    assert (await ask(bed.client, "[[answer: fine]]", stream=stream))["choices"][0]["content"] == "fine"


async def test_it_is_tried_again_after_its_time(config: VllmConfig, model: ModelConfig) -> None:
    async with running_bed(config, model, replicas=3, failover={"refuse_s": 0.2}) as bed:
        assert await failing(bed, POISON) == FAILED
        await until(lambda: not bed.quarantine.findings(), "the end of the quarantine")
        await bed.start_replica()
        assert await failing(bed, POISON) == FAILED
        assert bed.handle.living == []


async def test_the_choices_of_one_request_are_tried_one_after_another(config: VllmConfig, model: ModelConfig) -> None:
    async with running_bed(config, model, replicas=1) as bed:
        answer = asyncio.create_task(failing(bed, POISON, n=2, temperature=1))
        await until(lambda: not bed.handle.living, "the first death")
        for _ in range(3):
            await bed.start_replica()
        assert await answer == FAILED
        assert len(bed.handle.living) == 2


async def test_one_whose_client_leaves_and_comes_again_is_known(bed: Bed) -> None:
    bed.fleet.budget._each = 1.0  # a move takes its time
    bed.fleet.budget.set_replicas(1, 1)
    await bed.fleet.budget.take(10)
    first = asyncio.create_task(ask(bed.client, POISON, stream=True))
    await until(lambda: len(bed.handle.living) == 2, "the first death")
    await until(bed.quarantine.findings, "the suspicion")
    first.cancel()
    await asyncio.wait([first])
    assert await failing(bed, POISON) == FAILED
    assert (len(bed.handle.living), bed.handle.calls) == (1, 2)


@pytest.mark.parametrize("bystanders", [1, 5])
async def test_bystanders_of_both_deaths_lose_nothing_and_are_not_refused(bed: Bed, bystanders: int) -> None:
    contents = [f"[[answer: {WORDS} {number}]] [[pace: 10ms]]" for number in range(bystanders)]
    undisturbed = [await ask(bed.client, content, stream=True) for content in contents]
    streams = [asyncio.create_task(ask(bed.client, content, stream=True)) for content in contents]
    await until(lambda: len(bed.entries) == bystanders and all(e.tokens for e in bed.entries), "all first tokens")
    assert await failing(bed, POISON) == FAILED
    assert await asyncio.gather(*streams) == undisturbed
    assert len(bed.handle.living) == 1
    assert [await ask(bed.client, content, stream=True) for content in contents] == undisturbed


async def test_bystanders_without_a_token_are_told_apart_from_the_one_that_kills(bed: Bed) -> None:
    contents = [f"[[answer: {WORDS} {number}]] [[pace: 50ms]]" for number in range(6)]
    streams = [asyncio.create_task(ask(bed.client, content, stream=True)) for content in contents]
    await until(lambda: len(bed.entries) == 6 and all(entry.begun for entry in bed.entries), "the arrival of all")
    assert await failing(bed, POISON) == FAILED
    answers = await asyncio.gather(*streams)
    assert [answer["choices"][0]["content"] for answer in answers] == [f"{WORDS} {number}" for number in range(6)]
    assert len(bed.handle.living) == 1
    verdicts = [finding.verdict for finding in bed.quarantine.findings()]
    assert verdicts == [Verdict.REFUSED]


async def test_an_answer_that_kills_at_the_same_place_when_begun_anew_is_refused(bed: Bed) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 4]]"
    assert await failing(bed, content, stream=False, seed=1, temperature=1) == FAILED
    assert len(bed.handle.living) == 1


async def test_the_same_content_that_has_given_tokens_between_two_deaths_is_not_refused(bed: Bed) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 4]]"
    for _ in range(4):
        await bed.start_replica()
        assert (await ask(bed.client, content, stream=True))["choices"][0]["content"] == WORDS
