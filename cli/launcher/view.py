"""What `make run` shows: the steps of the start, then where the service is and how to talk to it."""

import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.launcher.env_file import KEY
from cli.launcher.progress import STEPS, Health, state


class StartView:
    """The steps, redrawn in place on a terminal; one plain line per step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._current = -1
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._table, transient=True, refresh_per_second=8)
        self._detail = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def update(self, current: int, health: Health | None) -> None:
        """The start now waits for step `current`."""
        pending = health.pending() if health else []
        self._detail = ", ".join(pending)
        if current != self._current and not self._console.is_terminal:
            for name in STEPS[max(self._current, 0) : current]:
                self._console.print(f"{name}: ready after {self._seconds()} s")
            if current < len(STEPS):
                self._console.print(f"{STEPS[current]}: waiting")
        self._current = current

    def _seconds(self) -> int:
        return int(time.monotonic() - self._started)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for index, name in enumerate(STEPS):
            match state(index, self._current):
                case "done":
                    table.add_row(Text("✓", style="green"), name)
                case "now":
                    table.add_row(self._spinner, Text(f"{name}  {self._seconds()} s  {self._detail}", style="bold"))
                case _:
                    table.add_row("", Text(name, style="dim"))
        return table


def show_ready(console: Console, base_url: str, health: Health, key_place: str, log: str) -> None:
    """The panel of a service that is ready, and below it, to be pasted unbroken, one curl line."""
    facts = Table.grid(padding=(0, 2))
    models = ", ".join(f"{model['id']} ({model['status']})" for model in health.models)
    for name, value in (
        ("address", f"{base_url}/v1"),
        ("models", models),
        ("key", key_place),
        ("chat", "make chat"),
        ("log", log),
        ("stop", "Ctrl+C"),
    ):
        facts.add_row(Text(name, style="dim"), Text(value))
    ready = Panel(facts, title="ready", border_style="green", expand=False)
    console.print(Group(ready) if console.is_terminal else facts)
    console.print(curl_line(base_url, health), soft_wrap=True, markup=False, highlight=False)


def curl_line(base_url: str, health: Health) -> str:
    """A shell line that asks the first model something. The key goes through a pipe: no argument shows it."""
    chats = [model for model in health.models if "generate" in model["tasks"]]
    model = (chats or health.models)[0]["id"]
    path, body = ("embeddings", '"input": "Hello"')
    if chats:
        path, body = ("chat/completions", '"messages": [{"role": "user", "content": "Hello"}]')
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return (  # python-dotenv reads the key, as the launcher does: the file may quote it
        f"printf 'Authorization: Bearer %s\\n' \"${{{KEY}:-$({shlex.quote(str(python))} -m dotenv get {KEY})}}\" | "
        f"curl -sS {base_url}/v1/{path} -H @- -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{model}", {body}}}\''
    )
