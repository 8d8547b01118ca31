"""What the client of a chat gets, streamed or whole, in a form that can be compared."""

from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk


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
    assert answer.usage is not None
    return answer.usage.model_dump(exclude_none=True)
