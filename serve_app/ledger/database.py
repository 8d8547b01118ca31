"""Opens the ledger's database, SQLite or PostgreSQL, so that both behave alike: bounded waits, one UTC, no secrets."""

import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from serve_app.settings import ConfigError

BUSY_S = 5  # SQLite's wait for another process's transaction
STATEMENT_S = 30

POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 5,
    # A peer that vanished is noticed within these seconds, not after the kernel's two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "prepare_threshold": None,  # a pooler such as PgBouncer may hand each transaction to another session
}


def connect(url: URL) -> Engine:
    """An engine for the database; nothing is asked of a PostgreSQL server yet.

    Raises:
        ConfigError: the SQLite file cannot be made or written.
    """
    # hide_parameters: an error that quotes a statement quotes no values.
    if url.get_backend_name() == "sqlite":
        _make_file(Path(url.database or ""))
        engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        url, hide_parameters=True, pool_size=2, max_overflow=0, pool_pre_ping=True, connect_args=POSTGRESQL
    )
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def for_writing(engine: Engine) -> Engine:
    """The same database, each transaction a writing one from its start, so that none fails half way."""
    return engine.execution_options(writes=True)


def lock_file(path: Path) -> Path:
    """Held by the gateway that migrates a SQLite file."""
    return path.with_name(f"{path.name}.lock")


def place(url: URL) -> str:
    """Where the database is, for a log: no user, no password, no options."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    port = f":{url.port}" if url.port else ""
    return f"PostgreSQL {url.host or 'on this machine'}{port}/{url.database or ''}"


def reason(error: Exception, url: URL) -> str:
    """Why the database failed, as one line for a log, without statement, values or password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    line = " ".join(str(cause).split())[:300]
    if url.password:
        line = line.replace(str(url.password), "***")
    return f"{type(cause).__name__}: {line}"


def _make_file(path: Path) -> None:
    """For its owner only: who used what, and when, is nobody else's business."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in (path, lock_file(path)):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"the usage ledger cannot be written to {path}: {error.strerror}; set USAGE_DATABASE_URL to a "
            f"place that can, or to off"
        ) from None


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver begins no transactions of its own: it would leave out the schema's changes.
    connection.isolation_level = None
    # With the write-ahead log a commit is on the disk before it counts, also when the machine loses power.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'")
