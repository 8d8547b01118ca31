"""The usage ledger: its rows and sums are what the clients were told, to the token."""

import asyncio
import json
import socket
import sqlite3
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest

from tests.service import Service, wait_for

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
        self.key = service.new_key("usage", *limits)
        self.id = self.key.split("-")[2]
        self.lines: list[Line] = []
        self.http = httpx.Client(base_url=service.url, headers=self.headers, timeout=120)
        self._database = f"file:{service.log.parent}/state/vllm-chat-backend/usage.db?mode=ro"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

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
        """A stream that is left after so many tokens.

        It comes from the gateway itself, and the connection is reset: HAProxy would take a closed one for half closed,
        and go on until it can no longer write.
        """
        linger = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with (
            httpx.Client(headers=self.headers, transport=httpx.HTTPTransport(socket_options=[linger])) as http,
            http.stream(
                "POST", self._service.gateways()[0].url + CHAT, json=chat(content, stream=True), timeout=60
            ) as response,
        ):
            texts = filter(None, (text_of(json.loads(line[6:])) for line in response.iter_lines() if line))
            for _ in range(tokens):
                next(texts)
        self.lines.append(Line(self.prompt_of(content), tokens, "abort"))

    def lose(self, content: str, attempts: int = 1, **settings: Any) -> int:
        """A stream that breaks off, and how many tokens came before, as its chunks say."""
        tokens = 0
        told = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        with self.http.stream("POST", CHAT, json=chat(content, **told, **settings)) as response:
            try:
                for line in filter(None, response.iter_lines()):
                    tokens = json.loads(line[6:]).get("usage", {}).get("completion_tokens", tokens)
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

    def check(self, attempts: bool = True) -> None:
        """Hold the ledger, and what the service tells this key of it, against what the client has seen.

        `attempts`: whether it is known which requests have moved to another replica.
        """
        wait_for(lambda: len(self.rows()) >= len(self.lines), "the last row in the ledger", 20)
        rows = self.rows() if attempts else [row._replace(attempts=min(row.attempts, 1)) for row in self.rows()]
        assert sorted(rows) == sorted(self.lines)
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
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda tokens: client.leave("a story [[pace: 1500ms]]", tokens), (1, 2, 3)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token(service: Service, client: Client, stream: bool) -> None:
    content = "a story [[pace: 60000ms]]"
    async with httpx.AsyncClient(base_url=service.url, headers=client.headers, timeout=60) as http:
        request = asyncio.create_task(http.post(CHAT, json=chat(content, stream=stream)))
        await until(lambda: service.health()["queue_size"] == 1, "the arrival of the request")
        request.cancel()
        await asyncio.wait([request])
    client.lines.append(Line(client.prompt_of(content), 0, "abort", 1, 499))


async def test_a_client_that_leaves_before_a_whole_answer_has_got_nothing(service: Service, client: Client) -> None:
    content = "a story [[pace: 200ms]]"
    async with httpx.AsyncClient(base_url=service.url, headers=client.headers, timeout=60) as http:
        request = asyncio.create_task(http.post(CHAT, json=chat(content)))
        await until(lambda: service.health()["queue_size"] == 1, "the arrival of the request")
        await until(lambda: service.health()["queue_size"] == 0, "its first token")
        request.cancel()
        await asyncio.wait([request])
    client.lines.append(Line(client.prompt_of(content), 0, "abort", 1, 499))


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


def test_refusals(client: Client) -> None:
    client.fail(REFUSED_400, **chat("Hi", max_tokens=100_000))
    client.fail(REFUSED_400, **chat("Hi", temperature=-1))
    client.fail(REFUSED_400, messages="none")
    client.fail(Line(0, 0, "refused", 0, 404), **chat("Hi") | {"model": "absent"})
    client.send(CHAT, **chat("[[answer: yes]]"))
    client.fail(REFUSED_503, {"x-request-deadline-ms": "1"}, **chat("Hi"))


def test_what_the_limits_refuse(service: Service) -> None:
    client = Client(service, "--rpm", "2", "--tpm", "200")
    client.fail(REFUSED_429, **chat("Hi", max_tokens=1000))
    client.send(CHAT, **chat("[[answer: yes]]", max_tokens=20))
    client.send(CHAT, **chat("[[answer: yes]]", max_tokens=20))
    client.fail(REFUSED_429, **chat("Hi", max_tokens=20))
    wait_for(lambda: len(client.rows()) == 4, "the last row in the ledger", 20)
    assert client.rows() == client.lines


def test_failures(client: Client) -> None:
    for fault in ("[[fail]]", "[[fail after: 5]]"):
        client.fail(Line(client.prompt_of(fault), 0, "error", 1, 500), **chat(fault))
    assert client.lose("a story [[fail after: 5]] [[pace: 50ms]]") == 5


def test_streams_that_break_under_load(client: Client) -> None:
    """So many at a time that a chunk carries several tokens, and that some wait for the next when a stream breaks."""
    contents = [f"a story [[fail after: {tokens}]] [[pace: 20ms]]" for tokens in range(5, 37)]
    with ThreadPoolExecutor(len(contents)) as threads:
        told = list(threads.map(client.lose, contents))
    assert all(tokens <= sent for tokens, sent in zip(told, range(5, 37), strict=True))
    assert told != list(range(5, 37))


@pytest.fixture
def replicas(service: Service) -> Iterator[None]:
    """Two replicas that are up, before the test and after it."""
    wait_for(lambda: service.up("scripted", 2), "two replicas", 240)
    yield
    wait_for(lambda: service.up("scripted", 2), "the return of two replicas", 240)


@pytest.mark.usefixtures("replicas")
@pytest.mark.parametrize("way", [Client.send, Client.stream])
def test_a_death_that_the_client_does_not_notice(client: Client, way: Any) -> None:
    way(client, CHAT, attempts=2, **chat(f"[[answer: {WORDS}]] [[die after: 7]]"))


@pytest.mark.usefixtures("replicas")
def test_a_death_before_a_stop_string(client: Client) -> None:
    client.send(CHAT, attempts=2, **chat(f"[[answer: {LONG}]] [[die after: 7]]", stop=["thirteen fourteen 0"]))


@pytest.mark.usefixtures("replicas")
def test_a_death_that_ends_a_stream(client: Client) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 4]] [[pace: 50ms]]"
    assert client.lose(content, presence_penalty=1) == 4


@pytest.mark.usefixtures("replicas")
def test_deaths_that_end_a_whole_answer(client: Client) -> None:
    content = f"[[answer: {WORDS}]] [[die after: 4]]"
    client.fail(Line(client.prompt_of(content), 0, "error", 2, 500), **chat(content, presence_penalty=1))


@pytest.mark.usefixtures("replicas")
def test_all_at_once(service: Service) -> None:
    """So many at a time that a chunk carries more than one token, and some move when a replica dies."""
    client = Client(service)
    jobs = [
        *(lambda: client.send(CHAT, **chat(f"[[answer: {WORDS}]]")),) * 6,
        *(lambda: client.stream(CHAT, **chat(f"[[answer: {LONG}]] [[pace: 5ms]]")),) * 10,
        *(lambda: client.stream(CHAT, **chat(f"[[answer: {LONG}]]", stop=["fourteen 2"], n=2)),) * 4,
        *(lambda: client.send("/v1/completions", "length", prompt=["a", "b", "c"], max_tokens=30),) * 4,
        *(lambda: client.fail(REFUSED_400, **chat("Hi", max_tokens=100_000)),) * 4,
        *(lambda: client.send("/v1/embeddings", model="embed", input=["red", "green"]),) * 4,
        lambda: client.stream(CHAT, **chat(f"[[answer: {WORDS}]] [[die after: 7]]")),
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        for done in [threads.submit(job) for job in jobs]:
            done.result()
    client.check(attempts=False)


def test_cached_tokens(client: Client) -> None:
    told = [
        client.send("/v1/responses", "length", model="demo", input=LONG, max_output_tokens=3)["usage"] for _ in range(2)
    ]
    first, second = (usage["input_tokens_details"]["cached_tokens"] for usage in told)
    assert first == 0
    assert second > 0
    client.check()
    assert client.http.get("/api/usage").json()["total"]["cached_tokens"] == second


def test_a_key_sees_its_own_usage_and_the_admin_all(service: Service, client: Client) -> None:
    client.send(CHAT, **chat("[[answer: yes]]"))
    wait_for(client.rows, "the row in the ledger", 10)
    refused = client.http.get("/api/usage", params={"key": "admin"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "key")
    groups = service.http.get("/api/usage", params={"by": "key"}).json()["data"]
    assert {client.id, "admin"} <= {group["group"] for group in groups}
