"""The writer of the usage ledger: requests add rows to memory, one thread takes them to the database in batches."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from serve_app.ledger.database import connect, for_writing, place, reason
from serve_app.ledger.migrate import migrate
from serve_app.ledger.row import Row
from serve_app.ledger.runs import Run
from serve_app.ledger.schema import insert_once, usage
from serve_app.ledger.settings import LedgerConfig, database_url

FLUSH_S = 0.5
BEAT_S = 10.0  # an idle gateway shows that it lives; well under runs.SILENT
LONGEST_PAUSE_S = 10.0
CLOSE_S = 10.0

logger = logging.getLogger("ray.serve")

Numbered = tuple[int, Row]


def open_ledger(config: LedgerConfig, environment: Mapping[str, str] = os.environ) -> "Ledger | None":
    """The ledger that the settings ask for; None where it is off.

    A database that does not answer does not stop the start: rows wait for it in memory.

    Raises:
        ConfigError: the settings are wrong, the file cannot be written, or a newer version owns the database.
    """
    url = database_url(config, environment)
    return None if url is None else Ledger(connect(url), config.keep_rows)


class Ledger:
    """Takes rows from the event loop at no cost, and writes them within half a second.

    `close` it to lose none. `metrics` is for /metrics; `database` is for reports.
    """

    def __init__(self, database: Engine, keep_rows: int = 100_000) -> None:
        self.database = database
        self.metrics = CollectorRegistry()
        self._keep_rows = keep_rows
        self._place = place(database.url)
        self._lock = threading.Lock()
        self._waiting: deque[Numbered] = deque()
        self._added = 0
        self._dropped = 0
        self._dropped_at: datetime | None = None
        self._lost = Counter(
            "vllm_chat_ledger_rows_lost", "Rows of the usage ledger that were given up.", registry=self.metrics
        )
        waiting = Gauge("vllm_chat_ledger_rows_waiting", "Rows not yet in the database.", registry=self.metrics)
        waiting.set_function(lambda: len(self._waiting))
        self._run = Run()
        self._is_open = False
        self._outage = False
        self._beat = 0.0
        self._give_up = float("inf")
        self._closing = threading.Event()
        try:
            self._open()
        except SQLAlchemyError as error:
            self._note_outage(error)
        self._thread = threading.Thread(target=self._write_until_closed, name="usage-ledger", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Take a row. Never waits for the database and never fails; beyond `keep_rows` the oldest row goes."""
        with self._lock:
            self._added += 1
            self._waiting.append((self._added, row))
            self._drop_excess()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is waiting and end. Rows that the database has not taken after `timeout_s` are lost."""
        self._give_up = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s + 1)
        with self._lock:
            left = len(self._waiting)
            self._keep_rows = 0  # nobody writes any more: what is here, and what is still added, counts as lost
            self._drop_excess()
        if left:
            logger.error("the usage ledger closes without its last %d rows: %s is away", left, self._place)
        self.database.dispose()

    def _write_until_closed(self) -> None:
        pause = FLUSH_S
        while True:
            closing = self._closing.wait(pause)
            done = self._flush(closing)
            if closing and (done or time.monotonic() >= self._give_up):
                return
            if closing:
                time.sleep(0.1)
            pause = FLUSH_S if done else min(pause * 2, LONGEST_PAUSE_S)

    def _flush(self, closing: bool) -> bool:
        """Write one batch; False where the database would not take it."""
        try:
            if not self._is_open:
                self._open()
            self._write(closing)
        except Exception as error:  # noqa: BLE001  the thread's boundary: whatever it is, rows wait and it is tried again
            self._note_outage(error)
            return False
        if self._outage:
            self._outage = False
            logger.info("the usage ledger writes to %s again; %d rows were lost", self._place, self._dropped)
        return True

    def _open(self) -> None:
        migrate(self.database)
        now = datetime.now(UTC)
        with for_writing(self.database).begin() as connection:
            self._run.open(connection, now)
        self._is_open = True

    def _write(self, closing: bool) -> None:
        now = datetime.now(UTC)
        beat = time.monotonic() - self._beat >= BEAT_S
        batch = self._take()
        if not (batch or beat or closing):
            return
        try:
            self._commit(batch, now, closing)
        except (DataError, IntegrityError, ArithmeticError, TypeError, ValueError):
            # The database is well and a row is not: trying again would hold up all rows behind it.
            self._lose(len(batch))
            logger.exception("the usage ledger gives up %d rows that the database cannot hold", len(batch))
        except Exception:
            self._put_back(batch)
            raise
        if beat:
            self._find_lost_runs(now)
            self._beat = time.monotonic()

    def _commit(self, batch: list[Numbered], now: datetime, closing: bool) -> None:
        with for_writing(self.database).begin() as connection:
            if batch:
                values = [_values(self._run.id, number, row) for number, row in batch]
                connection.execute(insert_once(usage, connection.dialect), values)
            self._run.flush(connection, now, self._dropped, self._dropped_at, closing)

    def _find_lost_runs(self, now: datetime) -> None:
        with for_writing(self.database).begin() as connection:
            found = self._run.find_lost(connection, now)
        for run in found:
            logger.warning(
                "a gateway (host %s, pid %d) ended without closing the usage ledger: requests that ended after %s, "
                "at most its last second's, may be missing",
                run.host,
                run.pid,
                run.flushed.isoformat(timespec="milliseconds"),
            )

    def _take(self) -> list[Numbered]:
        with self._lock:
            batch = list(self._waiting)
            self._waiting.clear()
            return batch

    def _put_back(self, batch: list[Numbered]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(batch))
            self._drop_excess()

    def _drop_excess(self) -> None:
        excess = len(self._waiting) - self._keep_rows
        for _ in range(excess):
            self._waiting.popleft()
        if excess > 0:
            self._lose(excess)

    def _lose(self, rows: int) -> None:
        self._dropped += rows
        self._dropped_at = datetime.now(UTC)
        self._lost.inc(rows)

    def _note_outage(self, error: Exception) -> None:
        if not self._outage:
            self._outage = True
            logger.warning(
                "the usage ledger cannot write to %s (%s); it keeps the last %d rows and tries again",
                self._place,
                reason(error, self.database.url),
                self._keep_rows,
            )


def _values(run: str, number: int, row: Row) -> dict[str, Any]:
    """Plain values, so that a wrong one fails here and is not taken for a failure of the database."""
    moment = row.time.astimezone(UTC)
    return {
        "run": run,
        "seq": number,
        "time": moment,
        "day": moment.date(),
        "request_id": _text(row.request_id),
        "key_id": _text(row.key_id),
        "model": _text(row.model),
        "route": _text(row.route),
        "prompt_tokens": int(row.prompt_tokens),
        "cached_tokens": int(row.cached_tokens),
        "output_tokens": int(row.output_tokens),
        "reasoning_tokens": int(row.reasoning_tokens),
        "ttft_s": None if row.ttft_s is None else float(row.ttft_s),
        "duration_s": float(row.duration_s),
        "finish": _text(row.finish),
        "attempts": int(row.attempts),
        "status": int(row.status),
    }


def _text(value: str) -> str:
    """What every database takes: at most 128 characters, no NUL, no half of a pair."""
    return value[:128].replace("\0", "").encode(errors="replace").decode()
