"""`GET /api/usage`: exact sums, nobody else's, and a clear word about a wrong parameter."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import URL, text

from serve_app.gateway.errors import BadRequest, NotFound, UsageUnavailable
from serve_app.ledger.database import connect
from serve_app.ledger.report import Filters
from serve_app.ledger.usage import UsageReports, parse_query
from serve_app.ledger.writer import Ledger
from tests.unit.ledger.rows import NOON, row

DAY = timedelta(days=1)
NOTHING = {
    "requests": 0,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "failed": 0,
    "aborted": 0,
    "refused": 0,
    "ttft_avg_s": None,
}


@pytest.fixture
def ledger(url: URL) -> Iterator[Ledger]:
    """Two keys, two models, three days, every kind of end."""
    first = Ledger(connect(url))
    tokens = {"prompt_tokens": 100, "cached_tokens": 40, "output_tokens": 10, "reasoning_tokens": 4}
    first.add(row("1", **tokens, ttft_s=0.1))
    first.add(row("2", **tokens, ttft_s=0.3, finish="abort", time=NOON + DAY))
    first.add(row("3", finish="error", status=503, prompt_tokens=7, time=NOON + DAY))
    first.add(row("4", finish="refused", status=429, attempts=0, model="other", time=NOON + 2 * DAY))
    first.add(row("5", key_id="k2", model="other", output_tokens=1, ttft_s=1.0, time=NOON + 2 * DAY))
    first.close()
    second = Ledger(connect(url))
    yield second
    second.close()


async def ask(ledger: Ledger, query: str, key_id: str = "admin", is_admin: bool = True) -> dict[str, Any]:
    report = await UsageReports(ledger).answer(query.encode(), key_id=key_id, is_admin=is_admin)
    answer: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(report))
    return answer


def groups(answer: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    return [(t["group"], t["requests"], t["prompt_tokens"], t["output_tokens"]) for t in answer["data"]]


async def test_a_report_whole(ledger: Ledger) -> None:
    assert await ask(ledger, "by=key") == {
        "object": "usage",
        "by": "key",
        "key": None,
        "model": None,
        "since": None,
        "until": None,
        "data": [
            {
                "group": "k1",
                "requests": 4,
                "prompt_tokens": 207,
                "cached_tokens": 80,
                "output_tokens": 20,
                "reasoning_tokens": 8,
                "failed": 1,
                "aborted": 1,
                "refused": 1,
                "ttft_avg_s": 0.2,
            },
            {**NOTHING, "group": "k2", "requests": 1, "output_tokens": 1, "ttft_avg_s": 1.0},
        ],
        "total": {
            "group": "total",
            "requests": 5,
            "prompt_tokens": 207,
            "cached_tokens": 80,
            "output_tokens": 21,
            "reasoning_tokens": 8,
            "failed": 1,
            "aborted": 1,
            "refused": 1,
            "ttft_avg_s": 0.4667,
        },
        "gaps": [],
    }


async def test_by_day_and_model(ledger: Ledger) -> None:
    days = [("2026-01-31", 1, 100, 10), ("2026-02-01", 2, 107, 10), ("2026-02-02", 2, 0, 1)]
    assert groups(await ask(ledger, "")) == groups(await ask(ledger, "by=day")) == days
    assert groups(await ask(ledger, "by=model")) == [("demo", 3, 207, 20), ("other", 2, 0, 1)]


async def test_filters(ledger: Ledger) -> None:
    requests = {
        "key=k1": 4,
        "key=k1&model=other": 1,
        "model=demo": 3,
        "key=nobody": 0,
        "since=2026-02-01": 4,
        "since=2026-01-31T12:00:00Z": 5,
        "since=2026-01-31T12:00:01Z": 4,
        "until=2026-02-01": 1,
        "until=2026-01-31T12:00:00Z": 0,
        "since=2026-02-01&until=2026-02-02": 2,
        "since=2026-01-31T13:00:00%2B01:00&until=2026-02-01T00:00": 1,
    }
    assert {query: (await ask(ledger, query))["total"]["requests"] for query in requests} == requests


async def test_nothing_to_sum(ledger: Ledger) -> None:
    answer = await ask(ledger, "key=nobody")
    assert (answer["data"], answer["total"]) == ([], {**NOTHING, "group": "total"})


async def test_a_key_sees_itself_only(ledger: Ledger) -> None:
    for query in ("by=key", "by=key&key=k2"):
        answer = await ask(ledger, query, key_id="k2", is_admin=False)
        assert answer["key"] == "k2"
        assert groups(answer) == [("k2", 1, 0, 1)]
    with pytest.raises(BadRequest, match="`key` may only be your own key's id") as caught:
        await ask(ledger, "key=k1", key_id="k2", is_admin=False)
    assert caught.value.param == "key"


async def test_sums_are_exact(url: URL) -> None:
    drawn = random.Random(7)
    ledger = Ledger(connect(url))
    expected: dict[str, list[int]] = {}
    for number in range(2000):
        key, prompt, output = f"k{drawn.randrange(5)}", drawn.randrange(2**40), drawn.randrange(2**40)
        ledger.add(row(str(number), key_id=key, prompt_tokens=prompt, output_tokens=output))
        sums = expected.setdefault(key, [0, 0, 0])
        for place, figure in enumerate((1, prompt, output)):
            sums[place] += figure
    ledger.close()
    answer = await ask(ledger, "by=key")
    assert groups(answer) == [(key, *expected[key]) for key in sorted(expected)]
    assert answer["total"]["output_tokens"] == sum(sums[2] for sums in expected.values())


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("by=hour", "by", "`by` must be one of day, key, model."),
        ("since=yesterday", "since", "`since` must be a date (2026-01-31), a time (2026-01-31T12:00:00Z), or"),
        ("until=0001-01-01T00:00%2B23:00", "until", "`until` must be a date"),
        ("since=2026-02-01&until=2026-02-01", "until", "`until` must be later than `since`."),
        ("model=", "model", "`model` must be 1 to 128 printable characters."),
        ("key=" + "k" * 129, "key", "`key` must be 1 to 128 printable characters."),
        ("key=a%00b", "key", "`key` must be 1 to 128 printable characters."),
        ("by=day&by=key", "by", "`by` is given more than once."),
        ("page=2", "page", "`page` is unknown here; there are by, key, model, since, until."),
        ("&".join(["by=day"] * 17), None, "The query string has more than 16 parameters."),
    ],
)
def test_a_wrong_parameter_is_named(query: str, param: str | None, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_query(query.encode(), key_id="k1", is_admin=True, now=NOON)
    assert caught.value.param == param
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("ago", "moment"),
    [
        ("12h", datetime(2026, 1, 31, 0, tzinfo=UTC)),
        ("7d", datetime(2026, 1, 24, 12, tzinfo=UTC)),
        ("4w", datetime(2026, 1, 3, 12, tzinfo=UTC)),
    ],
)
def test_a_time_ago(ago: str, moment: datetime) -> None:
    query = parse_query(f"since={ago}".encode(), key_id="k1", is_admin=True, now=NOON)
    assert query == ("day", Filters(since=moment))


async def test_a_ledger_that_is_off() -> None:
    with pytest.raises(NotFound, match="This service keeps no usage ledger"):
        await UsageReports(None).answer(b"", key_id="k1", is_admin=False)


async def test_a_database_that_fails(ledger: Ledger) -> None:
    with ledger.database.begin() as connection:
        connection.execute(text("DROP TABLE usage"))
    with pytest.raises(UsageUnavailable, match="cannot be read now"):
        await ask(ledger, "")
