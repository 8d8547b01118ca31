"""The nested shapes of Anthropic's messages: content blocks, tools, thinking, output."""

from serve_app.gateway.policy.chat import CACHE_CONTROL, ID, NAME, NO_FETCH, PROMPT
from serve_app.gateway.policy.fields import Either, Fields, Json, Object, Sized, tagged
from serve_app.gateway.policy.json_schema import JsonSchema
from serve_app.gateway.policy.lists import ListOf
from serve_app.gateway.policy.media import FORMATS, ImageData
from serve_app.gateway.policy.rules import Bool, Int, OneOf, Rule, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Ignored, Refused

CITATIONS = Ignored(Json(frozenset({dict, list})))
CALLER = Ignored(Json())
DISPLAY = OneOf("summarized", "omitted", "updates")
NO_SERVER_TOOLS = "the service runs no tools"
TOOL_CHANGES = {"tool_addition": "send all tools in `tools`", "tool_removal": "send all tools in `tools`"}
OTHER_BLOCKS = {
    **TOOL_CHANGES,
    "document": "documents are not read",
    "search_result": "documents are not read",
    "server_tool_use": NO_SERVER_TOOLS,
    "web_search_tool_result": NO_SERVER_TOOLS,
    "web_fetch_tool_result": NO_SERVER_TOOLS,
    "code_execution_tool_result": NO_SERVER_TOOLS,
    "container_upload": NO_SERVER_TOOLS,
}

TEXT = Object({"text": PROMPT, "cache_control": CACHE_CONTROL, "citations": CITATIONS}, ("text",))
SYSTEM = Either(PROMPT, ListOf(tagged("type", text=TEXT), 128))


def messages(c: PolicyConfig) -> Rule:
    source = tagged(
        "type",
        refused={"url": NO_FETCH, "file": NO_FETCH},
        base64=Object({"media_type": OneOf(*FORMATS), "data": ImageData(c.media)}, ("media_type", "data")),
    )
    image = Object({"source": source, "cache_control": CACHE_CONTROL}, ("source",))
    reference = Object({"tool_name": NAME, "cache_control": CACHE_CONTROL}, ("tool_name",))
    inside = tagged("type", refused=OTHER_BLOCKS, text=TEXT, image=image, tool_reference=reference)
    result: Fields = {
        "tool_use_id": ID,
        "content": Either(PROMPT, ListOf(inside, c.messages)),
        "is_error": Bool(),
        "cache_control": CACHE_CONTROL,
    }
    use: Fields = {
        "id": ID,
        "name": Text(least=1, most=256),
        "input": Json(),
        "cache_control": CACHE_CONTROL,
        "caller": CALLER,
        "toolset_name": Ignored(ID),
    }
    block = tagged(
        "type",
        refused=OTHER_BLOCKS,
        text=TEXT,
        image=image,
        tool_use=Object(use, ("id", "name", "input")),
        tool_result=Object(result, ("tool_use_id",)),
        tool_reference=reference,
        thinking=Object({"thinking": PROMPT, "signature": Text()}, ("thinking",)),
        redacted_thinking=Object({"data": Text()}, ("data",)),
    )
    content = Either(PROMPT, ListOf(block, c.messages))
    message = Object({"role": OneOf("user", "assistant", "system"), "content": content}, ("role", "content"))
    return ListOf(message, c.messages, least=1)


def tools(c: PolicyConfig) -> Rule:
    fields: Fields = {
        "type": Ignored(OneOf("custom")),
        "name": NAME,
        "description": PROMPT,
        "input_schema": Json(),
        "strict": Bool(),
        "defer_loading": Bool(),
        "cache_control": CACHE_CONTROL,
        "eager_input_streaming": Ignored(Bool()),
        "input_examples": Ignored(ListOf(Json(), 32)),
        "allowed_callers": Ignored(ListOf(OneOf("direct"), 1)),
    }
    return Sized(ListOf(Object(fields, ("name", "input_schema")), c.tools), c.tools_bytes)


def tool_choice() -> Rule:
    one_at_a_time: Fields = {"disable_parallel_tool_use": Bool()}
    return tagged(
        "type",
        auto=Object(one_at_a_time),
        any=Object(one_at_a_time),
        tool=Object({"name": NAME, **one_at_a_time}, ("name",)),
        none=Object({}),
    )


def thinking(c: PolicyConfig) -> Rule:
    return tagged(
        "type",
        enabled=Object({"budget_tokens": Int(1024, c.tokens), "display": DISPLAY}, ("budget_tokens",)),
        disabled=Object({}),
        adaptive=Object({"display": DISPLAY}),
    )


def output_config(c: PolicyConfig) -> Rule:
    format_ = tagged("type", json_schema=Object({"schema": JsonSchema(c.json_schema)}, ("schema",)))
    return Object(
        {
            "effort": OneOf("low", "medium", "high", "xhigh", "max"),
            "format": format_,
            "task_budget": Refused("it is not supported"),
        }
    )
