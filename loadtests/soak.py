"""Keeps the service under a steady, untidy load and watches its memory: the command `make soak`."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Annotated

import psutil
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer import Option

from loadtests.fleet import PACE, Engine, running_fleet
from loadtests.memory import MemoryWatch, Process
from loadtests.running import SystemFailedError
from loadtests.users import Tally, Users
from loadtests.victims import Killer

SAMPLE_S = 5.0
WARM_UP = 0.25  # of the time; caches fill then


def main(
    *,
    minutes: Annotated[float, Option(min=0.5, help="How long.")] = 30.0,
    model: Annotated[Engine, Option(help="The scripted engine, or the demo model on vLLM.")] = "scripted",
    users: Annotated[int, Option(min=1, help="Streams at a time. An eighth leaves early, another reads slowly.")] = 16,
    replicas: Annotated[int, Option(min=1, help="Replicas of the model.")] = 2,
    kill_every: Annotated[float, Option(min=0, help="Seconds from one killed replica to the next; 0: none.")] = 0.0,
    most: Annotated[float, Option(min=0, help="MiB an hour by which a process may grow.")] = 60.0,
    port: Annotated[int, Option(help="First of the ports to use.")] = 19000,
) -> None:
    """Starts the service, keeps users busy with it, and prints by how many MiB an hour each process grows.

    The first quarter of the time does not count. Exits with 1 if a process grows faster than `--most`, or if a request
    failed whose user had not left.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop in mid-run must still end what was started
    notes = Console(stderr=True, highlight=False)
    watch, tally, seconds = MemoryWatch(psutil.Process()), Tally(), minutes * 60
    try:
        notes.print("starting the service")
        with running_fleet(model, replicas, port) as target:
            crowd = Users(target, users, PACE[model], time.monotonic() + seconds, tally)
            asyncio.run(soak(crowd, seconds, watch, kill_every, notes))
            Console().print(table(watch.processes(), seconds * WARM_UP))
            Console().print(", ".join(f"{kind}: {count}" for kind, count in tally.done.most_common()))
            if failures := failures_of(watch.processes(), seconds * WARM_UP, most, tally):
                raise SystemFailedError("\n".join(failures))
    except SystemFailedError as error:
        notes.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None


async def soak(users: Users, seconds: float, watch: MemoryWatch, kill_every: float, notes: Console) -> None:
    """The users' time, with a sample of the memory every SAMPLE_S and a progress bar."""
    killer = Killer(psutil.Process(), users.target.model, ["replica"], seed=0, spare=1)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("", total=seconds)
        started = users.end - seconds

        def sample() -> None:
            at = time.monotonic() - started
            watch.sample(at)
            progress.update(task, completed=at, description=f"{users.tally.done.total()} requests")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(users.run())
            tasks.create_task(repeat(sample, SAMPLE_S, users.end))
            if kill_every:
                tasks.create_task(repeat(killer.strike, kill_every, users.end))


async def repeat(action: Callable[[], object], every_s: float, end: float) -> None:
    """Call it, in a thread, every so many seconds until `end` of the monotonic clock."""
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(every_s, left))
        await asyncio.to_thread(action)


def failures_of(processes: list[Process], warm_up_s: float, most: float, tally: Tally) -> list[str]:
    """What speaks against the service; empty if nothing does."""
    slopes = [(process, process.slope(warm_up_s)) for process in processes]
    found = [
        f"{process.name} (pid {process.pid}) grows by {slope:.0f} MiB an hour"
        for process, slope in slopes
        if slope is not None and slope > most
    ]
    return [*found, *(f"{count} requests failed, {error}" for error, count in tally.errors.most_common())]


def table(processes: list[Process], warm_up_s: float) -> Table:
    """One row for each process that was there for some time; memory in MiB."""
    result = Table(title="Resident memory, MiB", box=SIMPLE_HEAD, title_justify="left")
    result.add_column("process", no_wrap=True)
    for heading in ("pid", "first", "last", "MiB/h"):
        result.add_column(heading, justify="right")
    for process in processes:
        slope = process.slope(warm_up_s)
        if slope is not None:
            first, *_, last = process.rss_mib
            result.add_row(process.name, str(process.pid), f"{first:.0f}", f"{last:.0f}", f"{slope:+.1f}")
    return result


if __name__ == "__main__":
    typer.run(main)
