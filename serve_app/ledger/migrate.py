"""Brings the database to this version's tables. Gateways that start together do it one after another."""

import fcntl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from serve_app.ledger.database import for_writing, lock_file, place
from serve_app.settings import ConfigError

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x564C4C4D  # PostgreSQL's advisory locks are numbers


def migrate(engine: Engine) -> None:
    """Apply the migrations that the database lacks: all of them or none.

    Raises:
        ConfigError: a newer version of this service has migrated it.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    with _alone(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        present = MigrationContext.configure(connection).get_current_heads()
        if newer := [revision for revision in present if revision not in known]:
            raise ConfigError(
                f"the usage ledger at {place(engine.url)} belongs to a newer version of this service "
                f"(revision {newer[0]}); run that version, or give USAGE_DATABASE_URL another database"
            )
        command.upgrade(config, "head")


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A writing transaction that no other gateway's migration runs beside."""
    if engine.dialect.name == "sqlite":
        # Turning the write-ahead log on takes place outside transactions and does not wait for others.
        with lock_file(Path(engine.url.database or "")).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
            with for_writing(engine).begin() as connection:
                yield connection
        return
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        yield connection
