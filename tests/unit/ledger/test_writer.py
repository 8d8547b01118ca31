"""The writer: every row once, none of them at the request's cost, and no loss that is not counted and told."""

import logging
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import URL, Connection, event, select
from sqlalchemy.exc import OperationalError

from serve_app.ledger.database import connect, for_writing
from serve_app.ledger.migrate import migrate
from serve_app.ledger.report import Filters, Gap, gaps
from serve_app.ledger.runs import Run
from serve_app.ledger.schema import usage
from serve_app.ledger.settings import LedgerConfig
from serve_app.ledger.writer import Ledger, open_ledger
from tests.unit.ledger.postgres import execute
from tests.unit.ledger.processes import Gateway, write
from tests.unit.ledger.rows import NOON, all_runs, row, wait_until, written

LOST = "vllm_chat_ledger_rows_lost_total"
WAITING = "vllm_chat_ledger_rows_waiting"
LOGGER = logging.getLogger("ray.serve")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")
    return caplog


def metric(registry: CollectorRegistry, name: str) -> float:
    value = registry.get_sample_value(name)
    assert value is not None
    return value


def test_a_row_is_written_as_it_is(url: URL) -> None:
    ledger = Ledger(connect(url))
    full = row(
        "req-1",
        time=datetime(2026, 1, 31, 23, 30, 0, 250, tzinfo=UTC).astimezone(),
        prompt_tokens=2**40,
        cached_tokens=16,
        output_tokens=7,
        reasoning_tokens=3,
        ttft_s=0.125,
        finish="tool_calls",
        attempts=2,
    )
    ledger.add(full)
    ledger.close()
    engine = connect(url)
    with engine.begin() as connection:
        (found,) = connection.execute(select(usage)).all()
    engine.dispose()
    assert found.day.isoformat() == "2026-01-31"
    assert found.seq == 1
    assert {name: getattr(found, name) for name in full.__slots__} == {
        name: getattr(full, name) for name in full.__slots__
    }


def test_rows_are_written_without_a_close(url: URL) -> None:
    ledger = Ledger(connect(url))
    ledger.add(row("a"))
    wait_until(lambda: written(url) == ["a"])
    assert metric(ledger.metrics, WAITING) == 0
    ledger.add(row("b"))
    wait_until(lambda: written(url) == ["a", "b"])
    ledger.close()


def test_close_writes_what_waits_and_says_so(url: URL) -> None:
    ledger = Ledger(connect(url))
    for number in range(1000):
        ledger.add(row(str(number)))
    ledger.close()
    assert written(url) == [str(number) for number in range(1000)]
    (run,) = all_runs(url)
    assert run.closed == run.flushed
    assert (run.lost, run.dropped) == (None, 0)


def test_a_row_after_the_close_is_counted_as_lost(sqlite_url: URL) -> None:
    ledger = Ledger(connect(sqlite_url))
    ledger.close()
    ledger.add(row())
    assert metric(ledger.metrics, LOST) == 1


def test_odd_text_is_kept_within_what_a_database_takes(url: URL) -> None:
    ledger = Ledger(connect(url))
    ledger.add(row("a\0b\ud800" + "é" * 200))
    ledger.close()
    assert written(url) == ["ab?" + "é" * 124]


def test_a_row_that_no_database_holds_does_not_stop_the_next(url: URL, log: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(connect(url))
    ledger.add(row("huge", prompt_tokens=2**70))
    wait_until(lambda: metric(ledger.metrics, LOST) == 1)
    ledger.add(row("next"))
    ledger.close()
    assert written(url) == ["next"]
    assert [record.getMessage() for record in log.records] == [
        "the usage ledger gives up 1 rows that the database cannot hold"
    ]


def test_a_locked_database_loses_nothing_within_the_bound(
    sqlite_url: URL, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.ledger.database.BUSY_S", 0.05)
    ledger = Ledger(connect(sqlite_url), keep_rows=5)
    holder = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for number in range(5):
        ledger.add(row(str(number)))
    wait_until(lambda: len(log.records) == 1)
    holder.execute("ROLLBACK")
    ledger.close()
    assert written(sqlite_url) == ["0", "1", "2", "3", "4"]
    assert metric(ledger.metrics, LOST) == 0
    assert [record.getMessage() for record in log.records] == [
        f"the usage ledger cannot write to {sqlite_url.database} (OperationalError: database is locked); "
        "it keeps the last 5 rows and tries again",
        f"the usage ledger writes to {sqlite_url.database} again; 0 rows were lost",
    ]


def test_beyond_the_bound_the_oldest_go_and_are_counted(
    sqlite_url: URL, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.ledger.database.BUSY_S", 0.05)
    ledger = Ledger(connect(sqlite_url), keep_rows=5)
    holder = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for number in range(3):
        ledger.add(row(str(number)))
    wait_until(lambda: len(log.records) == 1)  # the first three have been tried and put back
    for number in range(3, 12):
        ledger.add(row(str(number)))
    wait_until(lambda: metric(ledger.metrics, LOST) == 7)
    assert metric(ledger.metrics, WAITING) == 5
    holder.execute("ROLLBACK")
    ledger.close()
    assert written(sqlite_url) == ["7", "8", "9", "10", "11"]
    (run,) = all_runs(sqlite_url)
    assert run.dropped == 7
    engine = connect(sqlite_url)
    with engine.begin() as connection:
        assert gaps(connection, Filters()) == [Gap(at=run.dropped_at, rows=7)]
    engine.dispose()


def test_closing_while_the_database_is_away_counts_the_rest(
    sqlite_url: URL, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.ledger.database.BUSY_S", 0.05)
    ledger = Ledger(connect(sqlite_url))
    holder = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ledger.add(row())
    ledger.close(timeout_s=0)
    holder.close()
    assert metric(ledger.metrics, LOST) == 1
    assert log.records[-1].getMessage() == (
        f"the usage ledger closes without its last 1 rows: {sqlite_url.database} is away"
    )


def test_a_commit_whose_answer_is_lost_counts_once(url: URL, log: pytest.LogCaptureFixture) -> None:
    engine = connect(url)
    ledger = Ledger(engine)

    @event.listens_for(engine, "commit", once=True)
    def commit_and_break(connection: Connection) -> None:
        connection.connection.commit()
        raise OperationalError("COMMIT", None, ConnectionError("gone"))

    ledger.add(row("a"))
    ledger.add(row("b"))
    wait_until(lambda: len(log.records) == 1)
    ledger.close()
    assert written(url) == ["a", "b"]
    assert metric(ledger.metrics, LOST) == 0


def test_postgresql_away_and_back(server: str, postgres_url: URL, log: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(connect(postgres_url))
    ledger.add(row("before"))
    wait_until(lambda: written(postgres_url) == ["before"])
    name = postgres_url.database
    execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608
    ledger.add(row("during"))
    wait_until(lambda: len(log.records) == 1)
    execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    ledger.close(timeout_s=60)
    assert written(postgres_url) == ["before", "during"]
    assert [record.levelname for record in log.records] == ["WARNING", "INFO"]
    assert str(postgres_url.password) not in log.text


def test_a_database_that_is_away_at_the_start_is_opened_later(
    server: str, postgres_url: URL, log: pytest.LogCaptureFixture
) -> None:
    execute(server, f"ALTER DATABASE {postgres_url.database} ALLOW_CONNECTIONS false")
    ledger = Ledger(connect(postgres_url))
    ledger.add(row("early"))
    assert [record.levelname for record in log.records] == ["WARNING"]
    execute(server, f"ALTER DATABASE {postgres_url.database} ALLOW_CONNECTIONS true")
    ledger.close(timeout_s=60)
    assert written(postgres_url) == ["early"]


def test_a_wrong_password_is_not_in_the_log(postgres_url: URL, log: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(connect(postgres_url.set(password="wr0ng-pass")))
    ledger.close(timeout_s=0)
    assert "password authentication failed" in log.text
    assert "wr0ng-pass" not in log.text


def test_a_killed_gateway_loses_only_rows_after_its_last_flush(url: URL, log: pytest.LogCaptureFixture) -> None:
    killed = Gateway(write, url, "killed", 100)
    times = killed.hear()
    wait_until(lambda: len(written(url)) == 50)
    killed.go_on()
    times += killed.hear()
    killed.kill()
    kept = written(url)
    assert kept == [f"killed-{number}" for number in range(len(kept))]
    assert len(kept) >= 50
    (run,) = all_runs(url)
    assert run.closed is None
    assert all(time > run.flushed.timestamp() for time in times[len(kept) :])

    survivor = Ledger(connect(url))
    wait_until(lambda: len(log.records) == 1)
    stamp = run.flushed.isoformat(timespec="milliseconds")
    assert log.records[0].getMessage() == (
        f"a gateway (host {run.host}, pid {killed.process.pid}) ended without closing the usage ledger: "
        f"requests that ended after {stamp}, at most its last second's, may be missing"
    )
    engine = connect(url)
    with engine.begin() as connection:
        assert gaps(connection, Filters()) == [Gap(at=run.flushed, rows=None)]
        assert gaps(connection, Filters(until=run.flushed)) == []
        assert gaps(connection, Filters(since=run.flushed + timedelta(microseconds=1))) == []
    engine.dispose()
    survivor.close()


def test_a_silent_run_of_another_host_is_lost_and_found_again(url: URL, log: pytest.LogCaptureFixture) -> None:
    engine = connect(url)
    migrate(engine)
    silent, busy = Run(host="elsewhere", pid=7), Run(host="elsewhere", pid=8)
    with for_writing(engine).begin() as connection:
        silent.open(connection, NOON)
        busy.open(connection, datetime.now(UTC))
    ledger = Ledger(connect(url))
    wait_until(lambda: len(log.records) == 1)
    assert "host elsewhere, pid 7" in log.text
    with for_writing(engine).begin() as connection:
        assert gaps(connection, Filters()) == [Gap(at=NOON, rows=None)]
        silent.flush(connection, NOON, dropped=0, dropped_at=None, closed=True)
        assert gaps(connection, Filters()) == []
    engine.dispose()
    ledger.close()


def test_two_processes_write_one_database(url: URL) -> None:
    gateways = [Gateway(write, url, name, 500) for name in ("a", "b")]
    for _ in range(10):
        for gateway in gateways:
            gateway.hear()
            gateway.go_on()
    assert [gateway.exit_code() for gateway in gateways] == [0, 0]
    assert sorted(written(url)) == sorted(f"{name}-{number}" for name in ("a", "b") for number in range(500))
    assert [(run.closed is not None, run.lost) for run in all_runs(url)] == [(True, None)] * 2


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    ledger = open_ledger(LedgerConfig(), {"XDG_STATE_HOME": str(tmp_path)})
    assert ledger is not None
    ledger.add(row())
    ledger.close()
    folder = tmp_path / "vllm-chat-backend"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_off_keeps_nothing(tmp_path: Path) -> None:
    assert open_ledger(LedgerConfig(), {"USAGE_DATABASE_URL": "off", "XDG_STATE_HOME": str(tmp_path)}) is None
    assert list(tmp_path.iterdir()) == []
