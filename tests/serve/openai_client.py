"""What one version of the `openai` client sees of the service.

Run with the version first on PYTHONPATH: `python openai_client.py SCENARIO...`. Stdin has JSON: the service's `url`
and its `keys` by name. Stdout gets JSON: for each scenario what came of it.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import openai

CALM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


class Player:
    """Plays scenarios against one service."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url = url
        self.keys = keys
        self.attempts: list[tuple[str, float]] = []
        """The client's own count of retries in each request sent, and when it was sent."""

    def client(self, key: str = "admin", max_retries: int = 0, timeout: float = 120) -> openai.OpenAI:
        self.attempts = []
        http = openai.DefaultHttpxClient(event_hooks={"request": [self._note]})
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=self.keys.get(key, key),
            max_retries=max_retries,
            timeout=timeout,
            http_client=http,
        )

    def _note(self, request: Any) -> None:
        self.attempts.append((request.headers.get("x-stainless-retry-count", ""), time.monotonic()))

    def chat(self, client: openai.OpenAI, text: str = "[[answer: green tea]]", **settings: Any) -> Any:
        request = {"model": "scripted", "messages": [{"role": "user", "content": text}], **settings}
        return client.chat.completions.create(**request)

    def refused(self, call: Callable[[], Any]) -> dict[str, Any]:
        """The error that a call raises."""
        try:
            call()
        except openai.APIStatusError as error:
            return {
                "class": type(error).__name__,
                "status": error.status_code,
                "type": error.type,
                "code": error.code,
                "param": error.param,
                "id": error.request_id == error.response.headers["x-request-id"],
                "attempts": [count for count, _ in self.attempts],
            }
        return {"class": None}


def version(player: Player) -> str:
    return openai.__version__


def chat(player: Player) -> dict[str, Any]:
    answer = player.chat(player.client())
    choice = answer.choices[0]
    return {
        "object": answer.object,
        "model": answer.model,
        "role": choice.message.role,
        "content": choice.message.content,
        "finish": choice.finish_reason,
        "usage": usage_of(answer.usage),
        "id": answer._request_id is not None,
    }


def stream(player: Player) -> dict[str, Any]:
    return read(player.chat(player.client(), stream=True, stream_options={"include_usage": True}))


def stream_without_usage(player: Player) -> dict[str, Any]:
    return read(player.chat(player.client(), stream=True))


def asynchronous_streams(player: Player) -> list[str]:
    """Three at once by the asynchronous client."""

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        text = ""
        content = f"[[answer: tea {number}]]"
        messages: Any = [{"role": "user", "content": content}]
        async for chunk in await client.chat.completions.create(model="scripted", messages=messages, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        return text

    async def several() -> list[str]:
        key = player.keys["admin"]
        async with openai.AsyncOpenAI(base_url=f"{player.url}/v1", api_key=key, max_retries=0) as client:
            return list(await asyncio.gather(*(one(client, number) for number in range(3))))

    return asyncio.run(several())


def tool_call(player: Player) -> dict[str, Any]:
    said = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    choice = player.chat(player.client(), f"[[answer: {said}]]", tools=[TOOL]).choices[0]
    call = choice.message.tool_calls[0]
    return {"finish": choice.finish_reason, "name": call.function.name, "arguments": call.function.arguments}


def completion(player: Player) -> dict[str, Any]:
    answer = player.client().completions.create(model="scripted", prompt="Once", max_tokens=5)
    return {"finish": answer.choices[0].finish_reason, "tokens": answer.usage and answer.usage.completion_tokens}


def responses(player: Player) -> dict[str, Any] | None:
    client = player.client()
    if not hasattr(client, "responses"):
        return None
    answer = client.responses.create(model="scripted", input="[[answer: green tea]]")
    events = list(client.responses.create(model="scripted", input="[[answer: green tea]]", stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    return {
        "status": answer.status,
        "text": answer.output_text,
        "streamed": "".join(deltas),
        "first": events[0].type,
        "last": events[-1].type,
    }


def embeddings(player: Player) -> dict[str, Any]:
    """By default the client asks for base64 and decodes it."""
    client = player.client()
    ours = client.embeddings.create(model="embed", input=["red", "green"])
    plain = client.embeddings.create(model="embed", input=["red", "green"], encoding_format="float")
    pairs = zip(ours.data, plain.data, strict=True)
    apart = [max(abs(x - y) for x, y in zip(a.embedding, b.embedding, strict=True)) for a, b in pairs]
    return {"lengths": [len(item.embedding) for item in ours.data], "same": max(apart) < 1e-3}


def models(player: Player) -> dict[str, Any]:
    client = player.client()
    listed = [model.id for model in client.models.list()]
    one = client.models.retrieve("scripted")
    return {"scripted": "scripted" in listed, "one": [one.id, one.object]}


def headers(player: Player) -> dict[str, Any]:
    """Of a raw response for a key with limits, and what it parses to."""
    raw = player.client("limited").chat.completions.with_raw_response.create(
        model="scripted", messages=[{"role": "user", "content": "[[answer: green tea]]"}], max_tokens=10
    )
    kept = {name: value for name, value in raw.headers.items() if "ratelimit" in name}
    parsed: Any = raw.parse()
    return {
        "limits": kept,
        "id": [len(raw.headers["x-request-id"]), raw.headers.get("x-request-id") == parsed._request_id],
        "content": parsed.choices[0].message.content,
        "tokens": parsed.usage.prompt_tokens,
    }


def errors(player: Player) -> dict[str, Any]:
    """What each refusal is to the client, and that none of these is tried again."""

    def call(key: str = "admin", **settings: Any) -> dict[str, Any]:
        client = player.client(key, max_retries=2)
        return player.refused(lambda: player.chat(client, **settings))

    def listing(key: str) -> dict[str, Any]:
        client = player.client(key, max_retries=2)
        return player.refused(lambda: client.embeddings.create(model="scripted", input="red"))

    return {
        "wrong key": call("sk-vc-wrong"),
        "endpoint out of scope": listing("scoped"),
        "absent model": call(model="absent"),
        "model out of scope": call("scoped", model="narrow"),
        "wrong task": listing("admin"),
        "wrong value": call(temperature=9),
        "unknown field": call(extra_body={"nonsense": 1}),
        "internal field": call(extra_body={"cache_salt": "mine"}),
        "too long": call(max_tokens=100_000),
        "large body": call(text="x" * (2 * 1024 * 1024)),
        "more than the limit": call("small", max_tokens=500),
    }


def retries(player: Player) -> dict[str, Any]:
    """A refusal that can pass later is tried again as often as allowed, after the time that it names."""
    with player.client("single") as first:
        held = player.chat(first, f"[[answer: {CALM}]] [[pace: 1000ms]]", stream=True)
        next(iter(held))
        second = player.client("single", max_retries=2)
        seen = player.refused(lambda: player.chat(second))
        times = [moment for _, moment in player.attempts]
        held.close()
    return {**seen, "waited": all(b - a >= 1 for a, b in itertools.pairwise(times))}


def success_after_a_retry(player: Player) -> dict[str, Any]:
    """Also: a stream that is closed early gives its place back."""
    with player.client("single", max_retries=8) as first:
        held = player.chat(first, f"[[answer: {CALM}]] [[pace: 1000ms]]", stream=True)
        next(iter(held))
        second = player.client("single", max_retries=8)
        second_note = player.attempts

        def close_held(response: Any) -> None:
            held.close()

        second._client.event_hooks = {**second._client.event_hooks, "response": [close_held]}
        answer = player.chat(second)
    return {"content": answer.choices[0].message.content, "retried": len(second_note) > 1}


def overload(player: Player) -> dict[str, Any]:
    """A deadline that cannot be met."""
    client = player.client(max_retries=1)
    return player.refused(lambda: player.chat(client, extra_headers={"x-request-deadline-ms": "1"}))


def late_answer(player: Player) -> dict[str, Any]:
    """The first token comes too late for the service's deadline."""
    client = player.client(max_retries=2)
    return player.refused(lambda: player.chat(client, "[[pace: 60000ms]]"))


def early_close(player: Player) -> dict[str, Any]:
    """A client that stops reading can go on with its next request."""
    client = player.client("plain")
    with player.chat(client, f"[[answer: {CALM}]] [[pace: 300ms]]", stream=True) as chunks:
        first = [next(iter(chunks)).object]
    return {"first": first, "then": player.chat(client).choices[0].message.content}


def failing_stream(player: Player) -> dict[str, Any]:
    return read(
        player.chat(player.client(max_retries=2), f"[[answer: {CALM}]] [[pace: 50ms]] [[fail after: 3]]", stream=True)
    )


def dying_stream(player: Player) -> dict[str, Any]:
    """The replica dies, and penalties count what it had written, so no other can go on."""
    client = player.client(max_retries=2)
    text = f"[[answer: {CALM}]] [[die after: 3]]"
    return read(player.chat(client, text, stream=True, presence_penalty=0.5))


def read(chunks: Any) -> dict[str, Any]:
    """A stream to its end or its error."""
    text, finish, usage, ids, raised = "", [], [], set(), None
    try:
        for chunk in chunks:
            ids.add(chunk.id)
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            finish += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
            usage += [usage_of(chunk.usage)] if chunk.usage else []
    except openai.APIError as error:
        raised = {"class": type(error).__name__, "code": error.code, "type": error.type, "message": error.message}
    return {"text": text, "finish": finish, "usage": usage, "ids": len(ids), "raised": raised}


def usage_of(usage: Any) -> list[int]:
    return [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens]


SCENARIOS: dict[str, Callable[[Player], Any]] = {
    scenario.__name__: scenario
    for scenario in (
        version,
        chat,
        stream,
        stream_without_usage,
        asynchronous_streams,
        tool_call,
        completion,
        responses,
        embeddings,
        models,
        headers,
        errors,
        retries,
        success_after_a_retry,
        overload,
        early_close,
        failing_stream,
    )
}
"""For any service with the tests' models and keys."""
FAULTS: dict[str, Callable[[Player], Any]] = {"dying_stream": dying_stream, "late_answer": late_answer}
"""For a service that a test has prepared."""


def main(names: list[str]) -> None:
    player = Player(**json.load(sys.stdin))
    json.dump({name: (SCENARIOS | FAULTS)[name](player) for name in names}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
