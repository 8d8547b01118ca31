"""A replica dies at any place of an answer: its client gets what it would have got, whatever the answer is made of."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.ledger.row import Row
from tests.answers import CASES, ask
from tests.unit.fleet.bed import Bed, running_bed, until

ANSWER = CASES["plain"][0]


@pytest.fixture
async def bed(config: VllmConfig, model: ModelConfig) -> AsyncIterator[Bed]:
    async with running_bed(config, model) as bed:
        yield bed


async def row(bed: Bed) -> Row:
    """The ledger's last row, once the request of it has ended."""
    await until(lambda: bed.ledger.rows and not bed.entries, "the end of the request")
    return bed.ledger.rows[-1]


@pytest.mark.parametrize(
    "stream", [pytest.param(True, id="stream"), pytest.param(False, id="whole", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CASES)
async def test_a_resumed_answer_is_the_undisturbed_one(bed: Bed, case: str, stream: bool) -> None:
    content, settings = CASES[case]
    undisturbed = await ask(bed.client, content, stream=stream, **settings)
    expected = await row(bed)
    tokens = expected.output_tokens // settings.get("n", 1)
    assert (expected.attempts, expected.output_tokens) == (1, undisturbed["usage"]["completion_tokens"])
    for place in (0, 1, 3, 7, tokens - 1, tokens):
        await bed.start_replica()
        bed.kill_at(place)
        assert await ask(bed.client, content, stream=stream, **settings) == undisturbed, place
        assert bill(await row(bed)) == bill(expected), place
        assert bed.ledger.rows[-1].attempts == (2 if place < tokens else 1), place
        assert len(bed.handle.living) == 3, place


def bill(row: Row) -> tuple[Any, ...]:
    """What a request came to, however many replicas worked on it."""
    return row.prompt_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens, row.finish, row.status


STATEFUL: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1, "temperature": 1},
    "penalty": {"presence_penalty": 1.0},
    "grammar": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("case", STATEFUL)
@pytest.mark.parametrize("place", [7, *(pytest.param(place, marks=pytest.mark.slow) for place in (0, 1, 15))])
async def test_what_cannot_be_resumed_is_retried_whole_while_its_client_has_nothing(
    bed: Bed, case: str, place: int
) -> None:
    settings = {**STATEFUL[case], "n": 2 if case == "seed" else 1, "logprobs": True}
    undisturbed = await ask(bed.client, ANSWER, stream=False, **settings)
    expected = await row(bed)
    bed.kill_at(place)
    assert await ask(bed.client, ANSWER, stream=False, **settings) == undisturbed
    assert bill(await row(bed)) == bill(expected)
    assert (bed.ledger.rows[-1].attempts, len(bed.handle.living)) == (2, 2)


@pytest.mark.parametrize("case", STATEFUL)
async def test_what_cannot_be_resumed_fails_once_its_client_has_some_of_it(bed: Bed, case: str) -> None:
    bed.kill_at(4)
    with pytest.raises(openai.APIError) as failure:
        await ask(bed.client, ANSWER, stream=True, **STATEFUL[case])
    assert (failure.value.code, (await row(bed)).attempts) == ("upstream_failed", 1)
    assert (bed.ledger.rows[-1].finish, bed.ledger.rows[-1].output_tokens) == ("error", 4)


async def test_a_stream_that_cannot_be_resumed_survives_before_its_first_token(bed: Bed) -> None:
    undisturbed = await ask(bed.client, ANSWER, stream=True, seed=1, temperature=1)
    bed.kill_at(0)
    assert await ask(bed.client, ANSWER, stream=True, seed=1, temperature=1) == undisturbed


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_answer_whose_last_token_has_arrived_ends_at_once(bed: Bed, stream: bool) -> None:
    settings: dict[str, Any] = {"max_tokens": 9, "seed": 1, "temperature": 1}
    undisturbed = await ask(bed.client, ANSWER, stream=stream, **settings)
    calls, tokens = bed.handle.calls, (await row(bed)).output_tokens
    bed.kill_at(tokens, lose_the_end=True)
    assert await ask(bed.client, ANSWER, stream=stream, **settings) == undisturbed
    assert (bed.handle.calls - calls, (await row(bed)).attempts, len(bed.handle.living)) == (1, 1, 2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_request_moves_twice_and_no_more(bed: Bed, stream: bool) -> None:
    undisturbed = await ask(bed.client, ANSWER, stream=stream)
    bed.kill_at(2, 5)
    assert await ask(bed.client, ANSWER, stream=stream) == undisturbed
    assert (await row(bed)).attempts == 3
    for _ in range(3):
        await bed.start_replica()
    bed.kill_at(2, 5, 9)
    with pytest.raises(openai.APIError) as failure:
        await ask(bed.client, ANSWER, stream=stream)
    assert (failure.value.code, (await row(bed)).attempts) == ("upstream_failed", 3)
    assert (bed.ledger.rows[-1].finish, bed.ledger.rows[-1].output_tokens) == ("error", 9 if stream else 0)


@pytest.mark.slow
async def test_tokens_that_are_lost_on_the_way_are_computed_again(bed: Bed) -> None:
    undisturbed = await ask(bed.client, ANSWER, stream=True)
    bed.lose(5)
    assert await ask(bed.client, ANSWER, stream=True) == undisturbed
    assert ((await row(bed)).attempts, len(bed.handle.living)) == (2, 3)
