"""What the load looks like: who asks, how long the prompts and answers are, how long users pause."""

from dataclasses import dataclass
from typing import Any

TEXT = (
    "please tell me in plain words how a small team can keep a busy service healthy while it grows and "
    "what you would look at first when answers become slow for some people but not for all of them"
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of request. `weight` is its share of the load, `pause` the seconds of waiting after it."""

    name: str
    weight: int
    prompt_words: int
    max_tokens: int
    pause: tuple[float, float]
    stream: bool = True


SCENARIOS = (
    Scenario("chat", weight=7, prompt_words=20, max_tokens=64, pause=(0.5, 2.0)),
    Scenario("long prompt", weight=1, prompt_words=400, max_tokens=64, pause=(1.0, 3.0)),
    Scenario("long answer", weight=1, prompt_words=20, max_tokens=256, pause=(1.0, 3.0)),
    Scenario("whole", weight=1, prompt_words=20, max_tokens=64, pause=(0.5, 2.0), stream=False),
)


def prompt(number: int, words: int) -> str:
    """A prompt of about `words` words that differs from every other number's from its first word on."""
    known = TEXT.split()
    text = (known[(number + place) % len(known)] for place in range(max(1, words - 2)))
    return f"Question {number}: {' '.join(text)}?"


def chat_body(
    model: str, content: str, max_tokens: int, *, stream: bool = True, ignore_eos: bool = False
) -> dict[str, Any]:
    """The JSON body of a chat completion, greedy so that runs are alike; `ignore_eos` fixes the length."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if ignore_eos:
        body["ignore_eos"] = True
    return body
