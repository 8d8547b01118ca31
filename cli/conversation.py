"""The turns of one chat and what is known about its latest answer; no terminal and no network here."""

from dataclasses import dataclass, field
from typing import Any

from cli.events import Content, Event, Failure, Finish, Reasoning, ToolCall, Usage
from cli.sanitize import one_line


@dataclass(slots=True)
class Conversation:
    """What the model is sent: settings, an optional system prompt, and the turns so far."""

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, prompt: str) -> None:
        """Add the user's next message."""
        self.turns.append({"role": "user", "content": prompt})

    def settle(self, answer: str) -> None:
        """Add the answer, partial ones too; a message that got none is taken back."""
        if answer:
            self.turns.append({"role": "assistant", "content": answer})
        else:
            self.turns.pop()

    def take_back(self, prompt: str) -> None:
        """Forget the last message and its answer, if the last message is `prompt`."""
        if len(self.turns) >= 2 and self.turns[-2]["content"] == prompt:
            del self.turns[-2:]

    def body(self) -> dict[str, Any]:
        """Return the chat completion request; settings left alone are the service's to choose."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        return body


@dataclass(slots=True)
class Answer:
    """One answer as it comes in. Times are seconds of one monotonic clock; `asked` is when it was sent."""

    asked: float
    text: str = ""
    finish: str = ""
    failure: str = ""
    interrupted: bool = False
    tokens: int | None = None
    pieces: int = 0
    first: float | None = None
    last: float | None = None

    def note(self, event: Event, now: float) -> None:
        """Take in the next event, seen at `now`."""
        match event:
            case Content(text):
                self.text += text
            case Finish(reason):
                self.finish = reason
            case Failure(message):
                self.failure = one_line(message).rstrip(".")
            case Usage():
                self.tokens = event.completion_tokens
        if isinstance(event, Content | Reasoning | ToolCall):
            self.pieces += 1
            self.first = now if self.first is None else self.first
            self.last = now

    def summary(self) -> str:
        """Return the line under an answer: `TTFT 0.21 s · 71.3 tok/s · 128 tokens`, and any odd ending.

        Without the service's own count, as after an interruption, pieces stand for tokens, marked `~`.
        """
        facts = []
        if self.first is not None and self.last is not None:
            facts.append(f"TTFT {self.first - self.asked:.2f} s")
            count, mark = (self.pieces, "~") if self.tokens is None else (self.tokens, "")
            if self.last > self.first and count > 1:
                facts.append(f"{mark}{(count - 1) / (self.last - self.first):.1f} tok/s")
            facts.append(f"{mark}{count} token{'s' * (count != 1)}")
        if ending := self._ending():
            facts.append(ending)
        return " · ".join(facts)

    def _ending(self) -> str:
        if self.interrupted:
            return "interrupted"
        if self.failure or self.finish in {"", "stop"}:
            return ""
        return {"length": "stopped at the token limit"}.get(self.finish, f"ended by {self.finish}")
