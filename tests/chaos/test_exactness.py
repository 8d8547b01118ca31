"""Answers of every kind at once, and a replica that dies when each has come to a given token: none differs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.answers import CASES, of_chunks
from tests.conftest import demo
from tests.service import Service, running_service, wait_for

PACE = " [[pace: 100ms]]"


@pytest.fixture
def service(service: Service) -> Service:
    """The service with three scripted replicas, whatever an earlier test has killed."""
    wait_for(lambda: service.up("scripted", 3), "the return of three replicas", 240, every=0.5)
    return service


class Reader:
    """Reads one stream; `tokens` grows as they come."""

    def __init__(self, client: openai.OpenAI, case: str) -> None:
        content, settings = CASES[case]
        extra = {**settings.get("extra_body", {}), "return_token_ids": True}
        self._settings = {**settings, "extra_body": extra, "messages": [{"role": "user", "content": content + PACE}]}
        self._client = client
        self.tokens = 0

    def read(self) -> tuple[dict[str, Any], list[int]]:
        """The answer, and the ids of its tokens."""
        ids: list[int] = []
        chunks: list[ChatCompletionChunk] = []
        for chunk in self._client.chat.completions.create(
            model="scripted", stream=True, stream_options={"include_usage": True}, **self._settings
        ):
            chunks.append(chunk)
            for choice in chunk.choices:
                ids += getattr(choice, "token_ids", None) or []
            self.tokens = len(ids)
        return of_chunks(chunks), ids


def read_all(client: openai.OpenAI, kill: Any = lambda readers, done: None) -> list[tuple[dict[str, Any], list[int]]]:
    """All answers, read side by side; `kill` runs beside them."""
    readers = [Reader(client, case) for case in CASES if case != "choices"]  # whose tokens come in any order
    done = threading.Event()
    with ThreadPoolExecutor(len(readers) + 1) as threads:
        answers = [threads.submit(reader.read) for reader in readers]
        killing = threads.submit(kill, readers, done)
        try:
            return [answer.result(240) for answer in answers]
        finally:
            done.set()
            killing.result(60)


@pytest.mark.parametrize(
    "place",
    [7, *(pytest.param(place, marks=pytest.mark.slow) for place in (0, 1, "the last but one", "the last"))],
)
def test_every_kind_of_answer_survives_the_death_of_a_replica_at_a_token(service: Service, place: int | str) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=240)
    undisturbed = read_all(client)
    lengths = [len(ids) for _, ids in undisturbed]
    wanted = {"the last but one": min(lengths) - 1, "the last": min(lengths)}.get(str(place), place)

    def kill(readers: list[Reader], done: threading.Event) -> None:
        victim = service.replicas("scripted")[0]
        if wanted == 0:
            wait_for(lambda: service.health().get("queue_size") == len(readers), "the arrival of all", every=0)
        while not done.is_set() and min(reader.tokens for reader in readers) < int(wanted):
            time.sleep(0.002)
        victim.kill()

    assert read_all(client, kill) == undisturbed


@pytest.mark.slow
def test_gateways_share_what_they_refuse(tmp_path: Path) -> None:
    scripted = demo("scripted", engine="scripted", replicas=3)
    with running_service(tmp_path, [scripted], gateway={"replicas": 2}) as service:
        wait_for(lambda: len(service.gateways()) == 2, "two gateways")
        one, other = (
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=service.key, max_retries=0, timeout=240)
            for gateway in service.gateways()
        )
        poison: Any = [{"role": "user", "content": "[[answer: boom]] [[die]]"}]
        with pytest.raises(openai.InternalServerError):
            one.chat.completions.create(model="scripted", messages=poison)
        for client in (other, one):
            with pytest.raises(openai.UnprocessableEntityError):
                client.chat.completions.create(model="scripted", messages=poison)
        assert len(service.replicas("scripted")) >= 1
        answer = other.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "[[answer: fine]]"}]
        )
        assert answer.choices[0].message.content == "fine"
