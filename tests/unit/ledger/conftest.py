"""Databases for the ledger's tests, each fresh: a SQLite file, and one on a PostgreSQL server of the session's own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from tests.unit.ledger.postgres import PASSWORD, execute, postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "state" / "usage.db"))


@pytest.fixture
def postgres_url(server: str) -> URL:
    name = f"usage{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name}")
    return make_url(server).set(drivername="postgresql+psycopg", database=name, password=PASSWORD)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> URL:
    found: URL = request.getfixturevalue(f"{request.param}_url")
    return found
