"""The chat template: every kind of turn, and that training renders conversations as serving does."""

from itertools import islice
from typing import Any

import pytest
from transformers import AutoTokenizer

from serve_app.config import DEMO_MODEL
from serve_app.demo.examples import Examples, read_corpus
from serve_app.demo.template import Call, Conversation, Turn
from serve_app.demo.train import MAIN_UNITS

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "kelvin"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


def render(tokenizer: Any, messages: list[dict[str, Any]], **arguments: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **arguments}))


def test_every_kind_of_turn(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Sunny."},
    ]
    assert render(tokenizer, messages, tools=[WEATHER]) == (
        "<|bos|><|im_start|>system\nBe kind.\n\nTools:\n"
        "get_weather(city: string, unit?: celsius|kelvin): Weather of a city.<|im_end|>\n"
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<think>\n\n</think>\n\n<tool_call>\n{"name": "get_weather", '
        '"arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\nSunny.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_thinking_is_off_unless_it_is_asked_for(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    asked = "<|bos|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, messages) == f"{asked}<think>\n\n</think>\n\n"
    assert render(tokenizer, messages, enable_thinking=False) == f"{asked}<think>\n\n</think>\n\n"
    assert render(tokenizer, messages, enable_thinking=True) == asked


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}], ids=["none", "empty", "bare"])
def test_a_tool_without_parameters(tokenizer: Any, parameters: dict[str, Any] | None) -> None:
    tool = {"type": "function", "function": {"name": "ping", "parameters": parameters}}
    assert "Tools:\nping()<|im_end|>" in render(tokenizer, [{"role": "user", "content": "Hi"}], tools=[tool])


def test_training_renders_as_serving_does(tokenizer: Any) -> None:
    for conversation in islice(Examples(read_corpus(), 3, MAIN_UNITS).conversations(), 300):
        text = "".join(text for text, _ in without_thoughts(conversation).pieces())
        assert text == render(
            tokenizer, messages_of(conversation), tools=list(conversation.tools), add_generation_prompt=False
        )


def test_the_model_writes_answers_and_nothing_else() -> None:
    turns = [Turn("user", "Two?"), Turn("assistant", "2.", "One more than one.")]
    written = [text for text, written in Conversation(turns, "Be kind.", [WEATHER]).pieces() if written]
    assert written == ["<think>\nOne more than one.\n</think>\n\n", "2.<|im_end|>"]


def test_a_call_is_json_between_tags() -> None:
    assert Call("f", {"a": "é", "b": 1}).text() == (
        '<tool_call>\n{"name": "f", "arguments": {"a": "é", "b": 1}}\n</tool_call>'
    )


def without_thoughts(conversation: Conversation) -> Conversation:
    turns = [Turn(turn.role, turn.content) for turn in conversation.turns]
    return Conversation(turns, conversation.system, conversation.tools)


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return system + [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
