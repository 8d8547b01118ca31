"""A storm: streams that never rest on a fleet whose replicas are struck one after the other, and what came of it."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import httpx

from loadtests.running import SystemFailedError
from loadtests.scenarios import chat_body, prompt
from loadtests.sse import Answer
from loadtests.stream import stream_answer
from loadtests.target import Target
from loadtests.victims import Killer

PROMPT_WORDS = 12
PAUSE_AFTER_ERROR_S = 1.0
LEDGER_S = 30.0
LEDGER_REST_S = 2.0


@dataclass(frozen=True, slots=True)
class Storm:
    """How much: `streams` at a time of `tokens` tokens each, struck every `every_s` for `seconds`.

    `directives` go with every prompt, for a model that is scripted.
    """

    streams: int = 40
    tokens: int = 60
    seconds: float = 60.0
    every_s: float = 1.0
    directives: str = ""


@dataclass(frozen=True, slots=True)
class Sums:
    """Requests and tokens, as the usage ledger has them or as clients were told."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Outcome:
    """What the clients of a storm got. `expected` is each stream's undisturbed answer."""

    expected: list[Answer]
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Requests that were told to come again later, before anything was computed; each did."""
    billed: Sums = Sums()

    @property
    def complete(self) -> int:
        return sum(answer.error is None for _, answer in self.answers)

    @property
    def exact(self) -> int:
        """Streams that are to the token what they would have been."""
        return sum(same(answer, self.expected[number]) for number, answer in self.answers)

    @property
    def worst_stall_s(self) -> float:
        return max((answer.worst_wait for _, answer in self.answers), default=0.0)

    @property
    def received(self) -> Sums:
        """Of all requests, the undisturbed ones included; the ledger has a row for each that was refused as well."""
        answers = [*self.expected, *(answer for _, answer in self.answers)]
        return Sums(
            len(answers) + self.refused,
            sum(answer.prompt_tokens for answer in answers),
            sum(answer.tokens for answer in answers),
        )

    def failures(self) -> list[str]:
        """Why the promise was not kept; empty if it was."""
        total = len(self.answers)
        errors = Counter(answer.error for _, answer in self.answers if answer.error)
        found = [f"{count} streams failed: {error}" for error, count in errors.most_common()]
        if self.exact < self.complete:
            found.append(f"{self.complete - self.exact} of {total} streams lost, repeated or changed tokens")
        if not errors and self.billed != self.received:  # what a broken stream received is not known in tokens
            found.append(f"the ledger has {self.billed}, the clients received {self.received}")
        if not self.kills:
            found.append("nothing was killed")
        return found


def same(answer: Answer, expected: Answer) -> bool:
    """Whether a stream came to its end with the text and the usage of the undisturbed one."""
    wanted = (expected.text, expected.tokens, expected.prompt_tokens)
    return answer.error is None and (answer.text, answer.tokens, answer.prompt_tokens) == wanted


async def run_storm(target: Target, killer: Killer, storm: Storm, on_news: Callable[[Outcome], None]) -> Outcome:
    """Ask once in peace, then under kills until the time is over and every stream has ended.

    `on_news` is called after each answer and each kill. The key is used by nobody else. Raises SystemFailedError if
    there is no peace.
    """
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:
        before = await resting_ledger(target)
        bodies = [body_of(target, storm, number) for number in range(storm.streams)]
        outcome = Outcome(list(await asyncio.gather(*(stream_answer(session, target, body) for body in bodies))))
        if errors := [answer.error for answer in outcome.expected if answer.error]:
            raise SystemFailedError(f"{len(errors)} streams failed before anything was killed: {errors[0]}")
        end = time.monotonic() + storm.seconds

        async def ask_again_and_again(number: int) -> None:
            while time.monotonic() < end:
                answer = await stream_answer(session, target, bodies[number])
                while answer.retry_after is not None:
                    outcome.refused += 1
                    await asyncio.sleep(answer.retry_after)
                    answer = await stream_answer(session, target, bodies[number])
                outcome.answers.append((number, answer))
                on_news(outcome)
                await asyncio.sleep(PAUSE_AFTER_ERROR_S if answer.error else 0)

        async def kill() -> None:
            start = end - storm.seconds
            for number in itertools.count(1):
                if (due := start + number * storm.every_s) >= end:
                    return
                await asyncio.sleep(due - time.monotonic())
                if kind := await asyncio.to_thread(killer.strike):
                    outcome.kills[kind] += 1
                on_news(outcome)

        await asyncio.gather(kill(), *map(ask_again_and_again, range(storm.streams)))
        outcome.billed = await settled_ledger(target, before, outcome.received)
        return outcome


def body_of(target: Target, storm: Storm, number: int) -> dict[str, object]:
    """The request of one stream: its own prompt, and an answer of `storm.tokens` tokens."""
    content = f"{prompt(number, PROMPT_WORDS)} {storm.directives}".strip()
    return chat_body(target.model, content, storm.tokens, ignore_eos=True)


async def resting_ledger(target: Target) -> Sums:
    """What the ledger has once the requests of the service's start are in it: rows are written a moment later."""
    deadline, now = time.monotonic() + LEDGER_S, await read_ledger(target)
    while True:
        await asyncio.sleep(LEDGER_REST_S)
        before, now = now, await read_ledger(target)
        if now == before or time.monotonic() > deadline:
            return now


async def settled_ledger(target: Target, before: Sums, expected: Sums) -> Sums:
    """What the ledger has taken since `before`, once it is what is expected or has had time to become so."""
    deadline = time.monotonic() + LEDGER_S
    while True:
        now = await read_ledger(target)
        billed = Sums(
            now.requests - before.requests,
            now.prompt_tokens - before.prompt_tokens,
            now.output_tokens - before.output_tokens,
        )
        if billed == expected or time.monotonic() > deadline:
            return billed
        await asyncio.sleep(0.5)


async def read_ledger(target: Target) -> Sums:
    """The sums of `GET /api/usage` for the key."""
    url = target.base_url.removesuffix("/v1") + "/api/usage"
    async with httpx.AsyncClient(headers=target.headers, timeout=30, trust_env=not target.is_local) as client:
        total = (await client.get(url)).raise_for_status().json()["total"]
    return Sums(total["requests"], total["prompt_tokens"], total["output_tokens"])
