"""Turns the bytes of a chat completion stream into typed events; bytes may be cut anywhere.

The wire format is server-sent events (WHATWG HTML, section 9.2) carrying OpenAI chat completion chunks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Role:
    """The speaker of what follows."""

    name: str


@dataclass(frozen=True, slots=True)
class Content:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of a tool call: the first piece of an `index` has the name, the rest arguments (JSON text)."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Why the model stopped: `stop`, `length`, `tool_calls`, ..."""

    reason: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole request, counted by the service."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer ends here, unfinished: an error frame, a frame nobody can read, or a lost connection."""

    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""


Event = Role | Content | Reasoning | ToolCall | Finish | Usage | Failure | Done


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(msgspec.Struct):
    index: int = 0
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the older name of `reasoning`
    tool_calls: list[_ToolDelta] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class _Error(msgspec.Struct):
    message: str = "no reason given"


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


class FrameReader:
    """Splits server-sent events into the `data` of each, whatever the line ends; comments are dropped."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of every event that the next bytes complete."""
        if not chunk:
            return
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")  # the second half of a line end cut in two
        self._after_cr = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line += line
            yield from self._end_line()
        self._line += rest

    def close(self) -> Iterator[str]:
        """Yield the event that lacks its blank line because the stream ended."""
        yield from self._end_line()
        yield from self._end_line()

    def _end_line(self) -> Iterator[str]:
        line = bytes(self._line).removeprefix(b"\xef\xbb\xbf")
        self._line.clear()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data).decode(errors="replace")
            self._data.clear()


class EventReader:
    """Bytes of one answer in, events out. The last event is Done or Failure; nothing comes after it."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._finished = False
        self.ended = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that the next bytes complete."""
        return self._events(self._frames.feed(chunk))

    def close(self) -> Iterator[Event]:
        """Yield what the end of the stream means: some services end without `[DONE]`."""
        yield from self._events(self._frames.close())
        if not self.ended:
            self.ended = True
            yield Done() if self._finished else Failure("the connection ended before the answer did")

    def _events(self, frames: Iterator[str]) -> Iterator[Event]:
        for frame in frames:
            for event in parse_frame(frame):
                if self.ended:
                    return
                self._finished |= isinstance(event, Finish)
                self.ended = isinstance(event, Done | Failure)
                yield event


def parse_frame(data: str) -> Iterator[Event]:
    """Yield the events of one frame: a chunk, an error, or the `[DONE]` mark. Unknown frames yield none."""
    if data.strip() == "[DONE]":
        yield Done()
        return
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except (msgspec.DecodeError, UnicodeError):
        yield Failure("the service sent a frame that is no chat completion chunk")
        return
    for choice in chunk.choices:
        if choice.index == 0:
            yield from _choice_events(choice)
    if chunk.usage and chunk.usage.completion_tokens is not None:
        yield Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    if chunk.error is not None:
        yield Failure(chunk.error if isinstance(chunk.error, str) else chunk.error.message)


def _choice_events(choice: _Choice) -> Iterator[Event]:
    delta = choice.delta
    if delta.role:
        yield Role(delta.role)
    if reasoning := delta.reasoning or delta.reasoning_content:
        yield Reasoning(reasoning)
    if delta.content:
        yield Content(delta.content)
    for call in delta.tool_calls or []:
        yield ToolCall(call.index, call.function.name or "", call.function.arguments or "")
    if choice.finish_reason:
        yield Finish(choice.finish_reason)
