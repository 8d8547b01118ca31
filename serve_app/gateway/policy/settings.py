"""The operator's settings of the request policy."""

from typing import Literal

from pydantic import Field, PositiveInt

from serve_app.settings import Closed

MiB = 1024 * 1024


class SchemaBounds(Closed):
    """What a JSON schema may be that the engine compiles to a grammar."""

    bytes: PositiveInt = 16 * 1024
    """Its size as JSON."""
    depth: PositiveInt = 16
    """Levels of nesting."""
    properties: PositiveInt = 200
    """Properties of all its objects together."""
    values: PositiveInt = 500
    """Values of all its enums together."""
    repeats: PositiveInt = 1000
    """The largest minItems, maxItems, minLength, maxLength, minProperties or maxProperties."""


class MediaBounds(Closed):
    """What images and audio may be, for the models that take them."""

    models: list[str] = Field(default=[])
    """Ids of models, or patterns such as `qwen-vl*`, that take images and audio; empty: text only."""
    body_bytes: PositiveInt = 20 * MiB
    """Largest body of a request to such a model, and of a form."""
    images: PositiveInt = 8
    """Images in one request."""
    image_bytes: PositiveInt = 10 * MiB
    """Size of one image as a file."""
    image_pixels: PositiveInt = 16_000_000
    """Width times height of one image."""
    image_side: PositiveInt = 8
    """Smallest width or height of an image, in pixels."""
    audio_bytes: PositiveInt = 10 * MiB
    """Size of one audio clip as a file."""
    placeholders: tuple[str, ...] = (
        "<##IMAGE##>",
        "<##AUDIO##>",
        "<##VIDEO##>",
        "<##PROMPT_EMBEDS##>",
        "<|image|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|audio_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|AUDIO|>",
        "<image_soft_token>",
        "<start_of_image>",
    )
    """Tokens that stand for media in a prompt, and so may not be typed as text to these models."""


class PolicyConfig(Closed):
    """What a request may ask for. policy/table.py applies these to each field of each route."""

    body_bytes: PositiveInt = MiB
    """Largest JSON body; a model that takes media has `media.body_bytes`."""
    header_bytes: PositiveInt = 16 * 1024
    """Largest head of a request: its target and its headers."""
    headers: PositiveInt = 100
    """Most request headers."""
    messages: PositiveInt = 1024
    """Messages, content parts of one message, or input items, in a request."""
    choices: PositiveInt = 4
    """Largest `n`: answers to one prompt."""
    prompts: PositiveInt = 16
    """Prompts in one completion request."""
    inputs: PositiveInt = 2048
    """Texts in one request for embeddings or scores."""
    tokens: PositiveInt = 131_072
    """Token ids in one list."""
    logprobs: PositiveInt = Field(default=20, le=20)
    """Largest `top_logprobs`."""
    logit_bias: PositiveInt = Field(default=300, le=1024)
    """Entries of `logit_bias`; above 1024 an engine on a GPU dies."""
    stop: PositiveInt = Field(default=4, le=4)
    """Stop strings of a request."""
    stop_chars: PositiveInt = 64
    """Characters of a stop string; so many are held back from a stream."""
    user_chars: PositiveInt = 64
    """Characters of `user`."""
    max_tokens: PositiveInt | None = None
    """Largest answer for a key that has no limit of its own; null: the rest of the model's context."""
    tools: PositiveInt = 128
    """Tools in a request."""
    tools_bytes: PositiveInt = 256 * 1024
    """Size of a request's tools as JSON."""
    bound_all_tools: bool = False
    """Hold every tool's parameters to `schema`, not only those that the engine compiles: tools that are strict or
    that the model must call. For a vLLM with `tool_strict_level` above auto."""
    json_schema: SchemaBounds = SchemaBounds()
    """Bounds of JSON schemas that the engine compiles."""
    grammar_bytes: PositiveInt = 16 * 1024
    """Size of a regular expression or grammar, which only keys with the feature `grammar` may send."""
    chars_per_token: PositiveInt = 16
    """A prompt of more characters than this for each token of context is refused unread; prose has about 4."""
    control_tokens: Literal["refuse", "pass"] = "refuse"
    """What becomes of text in chats that the model would read as its control tokens, such as `<|im_start|>`."""
    chat_template_kwargs: dict[str, Literal["boolean", "integer", "string"]] = Field(
        default={"enable_thinking": "boolean", "thinking": "boolean", "reasoning_effort": "string"}
    )
    """The variables that a request may set in a chat template, and their kinds."""
    media: MediaBounds = MediaBounds()
    """Images and audio."""
