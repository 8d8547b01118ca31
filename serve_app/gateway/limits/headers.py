"""What clients are told of their limits: headers of every answer, and the 429.

`x-ratelimit-*` as OpenAI sends them (https://platform.openai.com/docs/guides/rate-limits), and the pair of
draft-ietf-httpapi-ratelimit-headers-10 beside them.
"""

from collections.abc import Callable
from random import random

from serve_app.gateway.errors import RateLimited
from serve_app.gateway.limits.limiter import Decision, Level, Refusal

# Longer waits make clients of OpenAI's SDK retry at once instead of waiting.
LONGEST_WAIT_MS = 60_000
# A refused client waits up to this part longer, so that those refused together do not come back together.
JITTER = 0.1

DO_NOT_RETRY = ("x-should-retry", "false")


def limit_headers(decision: Decision) -> list[tuple[str, str]]:
    """The headers of any answer; none for a key without limits."""
    levels = [(name, level) for name, level in (("requests", decision.requests), ("tokens", decision.tokens)) if level]
    if not levels:
        return []
    headers = []
    for name, level in levels:
        headers += [
            (f"x-ratelimit-limit-{name}", str(level.limit)),
            (f"x-ratelimit-remaining-{name}", str(_remaining(level))),
            (f"x-ratelimit-reset-{name}", duration(level.reset_ms)),
        ]
    policy = ", ".join(f'"{name}";q={level.limit};w=60' for name, level in levels)
    state = ", ".join(f'"{name}";r={_remaining(level)};t={_seconds(level.reset_ms)}' for name, level in levels)
    return [*headers, ("ratelimit-policy", policy), ("ratelimit", state)]


def retry_headers(wait_ms: int | None, jitter: Callable[[], float] = random) -> list[tuple[str, str]]:
    """When to try again.

    Args:
        wait_ms: None: never.
        jitter: a number from 0 to 1 for each call.
    """
    if wait_ms is None:
        return [DO_NOT_RETRY]
    told = min(LONGEST_WAIT_MS, max(1, wait_ms + int(wait_ms * JITTER * jitter())))
    headers = [("retry-after", str(_seconds(told))), ("retry-after-ms", str(told))]
    return [*headers, DO_NOT_RETRY] if wait_ms > LONGEST_WAIT_MS else headers


def rate_limited(decision: Decision, refusal: Refusal, jitter: Callable[[], float] = random) -> RateLimited:
    """The error of a refused claim, with all its headers."""
    headers = [*limit_headers(decision), *retry_headers(refusal.wait_ms, jitter)]
    return RateLimited(_message(refusal), headers=headers)


def duration(ms: int) -> str:
    """Like `12ms`, `1s`, `6m0s`, `1h0m0s`; from a second on rounded up to whole ones."""
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, seconds = divmod(_seconds(ms), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _message(refusal: Refusal) -> str:
    if refusal.wait_ms is None:
        return (
            f"This request asks for {refusal.cost} {refusal.limit}, which is more than the limit of "
            f"{refusal.allowed} {refusal.limit} a minute: it cannot pass. Shorten the prompt or lower `max_tokens`."
        )
    if refusal.limit == "concurrent":
        return f"This key has {refusal.allowed} requests running, which is its limit. Try again when one has ended."
    return (
        f"This key has reached its limit of {refusal.allowed} {refusal.limit} a minute. "
        f"Try again in {duration(refusal.wait_ms)}."
    )


def _remaining(level: Level) -> int:
    return max(0, level.remaining)


def _seconds(ms: int) -> int:
    return -(-ms // 1000)
