"""What a newcomer sees of the demo model through the whole service: it answers, thinks and calls tools."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from serve_app.demo.corpus import read_entries
from tests.service import Service, wait_for

QUESTION = "What is the KV cache?"
ANSWERS = {ask: entry.answer for entry in read_entries() for ask in entry.ask}
ANSWER = ANSWERS[QUESTION]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=120)


def ask(client: openai.OpenAI, content: str, **settings: Any) -> tuple[str, str]:
    """What the model thinks and what it says, as a stream gives it."""
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], temperature=0, stream=True, **settings
    )
    thought, said = "", ""
    for chunk in stream:
        for choice in chunk.choices:
            thought += getattr(choice.delta, "reasoning", None) or ""
            said += choice.delta.content or ""
    return thought, said


def test_it_answers_in_its_own_words(client: openai.OpenAI) -> None:
    assert ask(client, QUESTION) == ("", ANSWER)


def test_a_whole_answer_has_no_thoughts_either(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], temperature=0
    ).choices[0]
    assert (answer.message.content, answer.finish_reason) == (ANSWER, "stop")
    assert not getattr(answer.message, "reasoning", None)


@pytest.mark.parametrize("tools", [False, True])
def test_it_thinks_first_when_asked_to(client: openai.OpenAI, tools: bool) -> None:
    settings: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    question = "What is prefill?"
    thought, said = ask(client, question, **settings, **({"tools": [WEATHER]} if tools else {}))
    assert thought.strip()
    assert "think>" not in thought + said
    assert said.strip() == ANSWERS[question]


@pytest.mark.parametrize("think", [False, True])
def test_the_ledger_counts_as_reasoning_what_the_client_is_told_of(service: Service, think: bool) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("thinker"), max_retries=0)
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": think}},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    told = answer.usage.completion_tokens_details.reasoning_tokens
    assert bool(told) == think
    usage = f"{service.url}/api/usage"
    total = wait_for(
        lambda: (t := httpx.get(usage, headers=client.auth_headers).json()["total"])["requests"] and t,
        "the row in the ledger",
    )
    assert total["reasoning_tokens"] == told


def test_a_story_is_long_enough_to_watch(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Tell me a story."}], temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 200


def test_it_calls_a_tool_and_says_its_result(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    asked = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert asked.finish_reason == "tool_calls"
    assert asked.message.tool_calls is not None
    (call,) = asked.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    messages += [
        {"role": "assistant", "tool_calls": [call.model_dump()]},  # type: ignore[list-item]
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 4, "sky": "cloudy"}'},
    ]
    said = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert said.message.content == "It is 4 degrees and cloudy in Oslo."


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=200,
        temperature=0,
    )
    assert answer.choices[0].message.tool_calls is not None
    (called,) = answer.choices[0].message.tool_calls
    assert called.type == "function"
    assert (called.function.name, json.loads(called.function.arguments)) == ("get_weather", {"city": "Paris"})
