"""What clients see when a replica, its engine core or a worker dies: nothing, wherever that is possible."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.service import Service, alive, command_line, wait_for

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.fixture
def service(service: Service) -> Service:
    """The service with two replicas of each model that has several, whatever an earlier test has killed."""
    wait_for(lambda: service.up("scripted", 2) and service.up("demo-2", 2), "the return of two replicas", 240)
    return service


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=240)


class Stream:
    """A chat stream read in the background: its text so far, how it ended, what it cost."""

    def __init__(self, client: openai.OpenAI, model: str, content: str, **settings: Any) -> None:
        self.text, self.ids, self.roles, self.finish, self.tokens = "", set[str](), 0, "", 0
        self.grown = threading.Event()
        self._chunks = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            stream=True,
            stream_options={"include_usage": True},
            **settings,
        )

    def read(self, grown_at: int = 0) -> "Stream":
        for chunk in self._chunks:
            self.ids.add(chunk.id)
            for choice in chunk.choices:
                self.roles += choice.delta.role is not None
                self.text += choice.delta.content or ""
                self.finish = choice.finish_reason or self.finish
            self.tokens = chunk.usage.completion_tokens if chunk.usage else self.tokens
            if len(self.text) > grown_at:
                self.grown.set()
        return self


@pytest.mark.parametrize("fault", ["die", "engine dies"])
@pytest.mark.parametrize("after", [1, 7, 13])
def test_a_stream_survives_its_replica(client: openai.OpenAI, fault: str, after: int) -> None:
    undisturbed = Stream(client, "scripted", f"[[answer: {WORDS}]]").read()
    stream = Stream(client, "scripted", f"[[answer: {WORDS}]] [[{fault} after: {after}]]").read()
    assert (stream.text, stream.finish, stream.tokens) == (WORDS, "stop", undisturbed.tokens)
    assert (len(stream.ids), stream.roles) == (1, 1)


def test_streams_that_wait_for_their_first_token_survive(client: openai.OpenAI, service: Service) -> None:
    contents = [f"[[answer: {WORDS} {number}]] [[pace: 300ms]]" for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        streams = [
            threads.submit(lambda content: Stream(client, "scripted", content).read(), content) for content in contents
        ]
        wait_for(lambda: service.health()["queue_size"] == 4, "the arrival of all requests")
        service.replicas("scripted")[0].kill()
        assert [stream.result().text for stream in streams] == [f"{WORDS} {number}" for number in range(4)]


def test_a_request_that_kills_gets_two_replicas_and_is_refused_from_then_on(
    client: openai.OpenAI, service: Service
) -> None:
    wait_for(lambda: service.up("scripted", 3), "three replicas", 240)
    poison: Any = [{"role": "user", "content": "[[answer: boom]] [[die]]"}]
    replicas = service.replicas("scripted")
    with pytest.raises(openai.InternalServerError) as failure:
        client.chat.completions.create(model="scripted", messages=poison)
    assert failure.value.code == "upstream_failed"
    for _ in range(2):
        with pytest.raises(openai.UnprocessableEntityError) as refusal:
            client.chat.completions.create(model="scripted", messages=poison)
        assert (refusal.value.code, refusal.value.response.headers["x-should-retry"]) == ("request_refused", "false")
    assert sum(map(alive, replicas)) == 1


def test_a_whole_answer_survives_too(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": f"[[answer: {WORDS}]] [[die after: 5]]"}]
    )
    assert answer.choices[0].message.content == WORDS


def test_bystanders_lose_nothing(client: openai.OpenAI) -> None:
    contents = [f"[[answer: {WORDS} {number}]] [[pace: 20ms]]" for number in range(12)]
    with ThreadPoolExecutor(13) as threads:
        bystanders = [
            threads.submit(lambda content: Stream(client, "scripted", content).read(), content) for content in contents
        ]
        threads.submit(lambda: Stream(client, "scripted", f"[[answer: {WORDS}]] [[die after: 3]]").read())
        assert [stream.result().text for stream in bystanders] == [f"{WORDS} {number}" for number in range(12)]


@pytest.mark.parametrize("settings", [{"presence_penalty": 1.0}, {"seed": 1}], ids=["penalty", "seed"])
def test_what_cannot_be_resumed_ends_with_an_error_and_no_finish(
    client: openai.OpenAI, settings: dict[str, Any]
) -> None:
    stream = Stream(client, "scripted", f"[[answer: {WORDS}]] [[die after: 4]] [[pace: 100ms]]", **settings)
    with pytest.raises(openai.APIError):
        stream.read()
    assert stream.text != ""
    assert WORDS.startswith(stream.text)
    assert stream.finish == ""


def test_a_failure_of_the_request_itself_is_not_retried(client: openai.OpenAI, service: Service) -> None:
    replicas = service.replicas("scripted")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "[[fail]]"}])
    assert all(map(alive, replicas))


@pytest.mark.parametrize("victim", ["replica", "engine core"])
def test_real_vllm_resumes_token_for_token(client: openai.OpenAI, service: Service, victim: str) -> None:
    settings = {"max_tokens": 600, "temperature": 0, "extra_body": {"ignore_eos": True}}
    contents = [f"Story number {number}" for number in range(4)]
    expected = [Stream(client, "demo-2", content, **settings).read().text for content in contents]
    with ThreadPoolExecutor(4) as threads:
        streams = [Stream(client, "demo-2", content, **settings) for content in contents]
        results = [threads.submit(stream.read, 100) for stream in streams]
        for stream in streams:
            assert stream.grown.wait(60)
        replica = service.replicas("demo-2")[0]
        family = replica.children(recursive=True)
        engine_core = next(child for child in family if "VLLM::EngineCore" in command_line(child))
        (engine_core if victim == "engine core" else replica).kill()
        wait_for(lambda: not any(map(alive, [replica, *family])), "the end of the dead replica's children", 5)
        assert [result.result().text for result in results] == expected
    assert [(stream.finish, stream.tokens) for stream in streams] == [("length", 600)] * 4
