"""The load client against a loopback server: counts, concurrency and every way to fail."""

import pytest

from loadtests.sse import Answer
from loadtests.stream import Plan, run_load, seconds
from loadtests.target import Target
from tests.unit.loadtests.sse_server import KEY, Script, frame, serving, text


async def test_every_request_is_answered_and_counted() -> None:
    script = Script()
    seen: list[Answer] = []
    with serving(script) as url:
        load = await run_load(Target(url, "loopback", KEY), Plan(3, 10, max_tokens=2), seen.append)
    assert (len(load.good), load.errors, load.tokens) == (10, (), 20)
    assert seen == list(load.answers)
    assert script.most_active <= 3
    assert len({str(body["messages"]) for body in script.bodies}) == 10
    assert {(body["model"], body["max_tokens"], body["ignore_eos"]) for body in script.bodies} == {
        ("loopback", 2, True)
    }
    for answer in load.answers:
        assert answer.ttfb is not None
        assert answer.ttft is not None
        assert 0 < answer.ttfb <= answer.ttft <= answer.seconds
        assert len(answer.gaps) <= 1


@pytest.mark.parametrize(
    ("script", "key", "error"),
    [
        (Script(), "wrong", "HTTP 401: bad key"),
        (Script(status=503), KEY, "HTTP 503: not now"),
        (Script(pieces=[text("a"), frame(error={"message": "gone"})]), KEY, "error frame: gone"),
        (Script(pieces=[text("a", "stop")]), KEY, "the stream ended without [DONE]"),
    ],
)
async def test_a_failure_is_an_error_with_its_reason(script: Script, key: str, error: str) -> None:
    with serving(script) as url:
        load = await run_load(Target(url, "loopback", key), Plan(2, 4))
    assert load.errors == (error,) * 4
    assert load.good == ()


async def test_ttft_is_taken_while_the_stream_still_runs() -> None:
    with serving(Script(hold_s=0.2)) as url:
        load = await run_load(Target(url, "loopback", KEY), Plan(1, 2))
    for answer in load.good:
        assert answer.ttft is not None
        assert answer.seconds - answer.ttft >= 0.1


async def test_a_broken_connection_is_an_error() -> None:
    with serving(Script(pieces=[text("a")], cut=True)) as url:
        load = await run_load(Target(url, "loopback", KEY), Plan(1, 2))
    assert [error.split(":")[0] for error in load.errors] == ["ClientPayloadError"] * 2


async def test_nobody_there_is_an_error() -> None:
    with serving(Script()) as url:
        pass
    load = await run_load(Target(url, "loopback", KEY), Plan(1, 1))
    assert load.errors[0].startswith("ClientConnectorError")


async def test_a_refusal_says_when_to_come_again() -> None:
    with serving(Script(refuse=frozenset({1}))) as url:
        load = await run_load(Target(url, "loopback", KEY), Plan(1, 3))
    assert [(answer.error, answer.retry_after) for answer in load.answers] == [
        (None, None),
        ("HTTP 503: loading", 0.0),
        (None, None),
    ]


@pytest.mark.parametrize(("header", "value"), [("10", 10.0), ("Thu, 26 Nov 2026 08:00:00 GMT", None), (None, None)])
def test_retry_after_counts_where_it_is_seconds(header: str | None, value: float | None) -> None:
    assert seconds(header) == value
