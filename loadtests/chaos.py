"""Kills replicas under load and shows that no stream loses a token: the command `make chaos`."""

import asyncio
import secrets
import signal
import time
from typing import Annotated

import psutil
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer import Option

from loadtests.fleet import PACE, Engine, running_fleet
from loadtests.running import SystemFailedError
from loadtests.storm import Outcome, Storm, run_storm
from loadtests.target import Target
from loadtests.victims import STRIKES, Killer


def main(
    *,
    model: Annotated[Engine, Option(help="The scripted engine, or the demo model on vLLM.")] = "scripted",
    streams: Annotated[int, Option(min=1, help="Streams at a time.")] = 40,
    tokens: Annotated[int, Option(min=1, help="Tokens of each stream.")] = 60,
    seconds: Annotated[float, Option(min=1, help="How long replicas are killed.")] = 60.0,
    every: Annotated[float, Option(min=0.1, help="Seconds from one kill to the next.")] = 1.0,
    replicas: Annotated[int, Option(min=1, help="Replicas of the model.")] = 3,
    spare: Annotated[int, Option(min=0, help="Living replicas that are left alone.")] = 1,
    kind: Annotated[list[str] | None, Option(help=f"Only this kind; repeatable: {', '.join(STRIKES)}.")] = None,
    seed: Annotated[int | None, Option(help="Of the random choices. [a new one; the table names it]")] = None,
    port: Annotated[int, Option(help="First of the ports to use.")] = 18500,
) -> None:
    """Starts the service, has each stream once in peace, and then again and again while replicas are killed.

    Exits with 1 unless every stream is complete and has the tokens of the undisturbed one, and the usage ledger has
    what the clients received.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop in mid-run must still end what was started
    notes, kinds = Console(stderr=True, highlight=False), kind or list(STRIKES)
    if unknown := set(kinds) - STRIKES.keys():
        raise typer.BadParameter(f"No such kind: {', '.join(sorted(unknown))}. Known: {', '.join(STRIKES)}.")
    if seed is None:
        seed = secrets.randbelow(10**6)
    storm = Storm(streams, tokens, seconds, every, PACE[model])
    try:
        notes.print("starting the service")
        with running_fleet(model, replicas, port) as target:
            killer = Killer(psutil.Process(), target.model, kinds, seed, spare)
            outcome = asyncio.run(watched(target, killer, storm, notes))
            failures = outcome.failures()
            Console().print(table(f"{model}, {replicas} replicas, seed {seed}", outcome))
            if failures:
                raise SystemFailedError("\n".join(failures))
    except SystemFailedError as error:
        notes.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None


async def watched(target: Target, killer: Killer, storm: Storm, notes: Console) -> Outcome:
    """The storm behind a progress bar, which stands at its end while the last streams run."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("in peace", total=storm.seconds)
        started: list[float] = []

        def show(outcome: Outcome) -> None:
            if not started:
                started.append(time.monotonic())
            done = f"{outcome.kills.total()} kills, {len(outcome.answers)} streams"
            progress.update(task, description=done, completed=time.monotonic() - started[0])

        return await run_storm(target, killer, storm, show)


def table(title: str, outcome: Outcome) -> Table:
    """The outcome in one row. Fits 80 columns."""
    result = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("streams", "kills", "complete", "exact", "refused", "worst stall (s)"):
        result.add_column(heading, justify="right")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.kills.items()))
    result.add_row(
        str(len(outcome.answers)),
        f"{outcome.kills.total()} ({kinds})",
        str(outcome.complete),
        str(outcome.exact),
        str(outcome.refused),
        f"{outcome.worst_stall_s:.1f}",
    )
    return result


if __name__ == "__main__":
    typer.run(main)
