"""Answers of every kind for the scripted engine, and what the client of a chat gets, in a form that can be compared."""

from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
_PLAIN, _UTF8 = f"[[answer: {WORDS}]]", "[[answer: Grüße, 世界 🎉 naïve ✓ — end]]"
_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🎉"}}\n</tool_call>'

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (_PLAIN, {}),
    "utf-8": (_UTF8, {}),
    "logprobs": (_UTF8, {"logprobs": True, "top_logprobs": 2}),
    "stop string": (_PLAIN, {"stop": ["x seven ei", "even eight ni"]}),
    "stop string kept": (_PLAIN, {"stop": "even eight", "extra_body": {"include_stop_str_in_output": True}}),
    "choices": (_PLAIN, {"n": 2, "temperature": 1}),
    "length": (_PLAIN, {"max_tokens": 9}),
    "no end of its own": (_PLAIN, {"max_tokens": 40, "extra_body": {"ignore_eos": True}}),
    "a least length": ("[[answer: one two]]", {"max_tokens": 40, "extra_body": {"min_tokens": 12}}),
    "reasoning": (
        "[[answer: <think>\nGrüße one two three\n</think>\n\nfour five six]]",
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
    ),
    "tool call": (f"[[answer: Well: {_CALL}]]", {"tools": [WEATHER]}),
}
"""Messages to the scripted engine, and the settings that go with them."""


async def ask(client: openai.AsyncOpenAI, content: str, *, stream: bool, **settings: Any) -> dict[str, Any]:
    """The whole answer to one message; raises openai's errors."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": content}], **settings}
    if not stream:
        return of_answer(await client.chat.completions.create(**body))
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
    ]
    return of_chunks(chunks)


def of_answer(answer: ChatCompletion) -> dict[str, Any]:
    choices = {}
    for choice in answer.choices:
        message = choice.message
        choices[choice.index] = {
            "role": message.role,
            "content": message.content or "",
            "reasoning": getattr(message, "reasoning", None) or "",
            "tools": [(call.function.name, call.function.arguments) for call in message.tool_calls or ()],  # type: ignore[union-attr]
            "logprobs": choice.logprobs.model_dump()["content"] if choice.logprobs else None,
            "finish": choice.finish_reason,
        }
    return {"choices": choices, "usage": usage(answer)}


def of_chunks(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    """Asserts what must not change within a stream: its id, its time, one role and one id a tool call."""
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        empty = {"role": None, "content": "", "reasoning": "", "tools": {}, "logprobs": None, "finish": None}
        found, delta = choices.setdefault(choice.index, empty), choice.delta
        if delta.role:
            assert found["role"] is None
            found["role"] = delta.role
        assert found["finish"] is None
        found["content"] += delta.content or ""
        found["reasoning"] += getattr(delta, "reasoning", None) or ""
        found["finish"] = choice.finish_reason
        if choice.logprobs and choice.logprobs.content:
            found["logprobs"] = (found["logprobs"] or []) + choice.logprobs.model_dump()["content"]
        for call in delta.tool_calls or ():
            tool = found["tools"].setdefault(call.index, {"ids": set(), "name": "", "arguments": ""})
            tool["ids"] |= {call.id} - {None}
            tool["name"] += (call.function and call.function.name) or ""
            tool["arguments"] += (call.function and call.function.arguments) or ""
    for found in choices.values():
        assert all(len(tool["ids"]) == 1 for tool in found["tools"].values())
        found["tools"] = [(tool["name"], tool["arguments"]) for _, tool in sorted(found["tools"].items())]
    return {"choices": choices, "usage": usage(chunks[-1])}


def usage(answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    """Without the tokens of reasoning, which vLLM counts by the chunks that they happen to come in."""
    assert answer.usage is not None
    return answer.usage.model_dump(exclude_none=True, exclude={"completion_tokens_details"})
