"""The load client: a number of concurrent streams against one service, each measured as it arrives."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp

from loadtests.scenarios import chat_body, prompt
from loadtests.sse import Answer, AnswerReader, decode
from loadtests.stats import Quantiles
from loadtests.target import Target

READ_SIZE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load: `requests` streams in all, `concurrency` at a time, `max_tokens` tokens each."""

    concurrency: int
    requests: int
    max_tokens: int = 64
    prompt_words: int = 12


@dataclass(frozen=True, slots=True)
class Load:
    """The outcome of a plan: its answers and the seconds from the first request to the last byte."""

    plan: Plan
    answers: tuple[Answer, ...]
    seconds: float

    @property
    def good(self) -> tuple[Answer, ...]:
        return tuple(answer for answer in self.answers if answer.error is None)

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(answer.error for answer in self.answers if answer.error is not None)

    @property
    def tokens(self) -> int:
        """Completion tokens of the good answers, as the service's usage counts them."""
        return sum(answer.tokens for answer in self.good)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def ttfb(self) -> Quantiles:
        return Quantiles.of(answer.ttfb for answer in self.good if answer.ttfb is not None)

    @property
    def ttft(self) -> Quantiles:
        return Quantiles.of(answer.ttft for answer in self.good if answer.ttft is not None)

    @property
    def inter_token(self) -> Quantiles:
        return Quantiles.of(gap for answer in self.good for gap in answer.gaps)

    @property
    def end_to_end(self) -> Quantiles:
        return Quantiles.of(answer.seconds for answer in self.good)


async def run_load(target: Target, plan: Plan, on_answer: Callable[[Answer], None] | None = None) -> Load:
    """Runs the plan. A failed request is an answer with its error, never an exception."""
    numbers = iter(range(plan.requests))
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def stream_in_turn(shared: Iterator[int]) -> None:
            for number in shared:
                content = prompt(number, plan.prompt_words)
                body = chat_body(target.model, content, plan.max_tokens, ignore_eos=True)
                answer = await stream_answer(session, target, body)
                answers.append(answer)
                if on_answer:
                    on_answer(answer)

        started = time.perf_counter()
        await asyncio.gather(*(stream_in_turn(numbers) for _ in range(plan.concurrency)))
        return Load(plan, tuple(answers), time.perf_counter() - started)


async def stream_answer(session: aiohttp.ClientSession, target: Target, body: dict[str, object]) -> Answer:
    """Sends one streaming chat completion and reads it to its end."""
    reader = AnswerReader(started=time.perf_counter())
    url = f"{target.base_url}/chat/completions"
    timeout = aiohttp.ClientTimeout(total=600)
    try:
        async with session.post(url, json=body, timeout=timeout, read_bufsize=READ_SIZE) as response:
            reader.headers(time.perf_counter())
            if response.status == 200:
                async for data in response.content.iter_any():
                    reader.feed(data, time.perf_counter())
            else:
                failure = decode(await response.read()).error
                reader.retry_after = seconds(response.headers.get("Retry-After"))
                reader.fail(f"HTTP {response.status}: {failure.message if failure else 'no error object'}")
    except (aiohttp.ClientError, TimeoutError) as error:
        reader.fail(f"{type(error).__name__}: {error}")
    return reader.answer(time.perf_counter())


def seconds(header: str | None) -> float | None:
    """The value of a Retry-After header that gives seconds; None for any other."""
    return float(header) if header is not None and header.isascii() and header.isdigit() else None
