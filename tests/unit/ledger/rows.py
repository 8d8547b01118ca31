"""Rows to write, and what a database holds of them."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, select

from serve_app.ledger.database import connect
from serve_app.ledger.row import Row
from serve_app.ledger.schema import runs, usage

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PATIENCE_S = 60


def row(request_id: str = "req-1", **fields: Any) -> Row:
    plain: dict[str, Any] = {
        "time": NOON,
        "request_id": request_id,
        "key_id": "k1",
        "model": "demo",
        "route": "/v1/chat/completions",
        "duration_s": 1.5,
        "finish": "stop",
        "status": 200,
    }
    return Row(**(plain | fields))


def written(url: URL) -> list[str]:
    """The request ids in the ledger, in the order they were added to each run."""
    return [str(found[0]) for found in _all(url, select(usage.c.request_id).order_by(usage.c.run, usage.c.seq))]


def all_runs(url: URL) -> Sequence[Any]:
    return _all(url, select(runs).order_by(runs.c.opened))


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_S * 50):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError


def _all(url: URL, query: Any) -> Sequence[Any]:
    engine = connect(url)
    try:
        with engine.begin() as connection:
            return connection.execute(query).all()
    finally:
        engine.dispose()
