"""The tables of the usage ledger. migrations/ makes them; a test holds both to be equal.

Gateways of the version before may still write while a new one migrates: a migration only adds, and what it adds
is nullable or has a server default.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
)
from sqlalchemy.dialects import postgresql, sqlite


class UtcTime(TypeDecorator[datetime]):
    """A time with a zone, kept and given back in UTC also by SQLite, which knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

usage = Table(
    "usage",
    metadata,
    # The writer's own numbering: a batch that is sent twice, its first commit unheard of, counts once.
    Column("run", String(32), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("day", Date, nullable=False),  # of `time`, in UTC
    Column("request_id", String(128), nullable=False),
    Column("key_id", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    Column("route", String(128), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("ttft_s", Double),
    Column("duration_s", Double, nullable=False),
    Column("finish", String(32), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Index("usage_time", "time"),
    Index("usage_key_time", "key_id", "time"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("opened", UtcTime, nullable=False),
    Column("flushed", UtcTime, nullable=False),  # every row added before it is in `usage`, or in `dropped`
    Column("closed", UtcTime),
    Column("lost", UtcTime),  # when it was found to have ended without closing
    Column("dropped", BigInteger, nullable=False),  # rows given up because the database was away too long
    Column("dropped_at", UtcTime),  # the latest of them
)


def insert_once(table: Table, dialect: Dialect) -> postgresql.Insert | sqlite.Insert:
    """An insert that leaves rows alone which are there: for a try whose first commit went unheard."""
    if dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()
