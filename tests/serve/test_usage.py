"""The usage ledger: its rows and sums are what the clients were told, to the token."""

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest

from tests.service import Service, make_key, wait_for

CHAT = "/v1/chat/completions"
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
LONG = " ".join(f"{WORDS} {number}" for number in range(8))


class Line(NamedTuple):
    """One request as its client saw it, and as its row in the ledger says."""

    prompt: int
    output: int
    finish: str = "stop"
    attempts: int = 1
    status: int = 200


REFUSED_400, REFUSED_429, REFUSED_503 = (Line(0, 0, "refused", 0, status) for status in (400, 429, 503))


class Client:
    """The client of one key: sends requests, and notes what each of them came to."""

    def __init__(self, service: Service, *limits: str) -> None:
        self._service = service
        folder = service.log.parent
        key = make_key(folder / "keys.yaml", "usage", limits)
        self.id = key.split("-")[2]
        self.lines: list[Line] = []
        self.http = httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {key}"}, timeout=120)
        self._database = f"file:{folder}/state/vllm-chat-backend/usage.db?mode=ro"
        wait_for(lambda: self.http.get("/v1/models").status_code == 200, "the arrival of the key")

    def send(self, path: str, finish: str = "stop", attempts: int = 1, **body: Any) -> dict[str, Any]:
        """A whole answer."""
        answer = self.http.post(path, json={"model": "scripted", **body})
        assert answer.status_code == 200, answer.text
        return self._note(dict(answer.json()), finish, attempts)

    def stream(self, path: str, finish: str = "stop", attempts: int = 1, **body: Any) -> str:
        """A stream read to its end."""
        options = {} if path == "/v1/responses" else {"stream_options": {"include_usage": True}}
        with self.http.stream("POST", path, json={"model": "scripted", "stream": True, **options, **body}) as response:
            chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        self._note(chunks[-1].get("response", chunks[-1]), finish, attempts)
        return "".join(text_of(chunk) for chunk in chunks)

    def leave(self, content: str, tokens: int) -> None:
        """A stream that is left after so many tokens."""
        with self.http.stream("POST", CHAT, json=chat(content, stream=True)) as response:
            texts = filter(None, (text_of(json.loads(line[6:])) for line in response.iter_lines() if line))
            for _ in range(tokens):
                next(texts)
        self.lines.append(Line(self.prompt_of(content), tokens, "abort"))

    def lose(self, content: str, attempts: int = 1, **settings: Any) -> int:
        """A stream that breaks off, and how many tokens came before."""
        tokens = 0
        with self.http.stream("POST", CHAT, json=chat(content, stream=True, **settings)) as response:
            try:
                for line in filter(None, response.iter_lines()):
                    tokens += bool(text_of(json.loads(line[6:])))
            except httpx.RemoteProtocolError:
                self.lines.append(Line(self.prompt_of(content), tokens, "error", attempts))
                return tokens
        raise AssertionError("the stream has come to its end")

    def fail(self, line: Line, headers: dict[str, str] | None = None, **body: Any) -> None:
        """A request that is answered with an error."""
        answer = self.http.post(CHAT, json={"model": "scripted", **body}, headers=headers)
        assert answer.status_code == line.status, answer.text
        self.lines.append(line)

    def prompt_of(self, content: str) -> int:
        """How many tokens a message is with everything that the chat template writes around it."""
        return int(self._service.http.post("/tokenize", json=chat(content)).json()["count"])

    def rows(self) -> list[Line]:
        with sqlite3.connect(self._database, uri=True) as database:
            return [
                Line(*row)
                for row in database.execute(
                    "SELECT prompt_tokens, output_tokens, finish, attempts, status FROM usage WHERE key_id = ?",
                    (self.id,),
                )
            ]

    def check(self) -> None:
        """Hold the ledger, and what the service tells this key of it, against what the client has seen."""
        wait_for(lambda: len(self.rows()) >= len(self.lines), "the last row in the ledger", 10)
        assert sorted(self.rows()) == sorted(self.lines)
        report = self.http.get("/api/usage", params={"by": "key"}).json()
        total = report["total"]
        assert [group["group"] for group in report["data"]] == [self.id]
        assert {name: total[name] for name in ("requests", "prompt_tokens", "output_tokens")} == {
            "requests": len(self.lines),
            "prompt_tokens": sum(line.prompt for line in self.lines),
            "output_tokens": sum(line.output for line in self.lines),
        }
        finishes = [line.finish for line in self.lines]
        assert (total["failed"], total["aborted"], total["refused"]) == tuple(
            map(finishes.count, ("error", "abort", "refused"))
        )

    def _note(self, answer: dict[str, Any], finish: str, attempts: int) -> dict[str, Any]:
        usage = answer["usage"]
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        output = usage.get("completion_tokens", usage.get("output_tokens", 0))
        self.lines.append(Line(prompt, output or 0, finish, attempts))
        return answer


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A key of the test's own, so that nothing else is in its sums; they are checked when the test has ended."""
    client = Client(service)
    yield client
    client.check()


def chat(content: str, **settings: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **settings}


def text_of(chunk: dict[str, Any]) -> str:
    """The text that a chunk of a stream adds."""
    if chunk.get("type") == "response.output_text.delta":
        return str(chunk["delta"])
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        for choice in chunk.get("choices", ())
    )


@pytest.mark.parametrize("way", [Client.send, Client.stream])
def test_answers(client: Client, way: Any) -> None:
    way(client, CHAT, **chat(f"[[answer: {WORDS}]]"))
    way(client, CHAT, **chat(f"[[answer: {WORDS}]]", n=3))
    way(client, CHAT, "length", **chat("a long story", max_tokens=40))
    way(client, "/v1/completions", "length", prompt="Once", max_tokens=9)
    way(client, "/v1/completions", "length", prompt=["red", "green and blue"], max_tokens=9)
    way(client, "/v1/completions", "length", prompt=["red", "green and blue"], max_tokens=9, n=2)
    way(client, "/v1/responses", input=f"[[answer: {WORDS}]]")


def test_other_routes(client: Client) -> None:
    client.send("/v1/messages", max_tokens=100, messages=[{"role": "user", "content": f"[[answer: {WORDS}]]"}])
    client.send("/v1/embeddings", model="embed", input=["red", "green and blue"])
    client.send("/v1/rerank", model="embed", query="red", documents=["green and blue", "red"])
    client.send("/v1/score", model="embed", text_1="red", text_2=["green", "red"])


@pytest.mark.parametrize("way", [Client.send, Client.stream])
@pytest.mark.parametrize("choices", [1, 2])
def test_a_stop_string_that_the_engine_has_run_past(client: Client, way: Any, choices: int) -> None:
    way(client, CHAT, **chat(f"[[answer: {LONG}]]", stop=["thirteen fourteen 0"], n=choices))
    assert client.lines[0].output < choices * 60


def test_a_client_that_leaves_pays_for_what_it_was_sent(client: Client) -> None:
    for tokens in (1, 2, 4):
        client.leave("a story [[pace: 400ms]]", tokens)


def test_a_client_that_leaves_before_the_first_token(client: Client) -> None:
    for stream in (False, True):
        content = "a story [[pace: 60000ms]]"
        with pytest.raises(httpx.ReadTimeout):
            client.http.post(CHAT, json=chat(content, stream=stream), timeout=1)
        client.lines.append(Line(client.prompt_of(content), 0, "abort", 1, 499))


def test_a_client_that_leaves_before_the_whole_answer(client: Client) -> None:
    content = "a story [[pace: 50ms]]"
    with pytest.raises(httpx.ReadTimeout):
        client.http.post(CHAT, json=chat(content), timeout=1)
    client.lines.append(Line(client.prompt_of(content), 0, "abort", 1, 499))


def test_refusals(client: Client) -> None:
    client.fail(REFUSED_400, **chat("Hi", max_tokens=100_000))
    client.fail(REFUSED_400, **chat("Hi", temperature=-1))
    client.fail(REFUSED_400, messages="none")
    client.fail(Line(0, 0, "refused", 0, 404), **chat("Hi") | {"model": "absent"})
    client.send(CHAT, **chat("[[answer: yes]]"))
    client.fail(REFUSED_503, {"x-request-deadline-ms": "1"}, **chat("Hi"))


def test_what_the_limits_refuse(service: Service) -> None:
    client = Client(service, "--rpm", "3", "--tpm", "200")  # one request has asked whether the key is there
    client.fail(REFUSED_429, **chat("Hi", max_tokens=1000))
    client.send(CHAT, **chat("[[answer: yes]]", max_tokens=20))
    client.send(CHAT, **chat("[[answer: yes]]", max_tokens=20))
    client.fail(REFUSED_429, **chat("Hi", max_tokens=20))
    wait_for(lambda: len(client.rows()) == 4, "the last row in the ledger", 10)
    assert client.rows() == client.lines


def test_failures(client: Client) -> None:
    for fault in ("[[fail]]", "[[fail after: 5]]"):
        client.fail(Line(client.prompt_of(fault), 0, "error", 1, 500), **chat(fault))
    assert client.lose("a story [[fail after: 5]] [[pace: 50ms]]") == 5


def test_deaths_that_clients_do_not_notice(client: Client) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 7]]"
    client.send(CHAT, attempts=2, **chat(content))
    assert client.stream(CHAT, attempts=2, **chat(content)) == WORDS
    client.send(CHAT, attempts=2, **chat(f"[[answer: {LONG}]] [[die after: 7]]", stop=["thirteen fourteen 0"]))


def test_a_death_that_ends_the_answer(client: Client) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 4]] [[pace: 50ms]]"
    assert client.lose(content, presence_penalty=1) == 4
    client.fail(Line(client.prompt_of(content), 0, "error", 1, 500), **chat(content, presence_penalty=1))


def test_all_at_once(client: Client) -> None:
    """Enough at a time that a chunk carries more than one token."""
    jobs = [
        *(lambda: client.send(CHAT, **chat(f"[[answer: {WORDS}]]")),) * 6,
        *(lambda: client.stream(CHAT, **chat(f"[[answer: {LONG}]] [[pace: 5ms]]")),) * 10,
        *(lambda: client.stream(CHAT, **chat(f"[[answer: {LONG}]]", stop=["fourteen 2"], n=2)),) * 4,
        *(lambda: client.send("/v1/completions", "length", prompt=["a", "b", "c"], max_tokens=30),) * 4,
        *(lambda: client.fail(REFUSED_400, **chat("Hi", max_tokens=100_000)),) * 4,
        *(lambda: client.send("/v1/embeddings", model="embed", input=["red", "green"]),) * 4,
        lambda: client.stream(CHAT, attempts=2, **chat(f"[[answer: {WORDS}]] [[die after: 7]]")),
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        for done in [threads.submit(job) for job in jobs]:
            done.result()


def test_cached_tokens(service: Service) -> None:
    client = Client(service)
    for _ in range(2):
        client.send(CHAT, "length", **chat(LONG, max_tokens=3) | {"model": "demo"})
    client.check()
    total = client.http.get("/api/usage").json()["total"]
    prompt = client.lines[0].prompt
    assert 0 < total["cached_tokens"] < prompt
    assert total["cached_tokens"] > prompt - 64  # all of it but for the last blocks


def test_a_key_sees_its_own_usage_and_the_admin_all(service: Service, client: Client) -> None:
    client.send(CHAT, **chat("[[answer: yes]]"))
    wait_for(client.rows, "the row in the ledger", 10)
    refused = client.http.get("/api/usage", params={"key": "admin"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "key")
    groups = service.http.get("/api/usage", params={"by": "key"}).json()["data"]
    assert {client.id, "admin"} <= {group["group"] for group in groups}
