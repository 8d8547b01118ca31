"""The newest `openai` client against real vLLM, through the whole path."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.service import Service

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story."}]
REAL = ["demo", "demo-2", "demo-tp"]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "rain": {"type": "boolean"}},
            "required": ["unit", "rain"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=120)


def streamed(client: openai.OpenAI, model: str, max_tokens: int = 24) -> tuple[str, int]:
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, tokens = "", 0
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return text, tokens


@pytest.mark.parametrize("model", REAL)
def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    assert whole.model == model
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"
    assert streamed(client, model) == (whole.choices[0].message.content, 24)


@pytest.mark.parametrize("model", ["demo-2", "demo-tp"])
def test_replicas_and_tensor_parallel_change_no_token(client: openai.OpenAI, model: str) -> None:
    assert streamed(client, model) == streamed(client, "demo")


@pytest.mark.parametrize("model", REAL)
def test_two_choices(client: openai.OpenAI, model: str) -> None:
    unknown: list[ChatCompletionMessageParam] = [{"role": "user", "content": "xyzzy"}]
    answer = client.chat.completions.create(model=model, messages=unknown, max_tokens=12, n=2, seed=1, temperature=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


@pytest.mark.parametrize("model", REAL)
def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, model: str) -> None:
    text, _ = streamed(client, model)
    stop = text.split()[3]
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0, stop=stop)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(stop)]


@pytest.mark.parametrize("model", REAL)
def test_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert [len(token.top_logprobs) for token in content] == [3] * 6
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)


@pytest.mark.parametrize("model", REAL)
def test_json_schema_output(client: openai.OpenAI, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "on": {"type": "boolean"}},
        "required": ["colour", "on"],
        "additionalProperties": False,
    }
    for seed in range(10):  # the schema lets a model this small write blanks until it has no tokens left
        answer = client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=200,
            temperature=2,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema, "strict": True}},
        )
        if answer.choices[0].finish_reason == "stop":
            break
    lamp = json.loads(answer.choices[0].message.content or "")
    assert set(lamp) == {"colour", "on"}
    assert lamp["colour"] in {"red", "green"}
    assert lamp["on"] in {True, False}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_parsed_by_vllm(client: openai.OpenAI, stream: bool) -> None:
    said = '<tool_call>\n{"name": "get_weather", "arguments": {"unit": "celsius", "rain": true}}\n</tool_call>'
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"[[answer: {said}]]"}]
    if stream:
        name, arguments, reason = "", "", None
        for chunk in client.chat.completions.create(
            model="scripted", messages=messages, tools=[WEATHER], max_tokens=200, stream=True
        ):
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                for call in choice.delta.tool_calls or ():
                    assert call.function is not None
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
    else:
        answer = client.chat.completions.create(
            model="scripted", messages=messages, tools=[WEATHER], max_tokens=200
        ).choices[0]
        assert answer.message.tool_calls is not None
        called = answer.message.tool_calls[0]
        assert called.type == "function"
        name, arguments, reason = called.function.name, called.function.arguments, answer.finish_reason
    assert (name, json.loads(arguments), reason) == ("get_weather", {"unit": "celsius", "rain": True}, "tool_calls")


def test_completions(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(model="demo", prompt="Once", logprobs=2, **settings)
    pieces = client.completions.create(model="demo", prompt="Once", stream=True, **settings)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) == 5


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="demo", input="Once", max_output_tokens=5, temperature=0)
    events = list(client.responses.create(model="demo", input="Once", max_output_tokens=5, temperature=0, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert "".join(deltas) == answer.output_text


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["red", "green", "red"], encoding_format="float")
    red, green, again = (item.embedding for item in answer.data)
    assert len(red) == 64
    assert red == pytest.approx(again, abs=1e-3)
    assert red != pytest.approx(green, abs=1e-3)


def test_a_wrong_input_beside_a_right_one_breaks_no_later_request(service: Service) -> None:
    refused = service.http.post("/v1/embeddings", json={"model": "embed", "input": [[1, 2], [99_999_999]]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
    assert service.http.post("/v1/embeddings", json={"model": "embed", "input": "red"}).status_code == 200


def test_rerank_and_score(service: Service) -> None:
    ranked = service.http.post(
        "/v1/rerank", json={"model": "embed", "query": "red", "documents": ["green", "red"]}
    ).json()
    scored = service.http.post("/v1/score", json={"model": "embed", "text_1": "red", "text_2": ["red"]}).json()
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert scored["data"][0]["score"] == pytest.approx(1, abs=1e-2)


def test_tokenize_and_back(service: Service) -> None:
    tokens = service.http.post("/tokenize", json={"model": "demo", "prompt": "red and green"}).json()["tokens"]
    text = service.http.post("/detokenize", json={"model": "demo", "tokens": tokens}).json()["prompt"]
    assert text.endswith("red and green")


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="absent", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=100_000)
