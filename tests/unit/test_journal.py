"""The journal: what another replica is sent, what is refused, and when a request has already ended."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from serve_app.fleet.journal import Entry, Journal, TokensLost

EOS, PROMPT = 2, [10, 11, 12]


def request(request_id: str = "r", **params: Any) -> EngineCoreRequest:
    sampling = SamplingParams(**{"max_tokens": 8, **params})
    sampling.update_from_generation_config({}, EOS)
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(PROMPT),
        mm_features=None,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def delivered(tokens: list[int], **params: Any) -> Entry:
    entry = Entry(request(**params))
    entry.tokens = tokens
    return entry


def output(attempt: str, tokens: list[int], finish: FinishReason | None = None) -> EngineCoreOutput:
    return EngineCoreOutput(attempt, tokens, finish_reason=finish)


async def test_the_first_attempt_sends_the_request_as_it_came() -> None:
    entry = Journal().open(request(min_tokens=3))
    sent = entry.attempt_request()
    assert sent.request_id == "r~0"
    assert sent.prompt_token_ids == PROMPT
    assert sent.sampling_params == entry.request.sampling_params


async def test_a_later_attempt_sends_delivered_tokens_as_prompt_and_lowers_the_limits() -> None:
    journal = Journal()
    entry = journal.open(request(min_tokens=3))
    journal.record(entry, output("r~0", [20, 21]), offset=0)
    entry.next_attempt()
    sent = entry.attempt_request()
    assert sent.sampling_params is not None
    assert (sent.request_id, sent.prompt_token_ids) == ("r~1", [*PROMPT, 20, 21])
    assert (sent.sampling_params.max_tokens, sent.sampling_params.min_tokens) == (6, 1)
    assert entry.request.prompt_token_ids == PROMPT
    assert entry.request.sampling_params is not None
    assert entry.request.sampling_params.max_tokens == 8


async def test_tokens_of_an_attempt_that_was_given_up_are_dropped() -> None:
    journal = Journal()
    entry = journal.open(request())
    entry.next_attempt()
    assert journal.entry_of(output("r~0", [20])) is None
    assert journal.entry_of(output("r~1", [20])) is entry
    assert journal.entry_of(output("other~1", [20])) is None


async def test_offsets_continue_within_an_attempt() -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20, 21]), offset=0)
    entry.next_attempt()
    journal.record(entry, output("r~1", [22]), offset=0)
    journal.record(entry, output("r~1", [23]), offset=1)
    assert entry.tokens == [20, 21, 22, 23]


@pytest.mark.parametrize("offset", [1, 3])
async def test_a_gap_or_a_repetition_is_noticed_and_nothing_written(offset: int) -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20, 21]), offset=0)
    with pytest.raises(TokensLost):
        journal.record(entry, output("r~0", [22]), offset=offset)
    assert entry.tokens == [20, 21]


async def test_a_finished_request_leaves_the_journal() -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20], FinishReason.LENGTH), offset=0)
    assert (len(journal), entry.finished.is_set(), journal.holds(entry)) == (0, True, False)


async def test_waiting_counts_requests_without_a_token() -> None:
    journal = Journal()
    first, _ = journal.open(request("a")), journal.open(request("b"))
    assert journal.waiting() == 2
    journal.record(first, output("a~0", [20]), offset=0)
    assert journal.waiting() == 1


@pytest.mark.parametrize(
    ("tokens", "params", "expected"),
    [
        ([], {}, None),
        ([20], {}, None),
        ([20, EOS], {}, (FinishReason.STOP, None)),
        ([20, EOS], {"ignore_eos": True}, None),
        ([20, 7], {"stop_token_ids": [7]}, (FinishReason.STOP, 7)),
        ([20] * 8, {}, (FinishReason.LENGTH, None)),
        ([20] * 7 + [EOS], {}, (FinishReason.STOP, None)),
    ],
)
def test_a_request_whose_last_token_has_arrived_is_ended(
    tokens: list[int], params: dict[str, Any], expected: tuple[FinishReason, int | None] | None
) -> None:
    assert delivered(tokens, **params).exhausted() == expected


@pytest.mark.parametrize(
    "params",
    [
        {"seed": 1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"structured_outputs": StructuredOutputsParams(json="{}")},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_depends_on_the_output_so_far_moves_only_before_the_first_token(params: dict[str, Any]) -> None:
    assert delivered([], **params).resumable()
    assert not delivered([20], **params).resumable()


def test_plain_sampling_resumes() -> None:
    assert delivered([20], temperature=0.7, top_p=0.9, repetition_penalty=1.1, logprobs=3).resumable()
