"""`vllm-chat models`: what the service serves."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli.console import terminal
from cli.report import exit_codes
from cli.sanitize import one_line
from cli.settings import Settings, load_settings

if TYPE_CHECKING:
    from cli.replies import Model

EPILOG = """\b
Examples:
  vllm-chat models
  vllm-chat models --json | jq -r '.[].id'

\b
Exit codes: 0 ok, 1 the service failed, 2 wrong usage, 130 interrupted.
"""

AsJson = Annotated[bool, typer.Option("--json", help="A JSON list, for scripts.")]


def models(as_json: AsJson = False) -> None:
    """List the models that the service has. The one that `chat` takes by itself is marked with *."""
    with exit_codes(terminal(stderr=True)):
        served, default = asyncio.run(_served(load_settings()))
        if as_json:
            print(json.dumps([_fields(model, default) for model in served], indent=2))  # noqa: T201  data
        else:
            terminal().print(_table(served, default))


async def _served(settings: Settings) -> "tuple[list[Model], Model | None]":
    from cli.client import Client  # noqa: PLC0415  httpx is not for --help to load
    from cli.replies import default_model  # noqa: PLC0415

    client = Client(settings)
    try:
        models = await client.models()
        return models, default_model(models)
    finally:
        await client.aclose()


def _fields(model: "Model", default: "Model | None") -> dict[str, object]:
    return {
        "id": model.id,
        "default": model is default,
        "status": model.status,
        "tasks": None if model.tasks is None else list(model.tasks),
        "max_model_len": model.max_model_len,
    }


def _table(served: "list[Model]", default: "Model | None") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "model", "status", "tasks"):
        table.add_column(name)
    table.add_column("context", justify="right")
    for model in served:
        table.add_row(
            "*" if model is default else "",
            Text(one_line(model.id), style="bold" if model is default else ""),
            one_line(model.status or "-"),
            one_line(", ".join(model.tasks) if model.tasks else "-"),
            str(model.max_model_len or "-"),
        )
    return table
