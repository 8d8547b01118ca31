"""What an entry of the table holds for a route, and the fields that are closed on every route."""

from dataclasses import dataclass

from serve_app.gateway.policy.fields import Fields
from serve_app.gateway.policy.rules import Text
from serve_app.gateway.policy.verdicts import Refused, SetByUs

MODEL = Text(least=1, most=256)

FEATURES = frozenset({"benchmark", "grammar", "prefill", "token_ids"})
"""What a key may be allowed beyond the rest: fixed answer lengths and token ids in answers; regular expressions and
grammars; an answer that goes on from the caller's own words; prompts of token ids."""


@dataclass(frozen=True)
class RoutePolicy:
    """What the body of a route may hold."""

    fields: Fields
    required: tuple[str, ...] = ()
    length: tuple[str, ...] = ()
    """The fields that bound the answer's length; the first is set where a key has a limit and the body has none."""
    chat: bool = False
    """The model's template makes turns of the body."""
    default_length: int | None = None
    """The length that vLLM takes where none is set, if not the rest of the context."""


# What no caller may set, on any route that has it.
INTERNAL: Fields = {
    "cache_salt": SetByUs("the cache group of the key"),
    "priority": SetByUs("the tier of the key"),
    "request_id": SetByUs("its own ids"),
    "session_id": SetByUs("its own routing"),
    "kv_transfer_params": Refused("it moves caches between engines"),
    "ec_transfer_params": Refused("it moves caches between engines"),
    "vllm_xargs": Refused("it is for plugins of the engine"),
    "mm_processor_kwargs": Refused("it changes what reading media costs"),
    "media_io_kwargs": Refused("it changes what reading media costs"),
    "chat_template": Refused("the model's own template is used"),
    "mm_payload": Refused("it is for rendering only"),
    "return_mm_kwargs": Refused("it is for rendering only"),
    "return_token_offsets": Refused("it is for rendering only", off=(False,)),
    "return_prompt_text": Refused("it would show the rendered prompt", off=(False,)),
    "routed_experts_prompt_start": Refused("it is internal", off=(0,)),
    "watermarking": Refused("the operator decides on it"),
    "stream_interval": Refused("the service paces streams", off=(1,)),
}


def internal(*names: str) -> dict[str, Refused]:
    return {name: rule for name in names if isinstance(rule := INTERNAL[name], Refused)}
