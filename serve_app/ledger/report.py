"""Sums over the usage ledger, computed by the database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, case, func, select

from serve_app.ledger.schema import runs, usage

By = Literal["day", "key", "model"]
GROUPS: dict[By, ColumnElement[Any]] = {"day": usage.c.day, "key": usage.c.key_id, "model": usage.c.model}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows count; None: all. `since` is the first moment that counts, `until` the first that does not."""

    key: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def of_rows(self) -> list[ColumnElement[bool]]:
        conditions = self.of_times(usage.c.time)
        if self.key is not None:
            conditions.append(usage.c.key_id == self.key)
        if self.model is not None:
            conditions.append(usage.c.model == self.model)
        return conditions

    def of_times(self, moment: ColumnElement[datetime]) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if self.since is not None:
            conditions.append(moment >= self.since)
        if self.until is not None:
            conditions.append(moment < self.until)
        return conditions


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. `requests` counts all, `failed`, `aborted` and `refused` say which of them ended so."""

    group: str
    """The day (UTC, as 2026-01-31), key id or model; `total` for all."""
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    failed: int
    aborted: int
    refused: int
    ttft_avg_s: float | None
    """Mean over the requests that got a first token."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that the ledger lacks.

    `rows` of them were given up before `at`; where it is null a gateway ended without closing, and requests that
    ended after `at` may be missing: at most the last second's, unless the database was away then.
    """

    at: datetime
    rows: int | None


def totals(connection: Connection, filters: Filters, by: By) -> tuple[list[Total], Total]:
    """The sums by day, key or model, in the order of their names, and the sums of all of them."""
    group = GROUPS[by]
    tokens = (usage.c.prompt_tokens, usage.c.cached_tokens, usage.c.output_tokens, usage.c.reasoning_tokens)
    sums = select(
        group,
        func.count(),
        *(func.sum(column) for column in tokens),
        *(func.sum(case((usage.c.finish == finish, 1), else_=0)) for finish in ("error", "abort", "refused")),
        func.count(usage.c.ttft_s),
        func.coalesce(func.sum(usage.c.ttft_s), 0.0),
    )
    rows = connection.execute(sums.where(*filters.of_rows()).group_by(group).order_by(group)).all()
    columns = list(zip(*(row[1:] for row in rows), strict=True)) or [()] * 10
    return [_total(str(name), *figures) for name, *figures in rows], _total("total", *map(sum, columns))


def gaps(connection: Connection, filters: Filters) -> list[Gap]:
    """What is missing in the filters' time, whichever key or model it belonged to; the oldest first."""
    crashes = select(runs.c.flushed).where(runs.c.lost.is_not(None), *filters.of_times(runs.c.flushed))
    drops = select(runs.c.dropped_at, runs.c.dropped).where(runs.c.dropped > 0, *filters.of_times(runs.c.dropped_at))
    found = [Gap(at=at, rows=None) for at in connection.scalars(crashes)]
    found += [Gap(at=at, rows=rows) for at, rows in connection.execute(drops)]
    return sorted(found, key=lambda gap: gap.at)


def _total(group: str, *figures: float) -> Total:
    *counts, ttft_sum = figures
    requests, prompt, cached, output, reasoning, failed, aborted, refused, started = map(int, counts)
    return Total(
        group=group,
        requests=requests,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        reasoning_tokens=reasoning,
        failed=failed,
        aborted=aborted,
        refused=refused,
        ttft_avg_s=round(ttft_sum / started, 4) if started else None,
    )
