"""Keys for the eye and for scripts: never a secret, and no digest."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.keys_file import KeyRecord
from cli.sanitize import one_line

STYLES = {"active": "green", "rotating": "yellow"}
LIMITS = {
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "concurrent": "concurrent",
    "max_tokens": "max-tokens",
    "context": "context",
}


def status(record: KeyRecord, now: datetime) -> str:
    """`revoked`, `expired`, `rotating` (the old secret still works), or `active`."""
    if record.revoked:
        return "revoked"
    live = len(record.live_secrets(now))
    return "rotating" if live > 1 else "active" if live else "expired"


def as_json(records: Sequence[KeyRecord], now: datetime) -> str:
    """A JSON list with every field but the digests."""
    return json.dumps([_fields(record, now) for record in records], indent=2)


def table(records: Sequence[KeyRecord], now: datetime) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("id", "name", "status", "expires", "models", "endpoints", "limits"):
        shown.add_column(name, overflow="fold", no_wrap=name in {"id", "status", "expires", "limits"})
    for record in records:
        state = status(record, now)
        shown.add_row(
            Text(record.id, style="bold"),
            Text(one_line(record.name)),
            Text(state, style=STYLES.get(state, "red")),
            f"{record.expires.astimezone(UTC):%Y-%m-%d}" if record.expires else "-",
            _lines(record.models),
            _lines(record.endpoints or ["*"]),
            _lines(_limits(record) or ["-"]),
        )
    return shown


def _limits(record: KeyRecord) -> list[str]:
    limits = record.limits.model_dump(exclude_none=True)
    tier = [] if record.tier == "normal" else [f"tier {record.tier}"]
    return [f"{LIMITS[name]} {value}" for name, value in limits.items()] + tier


def _lines(items: Iterable[str]) -> Text:
    return Text("\n".join(one_line(item) for item in items))


def _fields(record: KeyRecord, now: datetime) -> dict[str, Any]:
    fields = record.model_dump(mode="json", exclude={"secrets": {"__all__": {"digest"}}})
    return {"id": fields.pop("id"), "name": fields.pop("name"), "status": status(record, now), **fields}
