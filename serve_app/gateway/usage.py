"""What a request came to, by the journal entries of its requests to the engine core."""

from collections.abc import Sequence
from typing import NamedTuple

from serve_app.fleet.journal import Entry
from serve_app.vllm_seam import FinishReason


class Usage(NamedTuple):
    """What a request came to."""

    prompt_tokens: int = 0
    """Of each prompt once, however many choices it got."""
    cached_tokens: int = 0
    output_tokens: int = 0
    """That the front end has taken; of a client that left, those until then."""
    sent_tokens: int = 0
    """Of those, the tokens in the answer as far as it was passed on."""
    attempts: int = 0
    """Replicas that worked on it, one after another; of several choices, the most."""
    first_token_at: float | None = None
    """Seconds, monotonic clock."""
    finish_reason: FinishReason | None = None


def usage_of(entries: Sequence[Entry]) -> Usage:
    """What a request has come to so far."""
    if not entries:
        return Usage()
    prompts = {entry.request.external_req_id: entry for entry in entries}.values()
    first = [entry.first_token_at for entry in entries if entry.first_token_at is not None]
    reasons = [entry.finish_reason for entry in entries if entry.finish_reason is not None]
    return Usage(
        prompt_tokens=sum(entry.prompt_tokens for entry in prompts),
        cached_tokens=sum(entry.cached_tokens for entry in prompts),
        output_tokens=sum(entry.read for entry in entries),
        sent_tokens=sum(entry.sent for entry in entries),
        attempts=max(entry.replicas for entry in entries),
        first_token_at=min(first, default=None),
        # The worst of several choices: vLLM numbers them in that order.
        finish_reason=max(reasons, default=None),
    )
