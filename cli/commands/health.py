"""`vllm-chat health`: whether the service can answer, for people, scripts and start-up waits."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cli.console import terminal
from cli.errors import ExitCode, UnreachableError
from cli.report import exit_codes
from cli.sanitize import one_line
from cli.settings import Settings, load_settings

if TYPE_CHECKING:
    from cli.replies import Health, ModelHealth

EPILOG = """\b
Examples:
  vllm-chat health
  vllm-chat health --wait 300 && vllm-chat chat
  vllm-chat health --json | jq .queue_size

\b
Exit codes: 0 healthy, 1 not healthy or not there, 2 wrong usage, 130 interrupted.
"""
POLL = 1.0  # seconds

AsJson = Annotated[bool, typer.Option("--json", help="The service's own JSON, for scripts.")]
Wait = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait up to this long for it to be healthy.")]


def health(as_json: AsJson = False, wait: Wait = 0) -> None:
    """Ask the service whether it can answer. Needs no key."""
    aside = terminal(stderr=True)
    with exit_codes(aside):
        settings = load_settings()
        reply = asyncio.run(_ask(settings, wait, aside))
        if as_json:
            print(json.dumps(msgspec.to_builtins(reply), indent=2))  # noqa: T201  data
        else:
            terminal().print(_picture(reply, settings))
        if reply.status != "ok":
            raise typer.Exit(ExitCode.SERVICE)


async def _ask(settings: Settings, wait: float, aside: Console) -> "Health":
    """Return the health: the first good or hopeless one within `wait` seconds, else the last."""
    from cli.client import Client  # noqa: PLC0415  httpx is not for --help to load

    clock = asyncio.get_running_loop().time
    deadline = clock() + wait
    client = Client(settings)
    try:
        with aside.status(Text(f"Waiting for {settings.root_url}", style="dim")) as status:
            while True:
                try:
                    reply = await client.health()
                    if reply.status in {"ok", "failed"} or clock() >= deadline:
                        return reply
                    status.update(Text(_progress(reply), style="dim"))
                except UnreachableError:
                    if clock() >= deadline:
                        raise
                await asyncio.sleep(min(POLL, max(0, deadline - clock())))
    finally:
        await client.aclose()


def _progress(reply: "Health") -> str:
    models = [f"{model.id} {model.status}" for model in reply.details.models]
    return one_line(", ".join(models) or reply.status)


def _picture(reply: "Health", settings: Settings) -> Group:
    style = {"ok": "bold green", "loading": "bold yellow"}.get(reply.status, "bold red")
    facts = f"GPU {'yes' if reply.gpu_available else 'no'}, {reply.queue_size} queued"
    head = Text.assemble((one_line(reply.status), style), (f"   {settings.root_url}   {facts}", "dim"))
    return Group(head, "", _table(reply.details.models)) if reply.details.models else Group(head)


def _table(models: "list[ModelHealth]") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("model", "status", "replicas", "tasks"):
        table.add_column(name)
    table.add_column("context", justify="right")
    for model in models:
        status = f"{model.status}: {model.error}" if model.error else model.status
        style = {"ready": "green", "loading": "yellow", "asleep": "dim"}.get(model.status, "red")
        table.add_row(
            Text(one_line(model.id), style="bold"),
            Text(one_line(status), style=style),
            f"{model.replicas.running}/{model.replicas.target}",
            one_line(", ".join(model.tasks) or "-"),
            str(model.max_model_len or "-"),
        )
    return table
