"""The runs of gateways: each is written down when it opens, flushes and closes, so that a crash shows."""

import os
import secrets
import socket
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psutil
from sqlalchemy import Connection, select, update

from serve_app.ledger.schema import insert_once, runs

SILENT = timedelta(seconds=60)
"""A run that has not flushed for so long has ended; an idle one flushes every few seconds."""
START_SLACK_S = 5.0  # the kernel tells when a process started only to the second


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run that ended without closing: rows added after `flushed` are missing, at most its last second's."""

    host: str
    pid: int
    flushed: datetime


@dataclass(slots=True)
class Run:
    """This process's writing, from open to close."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def open(self, connection: Connection, now: datetime) -> None:
        values = {"id": self.id, "host": self.host, "pid": self.pid, "opened": now, "flushed": now, "dropped": 0}
        connection.execute(insert_once(runs, connection.dialect), values)

    def flush(
        self, connection: Connection, now: datetime, dropped: int, dropped_at: datetime | None, closed: bool
    ) -> None:
        """Note that all rows added before `now` are written or dropped. Who thought this run lost was wrong."""
        connection.execute(
            update(runs)
            .where(runs.c.id == self.id)
            .values(flushed=now, closed=now if closed else None, lost=None, dropped=dropped, dropped_at=dropped_at)
        )

    def find_lost(self, connection: Connection, now: datetime) -> list[LostRun]:
        """Mark the runs that have ended without closing, each found by one caller only."""
        unclosed = select(runs).where(runs.c.closed.is_(None), runs.c.lost.is_(None), runs.c.id != self.id)
        found: list[LostRun] = []
        for run in connection.execute(unclosed).all():
            if now - run.flushed < SILENT and not (run.host == self.host and _is_gone(run.pid, run.opened)):
                continue
            marked = update(runs).where(runs.c.id == run.id, runs.c.lost.is_(None)).values(lost=now)
            if connection.execute(marked).rowcount:
                found.append(LostRun(run.host, run.pid, run.flushed))
        return found


def _is_gone(pid: int, opened: datetime) -> bool:
    """Whether the process that opened a run has ended, its number perhaps taken by a later one."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > opened.timestamp() + START_SLACK_S
    except psutil.NoSuchProcess:
        return True
