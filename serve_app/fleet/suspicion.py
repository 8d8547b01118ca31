"""Which requests may be what kills replicas, and how they are told apart.

A request that was running when its replica died is under suspicion until it gives a token again. One that had given
tokens there goes on together with others of its kind. One that had not, as one has not that kills when it is first
computed, is given to an engine core alone: while no other request under suspicion is there without a token. If
that replica dies as well before the request gives a token, it is what kills, and is refused for a time.
"""

import hashlib
from enum import StrEnum

import msgspec

from serve_app.vllm_seam import EngineCoreRequest


class Suspicion(StrEnum):
    """How much a request is suspected, and so how a replica gives it to its engine core."""

    NONE = ""
    TOGETHER = "together"
    ALONE = "alone"


def digest_of(model: str, request: EngineCoreRequest) -> bytes:
    """16 bytes that stand for what a request asks a model to compute, whoever asks, and whether it is streamed."""
    params = msgspec.structs.asdict(request.params)
    for passing in ("seed", "output_kind"):
        params.pop(passing, None)
    content = (
        model,
        request.lora_request.lora_name if request.lora_request else None,
        request.prompt_token_ids,
        request.prompt_embeds,
        [feature.identifier for feature in request.mm_features or ()],
        params,
    )
    return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()
