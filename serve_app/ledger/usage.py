"""`GET /api/usage`: what a key has used; an admin sees every key."""

import asyncio
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args
from urllib.parse import parse_qsl

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from serve_app.gateway.errors import BadRequest, NotFound, UsageUnavailable
from serve_app.ledger.report import By, Filters, Gap, Total, gaps, totals
from serve_app.ledger.writer import Ledger

PARAMETERS = ("by", "key", "model", "since", "until")
LONGEST = 128
AGO = re.compile(r"([0-9]{1,4})([hdw])")
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
MOMENT = "a date (2026-01-31), a time (2026-01-31T12:00:00Z), or hours, days or weeks ago (12h, 7d, 4w)"


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `GET /api/usage`. Filters that were not given are null."""

    by: By
    key: str | None
    model: str | None
    since: datetime | None
    until: datetime | None
    data: list[Total]
    total: Total
    gaps: list[Gap]
    object: Literal["usage"] = "usage"


class UsageReports:
    """Answers `GET /api/usage`, one report at a time and off the event loop."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="usage-report")

    async def answer(self, query_string: bytes, *, key_id: str, is_admin: bool) -> UsageReport:
        """The report that a query string asks for; without admin rights, of the caller's own key only.

        Raises:
            BadRequest: a parameter is wrong; `param` names it.
            NotFound: the ledger is off.
            UsageUnavailable: the database does not answer.
        """
        by, filters = parse_query(query_string, key_id=key_id, is_admin=is_admin, now=datetime.now(UTC))
        if self._ledger is None:
            raise NotFound("This service keeps no usage ledger.")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, _report, self._ledger.database, by, filters)
        except SQLAlchemyError as error:
            raise UsageUnavailable from error


def parse_query(query_string: bytes, *, key_id: str, is_admin: bool, now: datetime) -> tuple[By, Filters]:
    """What a query string asks for, `key` bounded by what the caller may see.

    Raises:
        BadRequest: a parameter is unknown, repeated or has no usable value; `param` names it.
    """
    query = _parameters(query_string)
    by = _by(query.get("by", "day"))
    key = query.get("key")
    if not is_admin:
        if key not in {None, key_id}:
            raise BadRequest("`key` may only be your own key's id.", param="key")
        key = key_id
    since, until = (_moment(name, query[name], now) if name in query else None for name in ("since", "until"))
    if since and until and since >= until:
        raise BadRequest("`until` must be later than `since`.", param="until")
    return by, Filters(key=key, model=query.get("model"), since=since, until=until)


def _parameters(query_string: bytes) -> Mapping[str, str]:
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query_string.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise BadRequest("The query string has more than 16 parameters.") from None
    for name, value in pairs:
        if name not in PARAMETERS:
            raise BadRequest(f"`{name[:32]}` is unknown here; there are {', '.join(PARAMETERS)}.", param=name[:32])
        if name in found:
            raise BadRequest(f"`{name}` is given more than once.", param=name)
        if not 1 <= len(value) <= LONGEST or not value.isprintable():
            raise BadRequest(f"`{name}` must be 1 to {LONGEST} printable characters.", param=name)
        found[name] = value
    return found


def _by(value: str) -> By:
    for by in get_args(By):
        if value == by:
            return by  # type: ignore[no-any-return]
    raise BadRequest(f"`by` must be one of {', '.join(get_args(By))}.", param="by")


def _moment(name: str, value: str, now: datetime) -> datetime:
    if ago := AGO.fullmatch(value):
        return now - int(ago[1]) * UNITS[ago[2]]
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRequest(f"`{name}` must be {MOMENT}.", param=name) from None


def _report(database: Engine, by: By, filters: Filters) -> UsageReport:
    with database.begin() as connection:
        data, total = totals(connection, filters, by)
        return UsageReport(
            by=by,
            key=filters.key,
            model=filters.model,
            since=filters.since,
            until=filters.until,
            data=data,
            total=total,
            gaps=gaps(connection, filters),
        )
