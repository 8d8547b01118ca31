"""What becomes of a request whose replica is gone: ended, retried whole, resumed, or failed.

A resumed request is sent as its prompt and the tokens delivered. vLLM then takes those for prompt, so whatever it
keeps of the output alone begins anew. Sources: vllm/v1/core/sched/utils.py (why a request ends),
vllm/v1/sample and vllm/v1/worker/gpu/sample (what counts output).
"""

from enum import Enum
from typing import NamedTuple

from serve_app.fleet.journal import Entry
from serve_app.vllm_seam import FinishReason, RequestOutputKind, SamplingType


class EngineTraits(NamedTuple):
    """What the decision needs to know of a model's engine core."""

    max_model_len: int
    """Tokens of prompt and answer together."""
    restarts_seeds: bool = True
    """Whether an explicit seed begins anew with a resumed request, and would draw its first numbers again."""
    custom_processors: bool = False
    """Whether there are logits processors that are not vLLM's: they may count output."""
    forced_end: tuple[int, ...] = ()
    """What an engine core writes when a thinking budget is used up, if it begins that anew; else empty."""


class Move(Enum):
    """How a request goes on."""

    RETRY = "retry"
    """From its beginning: tokens that were delivered are forgotten."""
    RESUME = "resume"
    """After the tokens delivered."""
    FAIL = "fail"
    """Not at all: its client has been sent text that could not be continued faithfully."""


class End(NamedTuple):
    """A request that had all its tokens: why vLLM would have ended it."""

    finish_reason: FinishReason
    stop_reason: int | None = None


def decide(entry: Entry, engine: EngineTraits) -> End | Move:
    """How a request goes on whose replica is gone."""
    if (end := _end(entry, engine)) is not None:
        return end
    if not entry.tokens:
        return Move.RETRY
    if obstacle(entry, engine) is None:
        return Move.RESUME
    return Move.RETRY if _nothing_sent(entry) else Move.FAIL


def obstacle(entry: Entry, engine: EngineTraits) -> str | None:
    """Why the tokens that would follow are not those that an undisturbed run draws from; None: they are.

    `repetition_penalty` counts prompt and output alike, a thinking budget the reasoning at the end of the prompt too.
    """
    params = entry.request.sampling_params
    if params is None:
        return None
    checks = {
        "prompt embeddings cannot have tokens behind them": entry.request.prompt_embeds is not None,
        "a grammar would begin at its root": params.structured_outputs is not None,
        "penalties count output": bool(params.presence_penalty or params.frequency_penalty),
        "a seed would draw again": engine.restarts_seeds and params.sampling_type is SamplingType.RANDOM_SEED,
        "words and repetitions are looked for in output": bool(params.bad_words or params.repetition_detection),
        "the answer is forced token by token": params.trace_decode_token_ids is not None,
        "a logits processor may count output": engine.custom_processors,
        "the end of the reasoning is being forced": (
            params.thinking_token_budget is not None and _ends_within(entry.tokens, engine.forced_end)
        ),
    }
    return next((reason for reason, applies in checks.items() if applies), None)


def _nothing_sent(entry: Entry) -> bool:
    """Whether the client has been sent nothing of the answer: an answer that is not streamed is sent at its end."""
    params = entry.request.sampling_params
    return not entry.read or (params is not None and params.output_kind is RequestOutputKind.FINAL_ONLY)


def _end(entry: Entry, engine: EngineTraits) -> End | None:
    """Why a request has ended, if its last token has arrived: the scheduler's checks, in their order."""
    params = entry.request.sampling_params
    if params is None or not entry.tokens:
        return None
    last, count = entry.tokens[-1], len(entry.tokens)
    if last == params.eos_token_id:
        return End(FinishReason.STOP)
    if last in (params.stop_token_ids or ()):
        return End(FinishReason.STOP, last)
    if entry.prompt_tokens + count >= engine.max_model_len or (params.max_tokens and count >= params.max_tokens):
        return End(FinishReason.LENGTH)
    return None


def _ends_within(tokens: list[int], sequence: tuple[int, ...]) -> bool:
    """Whether the tokens end with a beginning of the sequence, but not with all of it."""
    return any(tuple(tokens[-length:]) == sequence[:length] for length in range(1, len(sequence)))
