"""`vllm-chat usage`: what a key, a model or a day has used."""

import asyncio
import csv
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from cli.console import terminal
from cli.report import exit_codes
from cli.sanitize import one_line
from cli.settings import Settings, load_settings

if TYPE_CHECKING:
    from cli.replies import Gap, Total, Usage

EPILOG = """\b
Examples:
  vllm-chat usage
  vllm-chat usage --since 7d --by model
  vllm-chat usage --by key --since 2026-01-01 --until 2026-02-01
  vllm-chat usage --csv > usage.csv
  vllm-chat usage --json | jq .total.output_tokens

\b
Days and dates are in UTC. --since counts from then on, --until up to then.
A key sees its own usage; PROXY_API_KEY sees every key's.
Exit codes: 0 ok, 1 the service failed, 2 wrong usage, 130 interrupted.
"""
AGO = re.compile(r"([0-9]{1,4})([hdw])")
HOURS = {"h": 1, "d": 24, "w": 7 * 24}
LONGEST_NAME = 128
FIGURES = ("requests", "prompt", "cached", "output", "reasoning", "failed", "aborted", "refused", "ttft")
ALWAYS = ("requests", "prompt", "output", "ttft")


class By(StrEnum):
    DAY = "day"
    KEY = "key"
    MODEL = "model"


def _moment(text: str) -> str:
    try:
        _time_of(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter("give a date (2026-01-31), a time, or an age (12h, 7d, 4w)") from None
    return text


def _time_of(text: str) -> datetime:
    """Raises ValueError or OverflowError for what is no moment."""
    if ago := AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(hours=int(ago[1]) * HOURS[ago[2]])
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _name(text: str) -> str:
    if not 1 <= len(text) <= LONGEST_NAME or not text.isprintable():
        raise typer.BadParameter(f"give 1 to {LONGEST_NAME} printable characters")
    return text


Key = Annotated[str | None, typer.Option(metavar="ID", parser=_name, help="Only this key, by its id.")]
Model = Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", parser=_name, help="Only this model.")]
Since = Annotated[str | None, typer.Option(metavar="7d|DATE", parser=_moment, help="From then on.")]
Until = Annotated[str | None, typer.Option(metavar="7d|DATE", parser=_moment, help="Up to, and without, then.")]
Grouping = Annotated[By, typer.Option("--by", help="One line for each.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Comma-separated, for spreadsheets.")]
AsJson = Annotated[bool, typer.Option("--json", help="The service's own JSON, for scripts.")]


def usage(
    *,
    key: Key = None,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    by: Grouping = By.DAY,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Sum up requests and tokens. Requests that failed, were aborted or refused are counted, and shown apart."""
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    if since and until and _time_of(since) >= _time_of(until):
        raise typer.BadParameter("--until must be later than --since")
    given = {"by": by.value, "key": key, "model": model, "since": since, "until": until}
    query = {name: value for name, value in given.items() if value is not None}
    aside = terminal(stderr=True)
    with exit_codes(aside):
        reply = asyncio.run(_ask(load_settings(), query))
        if as_json:
            print(json.dumps(msgspec.to_builtins(reply), indent=2))  # noqa: T201  data
        elif as_csv:
            _write_csv(reply)
        else:
            terminal().print(_table(reply))
        for gap in reply.gaps:
            aside.print(Text(_explain(gap), style="yellow"), soft_wrap=True)


async def _ask(settings: Settings, query: dict[str, str]) -> "Usage":
    from cli.client import Client  # noqa: PLC0415  httpx is not for --help to load

    client = Client(settings)
    try:
        return await client.usage(query)
    finally:
        await client.aclose()


def _write_csv(reply: "Usage") -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([reply.by, *(name for name in type(reply.total).__struct_fields__ if name != "group")])
    writer.writerows(msgspec.structs.astuple(total) for total in reply.data)


def _table(reply: "Usage") -> Table:
    """What nothing was counted of has no column: ten of them are more than a terminal's width."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(reply.by, no_wrap=True)
    totals = _figures(reply.total)
    shown = [name for name in FIGURES if name in ALWAYS or totals[name] != "0"]
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for total in reply.data:
        figures = _figures(total)
        table.add_row(Text(one_line(total.group), style="bold"), *(figures[name] for name in shown))
    table.add_row(Text("total", style="bold"), *(totals[name] for name in shown), style="bold")
    return table


def _figures(total: "Total") -> dict[str, str]:
    tokens = (total.prompt_tokens, total.cached_tokens, total.output_tokens, total.reasoning_tokens)
    counts = (total.requests, *tokens, total.failed, total.aborted, total.refused)
    ttft = "-" if total.ttft_avg_s is None else f"{total.ttft_avg_s:.2f} s"
    return dict(zip(FIGURES, [*(f"{count:,}" for count in counts), ttft], strict=True))


def _explain(gap: "Gap") -> str:
    moment = f"{gap.at:%Y-%m-%d %H:%M:%S} UTC"
    if gap.rows is None:
        return (
            f"! A gateway ended without closing its ledger: up to one second of requests after {moment} may be missing."
        )
    return f"! The ledger's database was away: {gap.rows:,} requests up to {moment} are missing."
