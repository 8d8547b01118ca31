"""The tables of the routes that embed, score, and count tokens. Start at table.py."""

from serve_app.gateway.policy import chat
from serve_app.gateway.policy.entries import MODEL, RoutePolicy, internal
from serve_app.gateway.policy.fields import Either, Fields, Object, tagged
from serve_app.gateway.policy.lists import ListOf
from serve_app.gateway.policy.prompts import Prompts
from serve_app.gateway.policy.rules import Bool, Int, OneOf, Rule, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Ignored


def pooling(c: PolicyConfig) -> Fields:
    """What embeddings and scores share."""
    return {
        "model": MODEL,
        "user": Ignored(Text(c.user_chars)),
        "truncate_prompt_tokens": Int(-1, c.tokens),
        "truncation_side": OneOf("left", "right"),
        "padding": OneOf("max_length", "do_not_pad"),
        "use_activation": Bool(),
        "chat_template_kwargs": chat.chat_template_kwargs(c),
        **internal("cache_salt", "priority", "request_id", "mm_processor_kwargs"),
    }


def embeddings(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **pooling(c),
        "input": Prompts(c.inputs, c.tokens),
        "messages": chat.messages(c),
        "encoding_format": OneOf("float", "base64", "bytes", "bytes_only"),
        "embed_dtype": OneOf("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
        "endianness": OneOf("native", "big", "little"),
        "dimensions": Int(1, 65_536),
        "add_special_tokens": Bool(),
        "add_generation_prompt": Bool(),
        "continue_final_message": Bool(),
        **internal("chat_template", "media_io_kwargs"),
    }
    return RoutePolicy(fields)


def scoring(c: PolicyConfig) -> Fields:
    return {
        **pooling(c),
        "max_tokens_per_query": Int(0, c.tokens),
        "max_tokens_per_doc": Int(0, c.tokens),
        "instruction": Text(most=4096, prompt=True),
    }


def _text_or_parts(c: PolicyConfig) -> Rule:
    part = tagged("type", refused=chat.OTHER_PARTS, default=None, **chat.text_and_image(c))
    return Either(chat.PROMPT, Object({"content": ListOf(part, c.messages, least=1)}, ("content",)))


def _one_or_several(c: PolicyConfig) -> Rule:
    one = _text_or_parts(c)
    return Either(one, ListOf(one, c.inputs, least=1))


def rerank(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **scoring(c),
        "query": _text_or_parts(c),
        "documents": _one_or_several(c),
        "top_n": Int(0, c.inputs),
        "return_documents": Ignored(Bool()),
    }
    return RoutePolicy(fields, ("query", "documents"))


def score(c: PolicyConfig) -> RoutePolicy:
    names = ("queries", "documents", "items", "text_1", "text_2", "data_1", "data_2")
    return RoutePolicy({**scoring(c), **dict.fromkeys(names, _one_or_several(c))})


def tokenize(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        "model": MODEL,
        "prompt": chat.PROMPT,
        "messages": chat.messages(c),
        "tools": chat.tools(c),
        "chat_template_kwargs": chat.chat_template_kwargs(c),
        "add_special_tokens": Bool(),
        "add_generation_prompt": Bool(),
        "continue_final_message": Bool(),
        "return_token_strs": Bool(),
        **internal("chat_template", "media_io_kwargs", "mm_processor_kwargs"),
    }
    return RoutePolicy(fields)


def detokenize(c: PolicyConfig) -> RoutePolicy:
    return RoutePolicy({"model": MODEL, "tokens": ListOf(Int(0), c.tokens)}, ("tokens",))
