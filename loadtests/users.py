"""Users of a soak: most read their answers to the end, some leave early, some read slowly."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from loadtests.scenarios import chat_body, prompt
from loadtests.sse import Answer, AnswerReader
from loadtests.stream import stream_answer
from loadtests.target import Target

TOKENS = 60
PROMPT_WORDS = 20
LEAVES_AFTER = 5  # reads
SLOW_READ = 2048  # bytes
SLOW_READ_S = 0.2  # with it 10 kB/s, less than half of what the answer would come at
PAUSE_AFTER_ERROR_S = 1.0
KINDS = ("leave", "read slowly", *["read"] * 6)


@dataclass(slots=True)
class Tally:
    """How many requests were read, left and read slowly, and why others failed."""

    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Users:
    """So many users of one service, until `end` of the monotonic clock. `directives` go with every prompt."""

    target: Target
    count: int
    directives: str
    end: float
    tally: Tally

    async def run(self) -> None:
        """Keep all of them busy."""
        connector = aiohttp.TCPConnector(limit=0)
        numbers = iter(range(10**9))
        async with aiohttp.ClientSession(connector=connector, headers=self.target.headers) as session:
            await asyncio.gather(*(self._use(session, KINDS[user % len(KINDS)], numbers) for user in range(self.count)))

    async def _use(self, session: aiohttp.ClientSession, kind: str, numbers: Iterator[int]) -> None:
        while time.monotonic() < self.end:
            content = f"{prompt(next(numbers), PROMPT_WORDS)} {self.directives}".strip()
            body = chat_body(self.target.model, content, TOKENS, ignore_eos=True)
            answer = await self._ask(session, kind, body)
            if answer.error is None:
                self.tally.done[kind] += 1
            else:
                self.tally.errors[f"{kind}: {answer.error}"] += 1
                await asyncio.sleep(answer.retry_after or PAUSE_AFTER_ERROR_S)

    async def _ask(self, session: aiohttp.ClientSession, kind: str, body: dict[str, object]) -> Answer:
        if kind == "read":
            return await stream_answer(session, self.target, body)
        reader = AnswerReader(started=time.perf_counter())
        url = f"{self.target.base_url}/chat/completions"
        try:
            if kind == "leave":
                return await leave(session, url, body, reader)
            return await read_slowly(session, url, {**body, "logprobs": True, "top_logprobs": 20}, reader)
        except (aiohttp.ClientError, TimeoutError) as error:
            reader.fail(f"{type(error).__name__}: {error}")
        return reader.answer(time.perf_counter())


async def leave(session: aiohttp.ClientSession, url: str, body: dict[str, object], reader: AnswerReader) -> Answer:
    """Reads the beginning of an answer and closes the connection; an answer whatever it was."""
    async with session.post(url, json=body) as response:
        response.raise_for_status()
        for _ in range(LEAVES_AFTER):
            await response.content.readany()
        response.close()
    return Answer(time.perf_counter() - reader.started)


async def read_slowly(
    session: aiohttp.ClientSession, url: str, body: dict[str, object], reader: AnswerReader
) -> Answer:
    """Reads an answer of large chunks at a pace below the one at which it comes."""
    async with session.post(url, json=body, read_bufsize=SLOW_READ) as response:
        response.raise_for_status()
        while data := await response.content.read(SLOW_READ):
            reader.feed(data, time.perf_counter())
            await asyncio.sleep(SLOW_READ_S)
    return reader.answer(time.perf_counter())
