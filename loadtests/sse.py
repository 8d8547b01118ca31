"""Reads one streamed chat completion from its bytes and notes when each part of it came.

Every load client feeds it: the asyncio client of `bench` and `compare`, and the locust user.
"""

from dataclasses import dataclass, field

import msgspec


class Delta(msgspec.Struct):
    """What a frame adds to the answer."""

    content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """One choice of a frame; `finish_reason` is set on its last frame."""

    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    """What of the prompt was found in the KV cache; only where the server is told to say so."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts, in the frame after the last choice."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Failure(msgspec.Struct):
    """The error object of a failed request, as a frame or as a whole body."""

    message: str = "no message"


class Frame(msgspec.Struct):
    """One `data:` line of the stream, or the body of an error response."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished request. Times are seconds since it was sent; `ttft` is None if no text came."""

    seconds: float
    ttfb: float | None = None
    ttft: float | None = None
    gaps: tuple[float, ...] = ()
    tokens: int = 0
    error: str | None = None
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retry_after: float | None = None
    """Seconds after which to try again, where the service refused the request and said so."""

    @property
    def worst_wait(self) -> float:
        """The longest time without news: before the first text, between two frames, or after the last one."""
        if self.ttft is None:
            return self.seconds
        return max(self.ttft, *self.gaps, self.seconds - self.ttft - sum(self.gaps))


@dataclass(slots=True)
class AnswerReader:
    """Takes a stream's bytes as they arrive and turns them into an `Answer`.

    `started` and every `now` are readings of one clock, in seconds. TTFT is taken at the first frame
    with text. Inter-token gaps are the times between arrivals of frames from then on; vLLM makes a frame
    an engine step, and frames that come in one read are one arrival, as they are to a reader of the text.
    """

    started: float
    ttfb: float | None = None
    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retry_after: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    complete: bool = False
    _text: list[str] = field(default_factory=list)
    _last_frame_at: float = 0.0
    _unfinished: bytes = b""

    def headers(self, now: float) -> None:
        """Notes that the response's status line and headers have arrived."""
        self.ttfb = now - self.started

    def feed(self, data: bytes, now: float) -> None:
        """Reads whole lines out of `data` and keeps the unfinished one for the next call."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def fail(self, reason: str) -> None:
        """Marks the answer as failed; the first reason stays."""
        self.error = self.error or reason

    def answer(self, now: float) -> Answer:
        """The finished answer. A stream that was cut short or never said why it ended is an error."""
        if not self.complete:
            self.fail("the stream ended without [DONE]")
        if self.finish_reason is None:
            self.fail("no finish_reason")
        return Answer(
            now - self.started,
            self.ttfb,
            self.ttft,
            tuple(self.gaps),
            self.tokens,
            self.error,
            "".join(self._text),
            self.prompt_tokens,
            self.cached_tokens,
            self.retry_after,
        )

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.complete = True
            return
        frame = decode(payload)
        if frame.error:
            self.fail(f"error frame: {frame.error.message}")
        if frame.usage:
            self.tokens, self.prompt_tokens = frame.usage.completion_tokens, frame.usage.prompt_tokens
            details = frame.usage.prompt_tokens_details
            self.cached_tokens = details.cached_tokens if details else 0
        if frame.choices:
            self._choice(frame.choices[0], now)

    def _choice(self, choice: Choice, now: float) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        self._text.append(choice.delta.content or choice.delta.reasoning or "")
        if self.ttft is not None and now > self._last_frame_at:
            self.gaps.append(now - self._last_frame_at)
        elif self.ttft is None and (choice.delta.content or choice.delta.reasoning):
            self.ttft = now - self.started
        self._last_frame_at = now


def decode(payload: bytes) -> Frame:
    """Parses one frame or error body; what is not JSON of that shape becomes an error frame."""
    try:
        return msgspec.json.decode(payload, type=Frame)
    except msgspec.DecodeError:
        return Frame(error=Failure(f"not a chat completion frame: {payload[:80]!r}"))
