"""Users who chat for as long as the run lasts: `make loadtest`, or `locust -f loadtests/locustfile.py`.

Streamed answers show up as `chat stream` (the whole answer), `chat TTFT` (its first text) and in the summary
at the end as tokens/s. The size columns of `chat stream` and `chat whole` count completion tokens, not bytes.
"""

import random
import time
from typing import Any

from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment
from locust.runners import WorkerRunner
from rich.console import Console

from loadtests.scenarios import SCENARIOS, Scenario, chat_body, prompt
from loadtests.sse import AnswerReader, decode
from loadtests.target import Target, TargetError, find_target

STREAM, WHOLE, TTFT = "chat stream", "chat whole", "chat TTFT"
PATH = "/chat/completions"


@events.init.add_listener  # type: ignore[untyped-decorator]
def choose_target(environment: Environment, **_: Any) -> None:
    """Finds the service once, before any user starts; without one the run ends at once with the reason.

    `--host`, if given, is its base URL and ends in `/v1`, as OPENAI_BASE_URL does.
    """
    try:
        ChatUser.target = find_target(base_url=environment.host)
    except TargetError as error:
        raise SystemExit(str(error)) from None
    ChatUser.host = ChatUser.target.base_url


class ChatUser(FastHttpUser):
    """One person at a time in a chat: asks, reads the answer to its end, pauses, asks again."""

    target: Target
    network_timeout = 600.0
    scenario: Scenario = SCENARIOS[0]

    def wait_time(self) -> float:
        """The pause after a request, as its scenario has it."""
        return random.uniform(*self.scenario.pause)  # noqa: S311

    @task
    def chat(self) -> None:
        """One request of a scenario drawn by weight."""
        self.scenario = random.choices(SCENARIOS, [each.weight for each in SCENARIOS])[0]  # noqa: S311
        content = prompt(random.randrange(10**9), self.scenario.prompt_words)  # noqa: S311
        streamed = self.scenario.stream
        body = chat_body(self.target.model, content, self.scenario.max_tokens, stream=streamed)
        if streamed:
            self.stream(body)
        else:
            self.whole(body)

    def stream(self, body: dict[str, Any]) -> None:
        """A streamed answer: read line by line as it comes, so that TTFT is the first text's own time."""
        reader = AnswerReader(started=time.perf_counter())
        with self._post(STREAM, body, stream=True) as response:
            reader.headers(time.perf_counter())
            if response.status_code == 200:
                read_lines(response, reader)
            else:
                reader.fail(refusal(response))
            answer = reader.answer(time.perf_counter())
            response.request_meta["response_time"] = answer.seconds * 1000
            response.request_meta["response_length"] = answer.tokens
            if answer.error:
                response.failure(answer.error)
            elif answer.ttft is not None:
                self._report_ttft(answer.ttft)

    def whole(self, body: dict[str, Any]) -> None:
        """An answer in one piece; its time to the first text is its whole time, so none is reported."""
        with self._post(WHOLE, body) as response:
            if response.status_code != 200:
                response.failure(refusal(response))
                return
            frame = decode(response.content or b"")
            response.request_meta["response_length"] = frame.usage.completion_tokens if frame.usage else 0
            if not frame.choices or frame.choices[0].finish_reason is None:
                response.failure("no finish_reason")

    def _post(self, name: str, body: dict[str, Any], *, stream: bool = False) -> ResponseContextManager:
        return self.client.post(
            PATH, name=name, json=body, headers=self.target.headers, stream=stream, catch_response=True
        )

    def _report_ttft(self, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=TTFT,
            response_time=seconds * 1000,
            response_length=0,
            exception=None,
            context=self.context(),
        )


def read_lines(response: ResponseContextManager, reader: AnswerReader) -> None:
    """Feeds the body line by line as it comes (`iter_content` would wait for whole kilobytes)."""
    try:
        while line := response.stream.readline(b"\n"):
            reader.feed(line, time.perf_counter())
    except FAILURE_EXCEPTIONS as error:
        reader.fail(f"the connection broke: {type(error).__name__}")


def refusal(response: ResponseContextManager) -> str:
    """Why there is no answer: the status and the service's own message, or that no response came at all."""
    if not response.status_code:
        return f"no response: {type(getattr(response, 'error', None)).__name__}"
    failure = decode(response.content or b"").error
    return f"HTTP {response.status_code}: {failure.message if failure else 'no error object'}"


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def print_summary(environment: Environment, **_: Any) -> None:
    """The figures that matter, in one line each."""
    if isinstance(environment.runner, WorkerRunner):
        return
    stats = environment.stats
    streams, ttft = stats.get(STREAM, "POST"), stats.get(TTFT, "SSE")
    tokens = streams.total_content_length + stats.get(WHOLE, "POST").total_content_length
    seconds = (stats.last_request_timestamp or 0) - stats.start_time
    console = Console(highlight=False)
    console.print(f"streams  {streams.num_requests} ({streams.num_failures} failed)")
    if ttft.num_requests:
        p50, p95 = (ttft.get_response_time_percentile(part) for part in (0.5, 0.95))
        console.print(f"TTFT     p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    if seconds > 0:
        console.print(f"tokens/s {tokens / seconds:.0f} ({tokens} tokens in {seconds:.0f} s)")
