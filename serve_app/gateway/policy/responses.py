"""The nested shapes of OpenAI's responses: input items, tools, text format, reasoning."""

from serve_app.gateway.policy.chat import ID, NAME, PROMPT
from serve_app.gateway.policy.fields import Either, Fields, Json, Object, Sized, tagged
from serve_app.gateway.policy.json_schema import JsonSchema
from serve_app.gateway.policy.lists import ListOf
from serve_app.gateway.policy.media import ImageUrl
from serve_app.gateway.policy.rules import Bool, OneOf, Rule, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Ignored, Refused

STATUS = OneOf("in_progress", "completed", "incomplete")
EFFORT = OneOf("none", "minimal", "low", "medium", "high", "xhigh", "max")
CALLER = Ignored(Json())
NO_STORE = "no answers are stored; send the whole conversation as `input`"
NO_SERVER_TOOLS = "the service runs no tools"
SERVER_TOOLS = (
    "web_search web_search_preview file_search code_interpreter computer computer_use_preview mcp image_generation"
    " shell local_shell apply_patch tool_search namespace programmatic_tool_calling"
)
OTHER_TOOLS = dict.fromkeys(SERVER_TOOLS.split(), NO_SERVER_TOOLS)


def input_items(c: PolicyConfig) -> Rule:
    shared: Fields = {"id": ID, "status": STATUS}
    calling: Fields = {"call_id": ID, "caller": CALLER, "namespace": Text(most=64), "async": Ignored(Bool()), **shared}
    name = Text(least=1, most=256)
    output = Either(PROMPT, _parts(c))
    summary = tagged("type", summary_text=Object({"text": PROMPT}, ("text",)))
    thought = tagged("type", reasoning_text=Object({"text": PROMPT}, ("text",)))
    reasoning: Fields = {
        **shared,
        "summary": ListOf(summary, c.messages),
        "content": ListOf(thought, c.messages),
        "encrypted_content": Text(),
    }
    message: Fields = {
        **shared,
        "role": OneOf("user", "assistant", "system", "developer"),
        "content": output,
        "phase": Ignored(OneOf("commentary", "final_answer")),
    }
    item = tagged(
        "type",
        refused={"item_reference": NO_STORE},
        default="message",
        message=Object(message, ("role", "content")),
        reasoning=Object(reasoning, ("summary",)),
        function_call=Object({"name": name, "arguments": PROMPT, **calling}, ("call_id", "name", "arguments")),
        function_call_output=Object({"output": output, **calling}, ("call_id", "output")),
        custom_tool_call=Object({"name": name, "input": PROMPT, **calling}, ("call_id", "name", "input")),
        custom_tool_call_output=Object({"output": output, **calling}, ("call_id", "output")),
    )
    return Either(Text(least=1, prompt=True), ListOf(item, c.messages, least=1))


def _parts(c: PolicyConfig) -> Rule:
    image: Fields = {
        "image_url": ImageUrl(c.media),
        "detail": OneOf("auto", "low", "high"),
        "file_id": Refused("files are not stored"),
    }
    extras: Fields = {
        "annotations": Ignored(ListOf(Json(), c.messages)),
        "logprobs": Ignored(ListOf(Json(), c.tokens)),
    }
    part = tagged(
        "type",
        refused={"input_file": "files are not read", "input_audio": "send audio to /v1/chat/completions"},
        input_text=Object({"text": PROMPT}, ("text",)),
        output_text=Object({"text": PROMPT, **extras}, ("text",)),
        refusal=Object({"refusal": PROMPT}, ("refusal",)),
        input_image=Object(image, ("image_url",)),
    )
    return ListOf(part, c.messages, least=1)


def tools(c: PolicyConfig) -> Rule:
    shared: Fields = {
        "name": NAME,
        "description": PROMPT,
        "defer_loading": Bool(),
        "allowed_callers": Ignored(ListOf(OneOf("direct"), 1)),
    }
    function: Fields = {**shared, "parameters": Json(), "strict": Bool(), "output_schema": Ignored(Json())}
    free = tagged("type", refused={"grammar": "use a text format"}, text=Object({}))
    tool = tagged(
        "type",
        refused=OTHER_TOOLS,
        function=Object(function, ("name",)),
        custom=Object({**shared, "format": free}, ("name",)),
    )
    return Sized(ListOf(tool, c.tools), c.tools_bytes)


def tool_choice() -> Rule:
    named = Object({"name": NAME}, ("name",))
    return Either(
        OneOf("none", "auto", "required"),
        tagged("type", refused={**OTHER_TOOLS, "allowed_tools": "send only those tools"}, function=named, custom=named),
    )


def text(c: PolicyConfig) -> Rule:
    schema: Fields = {
        "name": NAME,
        "description": Text(most=4096),
        "schema": JsonSchema(c.json_schema),
        "strict": Bool(),
    }
    format_ = tagged(
        "type",
        text=Object({}),
        json_object=Object({}),
        json_schema=Object(schema, ("name", "schema")),
    )
    return Object({"format": format_, "verbosity": OneOf("low", "medium", "high")})


def reasoning() -> Rule:
    detail = OneOf("auto", "concise", "detailed")
    return Object(
        {
            "effort": EFFORT,
            "summary": detail,
            "generate_summary": detail,
            "context": OneOf("auto", "current_turn", "all_turns"),
            "mode": OneOf("standard"),
        }
    )
