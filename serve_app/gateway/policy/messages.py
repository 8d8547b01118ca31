"""The tables of Anthropic's routes. Start at table.py."""

from serve_app.gateway.policy import anthropic, chat
from serve_app.gateway.policy.entries import MODEL, RoutePolicy, internal
from serve_app.gateway.policy.fields import Fields, Json, Object
from serve_app.gateway.policy.lists import ListOf
from serve_app.gateway.policy.rules import Bool, Int, Number, OneOf, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Ignored, Refused


def _prompt(c: PolicyConfig) -> Fields:
    """What is counted."""
    return {
        "model": MODEL,
        "messages": anthropic.messages(c),
        "system": anthropic.SYSTEM,
        "tools": anthropic.tools(c),
        "tool_choice": anthropic.tool_choice(),
        "thinking": anthropic.thinking(c),
        "output_config": anthropic.output_config(c),
        "chat_template_kwargs": chat.chat_template_kwargs(c),
        "cache_control": chat.CACHE_CONTROL,
        "mcp_servers": Refused(anthropic.NO_SERVER_TOOLS, off=([],)),
        "context_management": Refused("it is not supported"),
        "speed": Ignored(OneOf("standard", "fast")),
        "user_profile_id": Ignored(Text(256)),
    }


def messages_api(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **_prompt(c),
        "max_tokens": Int(1),
        "stream": Bool(),
        "stop_sequences": ListOf(Text(c.stop_chars, 1), c.stop),
        "temperature": Number(0, 2),
        "top_p": Number(0, 1, above=True),
        "top_k": Int(-1, 100_000),
        "metadata": Ignored(Object({"user_id": Text(256)})),
        "service_tier": Ignored(OneOf("auto", "standard_only")),
        "inference_geo": Ignored(Text(64)),
        "diagnostics": Ignored(Json()),
        "container": Refused(anthropic.NO_SERVER_TOOLS),
        **internal("cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
        **internal("mm_payload", "return_mm_kwargs", "watermarking"),
    }
    return RoutePolicy(fields, ("messages", "max_tokens"), ("max_tokens",), chat=True)


def count_tokens(c: PolicyConfig) -> RoutePolicy:
    return RoutePolicy(_prompt(c), ("messages",), chat=True)
