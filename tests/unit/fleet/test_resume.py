"""What becomes of a request whose replica is gone, case by case, and what vLLM itself does with what is sent anew."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1.engine import FinishReason
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from serve_app.fleet.resume import End, EngineTraits, Move, decide
from tests.unit.fleet.requests import EOS, PROMPT, delivered, request

ENGINE = EngineTraits(max_model_len=100)
JSON = StructuredOutputsParams(json="{}")
WHOLE = RequestOutputKind.FINAL_ONLY
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


@pytest.mark.parametrize(
    ("tokens", "params", "end"),
    [
        ([20, EOS], {}, End(STOP)),
        ([20, 7], {"stop_token_ids": [7]}, End(STOP, 7)),
        ([20, EOS], {"stop_token_ids": [EOS]}, End(STOP)),
        ([20] * 8, {}, End(LENGTH)),
        ([20] * 7 + [EOS], {}, End(STOP)),
        ([20] * 7 + [7], {"stop_token_ids": [7]}, End(STOP, 7)),
        ([20] * 97, {"max_tokens": 1000}, End(LENGTH)),
        ([20] * 8, {"seed": 1}, End(LENGTH)),
        ([20, EOS], {"structured_outputs": JSON}, End(STOP)),
    ],
)
def test_a_request_whose_last_token_has_arrived_ends_as_vllm_ends_it(
    tokens: list[int], params: dict[str, Any], end: End
) -> None:
    assert decide(delivered(tokens, **params), ENGINE) == end


@pytest.mark.parametrize(
    ("tokens", "params"),
    [
        ([20], {}),
        ([20] * 7, {}),
        ([20, EOS], {"ignore_eos": True}),
        ([20] * 96, {"max_tokens": 1000}),
        ([20], {"min_tokens": 4, "stop_token_ids": [7]}),
        ([20], {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
        ([20], {"logprobs": 3, "stop": ["x"], "logit_bias": {5: 1.0}, "allowed_token_ids": [20, 21]}),
        ([20], {"seed": 1, "temperature": 0.0}),
        ([20], {"thinking_token_budget": 5}),
        ([20], {"output_kind": WHOLE}),
    ],
)
def test_what_depends_on_all_tokens_alike_is_resumed(tokens: list[int], params: dict[str, Any]) -> None:
    assert decide(delivered(tokens, **params), ENGINE) is Move.RESUME


STATEFUL = [
    {"structured_outputs": JSON},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
    {"seed": 1},
    {"bad_words": ["x y"]},
    {"repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=2)},
    {"trace_decode_token_ids": [20, 21]},
]


@pytest.mark.parametrize("params", STATEFUL, ids=lambda params: next(iter(params)))
def test_what_depends_on_output_alone_is_retried_whole_while_nothing_was_sent_and_fails_after(
    params: dict[str, Any],
) -> None:
    assert decide(delivered([], **params), ENGINE) is Move.RETRY
    assert decide(delivered([20, 21], read=0, **params), ENGINE) is Move.RETRY
    assert decide(delivered([20, 21], output_kind=WHOLE, **params), ENGINE) is Move.RETRY
    assert decide(delivered([20, 21], read=1, **params), ENGINE) is Move.FAIL


def test_prompt_embeddings_cannot_have_tokens_behind_them() -> None:
    entry = delivered([20])
    entry.request.prompt_embeds = torch.zeros(3, 4)
    assert decide(entry, ENGINE) is Move.FAIL


def test_a_seed_is_resumed_where_the_engine_draws_by_position() -> None:
    assert decide(delivered([20], seed=1), ENGINE._replace(restarts_seeds=False)) is Move.RESUME


def test_foreign_logits_processors_may_count_output() -> None:
    assert decide(delivered([20]), ENGINE._replace(custom_processors=True)) is Move.FAIL


@pytest.mark.parametrize(
    ("tokens", "step"),
    [
        ([20, 7], Move.FAIL),
        ([20, 7, 8], Move.FAIL),
        ([20, 7, 8, 9], Move.RESUME),
        ([20, 8], Move.RESUME),
        ([7, 20], Move.RESUME),
    ],
)
def test_a_forced_end_of_the_reasoning_is_not_begun_anew(tokens: list[int], step: Move) -> None:
    engine = ENGINE._replace(forced_end=(7, 8, 9))
    assert decide(delivered(tokens, thinking_token_budget=3), engine) is step
    assert decide(delivered(tokens), engine) is Move.RESUME


def test_a_resumed_request_has_its_limits_lowered_by_what_was_delivered() -> None:
    entry = delivered([20, 21], min_tokens=3, prompt_logprobs=1, thinking_token_budget=5, stop_token_ids=[7])
    entry.next_attempt()
    sent = entry.attempt_request()
    assert (sent.request_id, sent.prompt_token_ids) == ("r~1", [*PROMPT, 20, 21])
    params = sent.sampling_params
    assert params is not None
    assert (params.max_tokens, params.min_tokens, params.prompt_logprobs) == (6, 1, None)
    assert (params.thinking_token_budget, params.stop_token_ids, params.eos_token_id) == (5, [7], EOS)
    original = request(min_tokens=3, prompt_logprobs=1, thinking_token_budget=5, stop_token_ids=[7])
    assert (entry.request.sampling_params, entry.request.prompt_token_ids) == (original.sampling_params, PROMPT)


def test_choices_that_share_their_parameters_do_not_lower_each_others_limits() -> None:
    """vLLM gives all choices of a request one object."""
    first, second = delivered([20, 21, 22]), delivered([20])
    second.request.sampling_params = first.request.sampling_params
    limits = []
    for entry in (first, second, first):
        entry.next_attempt()
        params = entry.attempt_request().sampling_params
        limits.append(params and params.max_tokens)
    assert limits == [5, 7, 5]


THINK, END_THINK = 1, 2


def think(prompt: list[int], delivered: list[int], budget: int, count: int) -> list[int]:
    """What vLLM's thinking budget lets a model write that would think for ever."""
    tokens = SimpleNamespace(reasoning_start_token_ids=[THINK], reasoning_end_token_ids=[END_THINK])
    holder = ThinkingBudgetStateHolder(tokens, 1, 0, torch.device("cpu"), False)  # type: ignore[arg-type]
    output: list[int] = []
    added = (0, SamplingParams(thinking_token_budget=budget), [*prompt, *delivered], output)
    holder.sync_batch(BatchUpdate(batch_size=1, removed=[], added=[added], moved=[]))
    while len(delivered) + len(output) < count:
        holder.update_state([output], None)
        logits = torch.zeros(1, 100)
        logits[0, 20 + len(delivered) + len(output)] = 1
        output.append(int(holder.apply_to_logits(logits, False, []).argmax()))
    return [*delivered, *output]


@pytest.mark.parametrize("budget", [0, 3, 6])
def test_a_resumed_thinking_budget_ends_the_reasoning_where_an_undisturbed_one_does(budget: int) -> None:
    whole = think([50, THINK], [], budget, 12)
    assert whole[budget] == END_THINK
    assert [think([50, THINK], whole[:cut], budget, 12) for cut in range(12)] == [whole] * 12
