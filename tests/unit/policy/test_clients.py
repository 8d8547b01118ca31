"""What the clients of OpenAI and Anthropic send passes, unchanged but for what means nothing here."""

from typing import Any

import pytest
from anthropic.types import MessageParam as AnthropicMessage
from anthropic.types import TextBlock, ThinkingBlock, ToolParam, ToolUseBlock
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.chat.completion_create_params import ResponseFormat
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import (
    FunctionToolParam,
    ResponseFunctionToolCall,
    ResponseInputParam,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming as ResponseParams

from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.table import table
from tests.unit.policy.door import CHAT, USER, passed

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"steps": {"type": "array", "items": {"$ref": "#/$defs/step"}}, "answer": {"type": "string"}},
    "$defs": {"step": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
    "required": ["steps", "answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("path", "params"),
    [
        (CHAT, ChatParams),
        ("/v1/completions", CompletionParams),
        ("/v1/responses", ResponseParams),
        ("/v1/embeddings", EmbeddingCreateParams),
        ("/v1/messages", MessageCreateParamsNonStreaming),
        ("/v1/messages/count_tokens", MessageCountTokensParams),
    ],
)
def test_the_table_names_every_field_of_the_clients(path: str, params: Any) -> None:
    headers = {"workspace_id"}
    sent = params.__required_keys__ | params.__optional_keys__
    assert sent - headers - set(table(PolicyConfig())[path].fields) == set()


def test_a_chat_with_tools_and_its_history() -> None:
    tool: ChatCompletionToolParam = {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS},
    }
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "In English."}]},
        {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
        {"role": "assistant", "content": "It rains.", "refusal": None},
        {"role": "user", "content": "Thanks"},
    ]
    sent: ChatParams = {
        "model": "m",
        "messages": messages,
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_completion_tokens": 100,
        "temperature": 0.2,
        "top_p": 0.9,
        "n": 1,
        "seed": 7,
        "stop": ["\n\n"],
        "logprobs": True,
        "top_logprobs": 5,
        "logit_bias": {"50256": -100},
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "reasoning_effort": "low",
    }
    kept = [{name: value for name, value in message.items() if value is not None} for message in messages]
    assert passed(CHAT, sent) == {**sent, "messages": kept}


def test_what_means_nothing_here_is_left_out() -> None:
    account = {
        "user": "user-1",
        "metadata": {"trace": "1"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_options": {"ttl": "30m"},
    }
    chat = {"store": True, "modalities": ["text"], "verbosity": "low"}
    assert passed(CHAT, {**account, **chat}) == {"messages": [USER]}
    kept = passed("/v1/responses", account)
    assert kept == {"input": "Hi", "metadata": {"trace": "1"}, "store": False}
    assert passed("/v1/embeddings", {"user": "user-1"}) == {"input": "Hi"}
    block = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    marked = {"messages": [{"role": "user", "content": [block]}], "metadata": {"user_id": "u"}, "service_tier": "auto"}
    plain = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert passed("/v1/messages", marked) == {"messages": plain, "max_tokens": 10}


def test_streams() -> None:
    sent = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert passed(CHAT, sent)["stream_options"] == {"include_usage": True}
    assert passed("/v1/completions", sent)["stream"] is True
    assert "stream_options" not in passed("/v1/responses", sent)


@pytest.mark.parametrize(
    "format_",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "maths", "schema": SCHEMA, "strict": True}},
    ],
)
def test_response_formats(format_: ResponseFormat) -> None:
    assert passed(CHAT, {"response_format": format_})["response_format"] == format_


def test_an_answer_of_a_chat_may_be_sent_back() -> None:
    answer = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "It rains.",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [],
            "reasoning": "Oslo, so rain",
            "reasoning_content": None,
        }
    )
    expected = {"role": "assistant", "content": "It rains.", "tool_calls": [], "reasoning": "Oslo, so rain"}
    assert passed(CHAT, {"messages": [USER, answer.model_dump(), USER]})["messages"] == [USER, expected, USER]


def test_responses() -> None:
    tool: FunctionToolParam = {
        "type": "function",
        "name": "get_weather",
        "description": "Weather",
        "parameters": PARAMETERS,
        "strict": False,
    }
    items: ResponseInputParam = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather in Oslo?"}]},
        {"type": "message", "role": "user", "content": "And Bergen?"},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain"},
    ]
    sent: dict[str, Any] = {
        "model": "m",
        "input": items,
        "instructions": "In English.",
        "tools": [tool],
        "tool_choice": "auto",
        "max_output_tokens": 100,
        "temperature": 0.2,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "maths", "schema": SCHEMA, "strict": True}},
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
    }
    assert passed("/v1/responses", sent) == {**sent, "store": False}


def test_output_items_may_be_sent_back() -> None:
    part: dict[str, Any] = {"type": "output_text", "text": "It rains.", "annotations": [], "logprobs": None}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    thought: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": []}
    thought["content"] = [{"type": "reasoning_text", "text": "rain"}]
    call = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    items = [
        ResponseReasoningItem.model_validate(thought).model_dump(),
        ResponseFunctionToolCall.model_validate(call).model_dump(by_alias=True),
        ResponseOutputMessage.model_validate({**message, "phase": "final_answer"}).model_dump(),
    ]
    said = {**message, "content": [{"type": "output_text", "text": "It rains."}]}
    assert passed("/v1/responses", {"input": items})["input"] == [thought, call, said]


def test_anthropic_messages() -> None:
    tool: ToolParam = {"name": "get_weather", "description": "Weather", "input_schema": PARAMETERS}
    answer: list[Any] = [
        ThinkingBlock(type="thinking", thinking="rain", signature="s").model_dump(),
        TextBlock(type="text", text="Let me see.", citations=None).model_dump(),
        ToolUseBlock(type="tool_use", id="toolu_1", name="get_weather", input={"city": "Oslo"}).model_dump(),
    ]
    messages: list[AnthropicMessage] = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain"}]},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    sent: dict[str, Any] = {
        "model": "m",
        "max_tokens": 2000,
        "messages": messages,
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [tool],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["END"],
        "temperature": 1,
        "top_k": 5,
        "stream": True,
    }
    kept = [{name: value for name, value in block.items() if value is not None} for block in answer]
    expected = {**sent, "messages": [messages[0], {"role": "assistant", "content": kept}, messages[2]]}
    assert passed("/v1/messages", sent) == expected
    counted = {name: sent[name] for name in ("model", "messages", "system", "tools", "tool_choice", "thinking")}
    found = passed("/v1/messages/count_tokens", counted)
    assert found == {name: expected[name] for name in counted}
