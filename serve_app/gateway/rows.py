"""The row of the usage ledger that a request on a model route leaves."""

import time

from serve_app.gateway.call import Call
from serve_app.gateway.response import CLIENT_LEFT
from serve_app.gateway.usage import Usage
from serve_app.ledger.row import Finish, Row
from serve_app.vllm_seam import FinishReason

OK, INTERNAL = 200, 500
FINISHES: dict[FinishReason | None, Finish] = {
    None: "stop",  # vLLM's front end found a stop string
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "stop",
    FinishReason.ERROR: "error",
    FinishReason.REPETITION: "repetition",
}


def row_of(call: Call, path: str, used: Usage) -> Row:
    """`path`: of the route; `used`: what the request came to."""
    output = reasoning = 0
    if call.status == OK:  # otherwise an error, or nothing at all, is what the client got
        output = used.sent_tokens
        if call.frontend and call.ticket:
            reasoning = sum(map(call.frontend.count_reasoning, call.ticket.entries))
    return Row(
        time=call.arrived,
        request_id=call.request_id,
        key_id=call.caller.id,
        model=call.model,
        route=path,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        output_tokens=output,
        reasoning_tokens=reasoning,
        ttft_s=None if used.first_token_at is None else used.first_token_at - call.started,
        duration_s=time.monotonic() - call.started,
        finish=_finish(call, used),
        attempts=used.attempts,
        status=CLIENT_LEFT if call.status is None else call.status,
    )


def _finish(call: Call, used: Usage) -> Finish:
    if call.client_left or call.status is None:
        return "abort"
    if call.error is not None:
        return "error" if used.attempts or call.error.status == INTERNAL else "refused"
    return FINISHES[used.finish_reason]
