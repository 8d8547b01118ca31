"""Requests to an engine core, as vLLM's front end makes them."""

from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.fleet.journal import Entry

EOS, PROMPT = 2, [10, 11, 12]


def request(request_id: str = "r", prompt: list[int] | None = None, **params: Any) -> EngineCoreRequest:
    """A streamed one, of at most 8 tokens."""
    # vLLM's routes let a clone share what it can.
    settings = {"max_tokens": 8, "output_kind": RequestOutputKind.DELTA, "skip_clone": True, **params}
    sampling = SamplingParams(**settings)
    sampling.update_from_generation_config({}, EOS)
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt or PROMPT),
        mm_features=None,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


def delivered(tokens: list[int], *, read: int | None = None, **params: Any) -> Entry:
    """A request of which these tokens were delivered, and so many read by the front end: all, unless said."""
    entry = Entry(request(**params))
    entry.tokens = list(tokens)
    entry.read = len(tokens) if read is None else read
    return entry
