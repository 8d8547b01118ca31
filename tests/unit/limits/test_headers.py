"""The exact headers and words that clients get."""

import pytest

from serve_app.gateway.limits.headers import duration, limit_headers, rate_limited, retry_headers
from serve_app.gateway.limits.limiter import UNITS, Decision, Level, Refusal


def level(limit: int, remaining: float) -> Level:
    return Level(limit, int(remaining * UNITS))


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12, "12ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1001, "2s"),
        (59_001, "1m0s"),
        (90_000, "1m30s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (90_061_000, "25h1m1s"),
    ],
)
def test_durations(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_every_answer_names_both_limits() -> None:
    assert limit_headers(Decision(None, level(60, 58.5), level(1000, 400))) == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "58"),
        ("x-ratelimit-reset-requests", "2s"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "400"),
        ("x-ratelimit-reset-tokens", "36s"),
        ("ratelimit-policy", '"requests";q=60;w=60, "tokens";q=1000;w=60'),
        ("ratelimit", '"requests";r=58;t=2, "tokens";r=400;t=36'),
    ]


def test_a_limit_that_is_not_set_is_not_named() -> None:
    assert limit_headers(Decision(None, None, level(1000, 1000))) == [
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "1000"),
        ("x-ratelimit-reset-tokens", "0s"),
        ("ratelimit-policy", '"tokens";q=1000;w=60'),
        ("ratelimit", '"tokens";r=1000;t=0'),
    ]
    assert limit_headers(Decision(None, None, None)) == []


def test_a_debt_shows_as_nothing_left() -> None:
    headers = dict(limit_headers(Decision(None, None, level(1000, -500))))
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "1m30s"
    assert headers["ratelimit"] == '"tokens";r=0;t=90'


@pytest.mark.parametrize(
    ("wait_ms", "jitter", "headers"),
    [
        (1, 0.0, {"retry-after": "1", "retry-after-ms": "1"}),
        (150, 0.0, {"retry-after": "1", "retry-after-ms": "150"}),
        (150, 1.0, {"retry-after": "1", "retry-after-ms": "165"}),
        (1000, 0.0, {"retry-after": "1", "retry-after-ms": "1000"}),
        (1000, 0.5, {"retry-after": "2", "retry-after-ms": "1050"}),
        (60_000, 1.0, {"retry-after": "60", "retry-after-ms": "60000"}),
        (60_001, 0.0, {"retry-after": "60", "retry-after-ms": "60000", "x-should-retry": "false"}),
        (None, 1.0, {"x-should-retry": "false"}),
    ],
)
def test_when_to_try_again(wait_ms: int | None, jitter: float, headers: dict[str, str]) -> None:
    assert dict(retry_headers(wait_ms, lambda: jitter)) == headers


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            Refusal("requests", 60, 1, 1500),
            "This key has reached its limit of 60 requests a minute. Try again in 2s.",
        ),
        (
            Refusal("tokens", 1000, 400, 250),
            "This key has reached its limit of 1000 tokens a minute. Try again in 250ms.",
        ),
        (
            Refusal("tokens", 1000, 1200, None),
            "This request asks for 1200 tokens, which is more than the limit of 1000 tokens a minute: it cannot pass. "
            "Shorten the prompt or lower `max_tokens`.",
        ),
        (
            Refusal("concurrent", 4, 1, 1000),
            "This key has 4 requests running, which is its limit. Try again when one has ended.",
        ),
    ],
)
def test_the_error_names_the_limit(refusal: Refusal, message: str) -> None:
    error = rate_limited(Decision(refusal, level(60, 0), None), refusal, lambda: 0.0)
    assert str(error) == message
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.headers[0] == (b"x-ratelimit-limit-requests", b"60")
    assert (b"x-should-retry", b"false") in error.headers or (b"retry-after" in dict(error.headers))
