"""Gateways as processes of their own, forked from one that has the ledger loaded."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from sqlalchemy import URL

from serve_app.ledger.database import connect
from serve_app.ledger.migrate import migrate
from serve_app.ledger.writer import Ledger
from tests.unit.ledger.rows import row

PATIENCE_S = 60
STEP = 50

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload([__name__])


class Gateway:
    """A process that runs `work`, and what it says."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._line, theirs = _servers.Pipe()
        self.process: ForkServerProcess = _servers.Process(target=work, args=(theirs, *arguments), daemon=True)
        self.process.start()

    def hear(self) -> Any:
        assert self._line.poll(PATIENCE_S)
        return self._line.recv()

    def go_on(self) -> None:
        self._line.send(None)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE_S)

    def exit_code(self) -> int | None:
        self.process.join(PATIENCE_S)
        return self.process.exitcode


def start(line: Connection, url: URL) -> None:
    """Migrate when told to."""
    engine = connect(url)
    line.send("ready")
    line.recv()
    migrate(engine)


def write(line: Connection, url: URL, name: str, total: int) -> None:
    """Add rows, fifty at a time: say when each had been added, then wait."""
    ledger = Ledger(connect(url))
    for first in range(0, total, STEP):
        added = []
        for number in range(first, first + STEP):
            ledger.add(row(f"{name}-{number}"))
            added.append(time.time())
        line.send(added)
        line.recv()
    ledger.close()
