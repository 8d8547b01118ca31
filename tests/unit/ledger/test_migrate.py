"""Migrations: equal to the tables of the code, safe when gateways start together, and never backwards."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, inspect, text

from serve_app.ledger.database import connect
from serve_app.ledger.migrate import migrate
from serve_app.ledger.schema import metadata
from serve_app.settings import ConfigError
from tests.unit.ledger.processes import Gateway, start


def test_the_migrations_make_the_tables_of_the_code(url: URL) -> None:
    engine = connect(url)
    migrate(engine)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {"alembic_version", "runs", "usage"}
    engine.dispose()


def test_a_database_that_is_up_to_date_is_left_alone(url: URL) -> None:
    engine = connect(url)
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == ["0001"]
    engine.dispose()


def test_a_database_of_a_newer_version_stops_the_start(url: URL) -> None:
    engine = connect(url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"belongs to a newer version of this service \(revision 9999\)") as caught:
        migrate(engine)
    assert str(url.password) not in str(caught.value)
    with engine.begin() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == ["9999"]
    engine.dispose()


def test_gateways_that_start_together(url: URL) -> None:
    gateways = [Gateway(start, url) for _ in range(4)]
    assert [gateway.hear() for gateway in gateways] == ["ready"] * 4
    for gateway in gateways:
        gateway.go_on()
    assert [gateway.exit_code() for gateway in gateways] == [0] * 4
