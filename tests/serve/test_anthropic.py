"""The newest `anthropic` client, which sends its key as `x-api-key`."""

import anthropic
import pytest
from anthropic.types import MessageParam

from tests.service import Service


@pytest.fixture
def client(service: Service) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=service.url, api_key=service.key, max_retries=0, timeout=120)


def test_messages(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="scripted", max_tokens=50, messages=[{"role": "user", "content": "[[answer: green tea]]"}]
    )
    assert answer.content[0].type == "text"
    assert (answer.content[0].text, answer.stop_reason) == ("green tea", "end_turn")


def test_a_stream_of_messages(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="demo", max_tokens=12, messages=[{"role": "user", "content": "Hi"}]) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.usage.output_tokens == 12
    assert final.stop_reason == "max_tokens"
    assert final.content[0].type == "text"
    assert final.content[0].text == text


def test_count_tokens(client: anthropic.Anthropic) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "Hi"}]
    counted = client.messages.count_tokens(model="demo", messages=messages)
    answer = client.messages.create(model="demo", max_tokens=1, messages=messages)
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_wrong_key(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
