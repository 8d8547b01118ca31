"""Says on a console what went wrong and what to do, in the same form for every command."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cli.errors import BusyError, ClientError, ExitCode
from cli.sanitize import one_line


def report(console: Console, error: ClientError) -> None:
    """Print what happened, and under it what to do."""
    console.print(Text.assemble(("✗ ", "bold red"), (one_line(error.what), "bold")), soft_wrap=True)
    if error.advice:
        console.print(Text(f"  {one_line(error.advice)}", style="dim"), soft_wrap=True)


@contextmanager
def exit_codes(console: Console) -> Iterator[None]:
    """The boundary of a command: its errors become lines on the console and an exit code."""
    try:
        yield
    except ClientError as error:
        report(console, error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


async def countdown(console: Console, busy: BusyError) -> None:
    """Wait as long as the service asked, showing what for."""
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        for seconds in range(round(busy.retry_after), 0, -1):
            line = f"{busy.what} Trying again in {seconds} s; Ctrl+C gives up."
            live.update(Text(line, style="yellow"), refresh=True)
            await asyncio.sleep(1)
