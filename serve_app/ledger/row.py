"""One row of the usage ledger: what a request took and how it ended, never a word of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Finish = Literal["stop", "length", "tool_calls", "repetition", "abort", "error", "refused"]
"""How a request ended. abort: the client left; error: the service failed; refused: it never reached a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    time: datetime
    """When the request arrived, with a time zone."""
    request_id: str
    key_id: str
    """The public id of the key, never the key."""
    model: str
    """A served model's id; empty where none was reached."""
    route: str
    """The route as it is listed, such as `/v1/chat/completions`."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt that the KV cache had."""
    output_tokens: int = 0
    """Those that the client was sent; none where the answer never began."""
    reasoning_tokens: int = 0
    """Those of the output before the answer proper."""
    ttft_s: float | None = None
    """Seconds from arrival to the first token; None: there was none."""
    duration_s: float
    """Seconds from arrival to the end."""
    finish: Finish
    attempts: int = 1
    """Replicas that worked on it, one after another; 0 for a refused request."""
    status: int
    """The HTTP status that the client got."""
