"""The tables of the routes that take a form with a file of speech. Start at table.py.

Values of a form are texts; `value_of` reads one as the kind that its rule is for.
"""

from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers as StarletteHeaders

from serve_app.gateway.errors import Headers
from serve_app.gateway.policy.entries import MODEL, RoutePolicy, internal
from serve_app.gateway.policy.fields import Fields
from serve_app.gateway.policy.rules import Bool, Int, Number, OneOf, Rule, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Refused


def _speech(c: PolicyConfig) -> Fields:
    """The form's fields beside `file`."""
    return {
        "model": MODEL,
        "prompt": Text(most=4096, prompt=True),
        "language": Text(most=16),
        "to_language": Text(most=16),
        "hotwords": Text(most=1024),
        "stream": Bool(),
        "stream_include_usage": Bool(),
        "stream_continuous_usage_stats": Bool(),
        "temperature": Number(0, 2),
        "top_p": Number(0, 1, above=True),
        "top_k": Int(-1, 100_000),
        "min_p": Number(0, 1),
        "seed": Int(),
        "frequency_penalty": Number(-2, 2),
        "presence_penalty": Number(-2, 2),
        "repetition_penalty": Number(0, 2, above=True),
        "max_completion_tokens": Int(1),
        "include_stop_str_in_output": Bool(),
        "n": Refused("a form has one answer", off=(1,)),
        "use_beam_search": Refused("it multiplies the work of a request", off=(False,)),
        "length_penalty": Refused("it belongs to beam search", off=(1, 1.0)),
        **internal("vllm_xargs", "watermarking"),
    }


def transcriptions(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **_speech(c),
        "response_format": OneOf("json", "text", "srt", "verbose_json", "vtt", "diarized_json"),
        "timestamp_granularities[]": OneOf("word", "segment"),
    }
    return RoutePolicy(fields, length=("max_completion_tokens",))


def translations(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {**_speech(c), "response_format": OneOf("json", "text", "srt", "verbose_json", "vtt")}
    return RoutePolicy(fields, length=("max_completion_tokens",))


def value_of(text: str, rule: Rule) -> Any:
    """A form's text as a boolean or number, where that is what the rule is for and the text is one."""
    if isinstance(rule, Bool | Refused) and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if isinstance(rule, Int | Number | Refused):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def with_field(headers: Headers, body: bytes, name: str, value: object) -> bytes:
    """A form with one more field."""
    head = _boundary(headers) + f'\r\ncontent-disposition: form-data; name="{name}"'.encode()
    return head + f"\r\n\r\n{value}\r\n".encode() + body


def with_value(headers: Headers, body: bytes, name: str, value: str) -> bytes:
    """A form with another value in one of its fields."""
    parts = body.split(_boundary(headers))
    for place, part in enumerate(parts):
        head, blank, _ = part.partition(b"\r\n\r\n")
        if f'; name="{name}"\r\n'.encode() in head + b"\r\n":
            parts[place] = head + blank + value.encode() + b"\r\n"
    return _boundary(headers).join(parts)


def _boundary(headers: Headers) -> bytes:
    """What stands before each field of a form."""
    _, options = parse_options_header(StarletteHeaders(raw=headers)["content-type"])
    return b"--" + bytes(options[b"boundary"])
