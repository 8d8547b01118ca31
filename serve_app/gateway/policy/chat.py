"""The nested shapes of OpenAI's chat requests: messages, content parts, tools, response formats."""

from serve_app.gateway.errors import UnsupportedParameter
from serve_app.gateway.policy.fields import Either, Fields, Json, Object, Sized, tagged
from serve_app.gateway.policy.json_schema import JsonSchema, JsonSchemaText
from serve_app.gateway.policy.lists import ListOf, MapOf
from serve_app.gateway.policy.media import AudioData, ImageUrl
from serve_app.gateway.policy.rules import Bool, Int, OneOf, Rule, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Ignored, Needs, Refused

PROMPT = Text(prompt=True)
ID = Text(least=1, most=256)
NAME = Text(pattern="[A-Za-z0-9_-]{1,64}")
CACHE_CONTROL = Ignored(Json())

NO_CACHE_ID = Refused("it would name another caller's media in the cache")
NO_EMBEDS = "embeddings of tensors are not read from requests"
NO_FETCH = "the service fetches nothing"
OTHER_PARTS = {
    "image_embeds": NO_EMBEDS,
    "audio_embeds": NO_EMBEDS,
    "video_embeds": NO_EMBEDS,
    "prompt_embeds": NO_EMBEDS,
    "audio_url": NO_FETCH,
    "video_url": NO_FETCH,
    "image_pil": NO_EMBEDS,
    "file": "files are not read",
}


def text_and_image(c: PolicyConfig) -> dict[str, Object]:
    text = Object({"text": PROMPT, "cache_control": CACHE_CONTROL}, ("text",))
    image = Object({"url": ImageUrl(c.media), "detail": OneOf("auto", "low", "high")}, ("url",))
    fields: Fields = {"image_url": image, "uuid": NO_CACHE_ID, "cache_control": CACHE_CONTROL}
    return {"text": text, "image_url": Object(fields, ("image_url",))}


def content_parts(c: PolicyConfig) -> Rule:
    audio = Object({"data": AudioData(c.media), "format": OneOf("wav", "mp3")}, ("data", "format"))
    part = tagged(
        "type",
        refused=OTHER_PARTS,
        default=None,
        **text_and_image(c),
        refusal=Object({"refusal": PROMPT}, ("refusal",)),
        thinking=Object({"thinking": PROMPT, "closed": Bool()}, ("thinking",)),
        input_audio=Object({"input_audio": audio, "uuid": NO_CACHE_ID}, ("input_audio",)),
        tool_reference=Object({"name": NAME}, ("name",)),
    )
    return ListOf(part, c.messages, least=1)


def messages(c: PolicyConfig) -> Rule:
    content = Either(PROMPT, content_parts(c))
    speaker: Fields = {"content": content, "name": Text(least=1, most=64)}
    function = Object({"name": Text(least=1, most=256), "arguments": PROMPT}, ("name", "arguments"))
    call = tagged(
        "type",
        function=Object({"id": ID, "function": function, "index": Ignored(Int(0, 1024))}, ("id", "function")),
    )
    assistant: Fields = {
        **speaker,
        "refusal": PROMPT,
        "reasoning": PROMPT,
        "reasoning_content": PROMPT,
        "tool_calls": ListOf(call, c.tools),
        "annotations": Ignored(ListOf(Json(), c.messages)),
        "audio": Refused("answers have no audio"),
        "function_call": Refused("use tool_calls"),
    }
    message = tagged(
        "role",
        refused={"function": "use the role tool"},
        system=Object(speaker, ("content",)),
        developer=Object(speaker, ("content",)),
        user=Object(speaker, ("content",)),
        assistant=Object(assistant),
        tool=Object({**speaker, "tool_call_id": ID}, ("content", "tool_call_id")),
    )
    return ListOf(message, c.messages, least=1)


def tools(c: PolicyConfig) -> Rule:
    function = Object(
        {
            "name": NAME,
            "description": PROMPT,
            "parameters": Json(),
            "strict": Bool(),
            "defer_loading": Bool(),
        },
        ("name",),
    )
    tool = tagged("type", function=Object({"function": function, "defer_loading": Bool()}, ("function",)))
    return Sized(ListOf(tool, c.tools, least=1), c.tools_bytes)


def tool_choice() -> Rule:
    function = Object({"function": Object({"name": NAME}, ("name",))}, ("function",))
    return Either(OneOf("none", "auto", "required"), tagged("type", function=function))


def response_format(c: PolicyConfig) -> Rule:
    schema = Object(
        {
            "name": NAME,
            "description": Text(most=4096),
            "schema": JsonSchema(c.json_schema),
            "strict": Bool(),
        },
        ("name", "schema"),
    )
    return tagged(
        "type",
        refused={"structural_tag": "use json_schema"},
        text=Object({}),
        json_object=Object({}),
        json_schema=Object({"json_schema": schema}, ("json_schema",)),
    )


def structured_outputs(c: PolicyConfig) -> Rule:
    schema = JsonSchema(c.json_schema)
    fields: Fields = {
        "json": Either(schema, JsonSchemaText(schema)),
        "regex": Text(least=1, most=c.grammar_bytes),
        "choice": ListOf(Text(least=1, most=1024), c.json_schema.values, least=1),
        "grammar": Text(least=1, most=c.grammar_bytes),
        "json_object": Bool(),
        "disable_any_whitespace": Bool(),
        "disable_additional_properties": Bool(),
        "whitespace_pattern": Refused("use disable_any_whitespace"),
        "structural_tag": Refused("use json"),
    }
    return Needs("grammar", Object(fields))


def stream_options() -> Rule:
    return Object(
        {
            "include_usage": Bool(),
            "continuous_usage_stats": Bool(),
            "include_obfuscation": Ignored(Bool()),
        }
    )


def chat_template_kwargs(c: PolicyConfig) -> Rule:
    kinds: dict[str, Rule] = {"boolean": Bool(), "integer": Int(), "string": Text(most=64)}
    return Object({name: kinds[kind] for name, kind in c.chat_template_kwargs.items()}, unknown=UnsupportedParameter)


def metadata() -> Rule:
    return MapOf(Text(most=512), 16, Text(most=64))
