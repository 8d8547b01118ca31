"""Measures a running service at several concurrencies: latencies of the stream and tokens/s."""

import asyncio
import dataclasses
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer import Option

from loadtests.sse import Answer
from loadtests.stats import Quantiles
from loadtests.stream import Load, Plan, run_load
from loadtests.target import Target, TargetError, find_target

LEVELS = [1, 8, 32]


def main(
    concurrency: Annotated[list[int] | None, Option("-c", min=1, help="Streams at a time; repeatable.")] = None,
    requests: Annotated[int | None, Option("-n", min=1, help="Requests at each -c. [8 x c, at least 24]")] = None,
    max_tokens: Annotated[int, Option(min=1, help="Tokens of each answer.")] = 64,
    model: Annotated[str | None, Option(help="Model to ask. [DEFAULT_MODEL, else the first served]")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Puts a running service under load and prints its latencies and throughput.

    The service is OPENAI_BASE_URL (http://127.0.0.1:8787/v1), the key OPENAI_API_KEY, or PROXY_API_KEY from
    the environment or ./.env. Another key needs the feature `benchmark`. Exits with 1 if any request failed.
    """
    notes = Console(stderr=True)
    try:
        target = find_target(model)
    except TargetError as error:
        notes.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    levels = concurrency or LEVELS
    plans = [Plan(level, requests or max(24, 8 * level), max_tokens) for level in levels]
    loads = asyncio.run(measure(target, plans, notes))
    if as_json:
        Console().print_json(data={"model": target.model, "levels": [figures(load) for load in loads]})
    else:
        Console().print(table(target, loads))
    errors = [error for load in loads for error in load.errors]
    if errors:
        notes.print(f"[red]{len(errors)} requests failed; the first: {errors[0]}[/red]", highlight=False)
        raise typer.Exit(1)


async def measure(target: Target, plans: list[Plan], notes: Console) -> list[Load]:
    """Runs the plans one after the other, after one request that warms the service, with a progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True) as progress:
        await run_load(target, Plan(1, 1))
        loads = []
        for plan in plans:
            task = progress.add_task(f"c={plan.concurrency}", total=plan.requests)

            def advance(_: Answer, task: Any = task) -> None:
                progress.advance(task)

            loads.append(await run_load(target, plan, advance))
        return loads


def table(target: Target, loads: list[Load]) -> Table:
    """One row for each concurrency; times in milliseconds. Fits 80 columns."""
    title = f"{target.model} at {target.base_url}, milliseconds, p50 or p50 / p95"
    result = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("c", "TTFB", "TTFT", "inter-token", "end to end", "tokens/s", "failed"):
        result.add_column(heading, justify="right")
    for load in loads:
        result.add_row(
            str(load.plan.concurrency),
            f"{load.ttfb.p50 * 1000:.1f}",
            *(pair(times, digits=1) for times in (load.ttft, load.inter_token)),
            pair(load.end_to_end, digits=0),
            f"{load.tokens_per_s:.0f}",
            str(len(load.errors)),
        )
    return result


def pair(times: Quantiles, digits: int) -> str:
    """Seconds as `p50 / p95` in milliseconds."""
    return f"{times.p50 * 1000:.{digits}f} / {times.p95 * 1000:.{digits}f}"


def figures(load: Load) -> dict[str, Any]:
    """A load as JSON; times in seconds, null where nothing was measured."""
    times = {name: getattr(load, name) for name in ("ttfb", "ttft", "inter_token", "end_to_end")}
    return {
        **dataclasses.asdict(load.plan),
        "tokens_per_s": load.tokens_per_s,
        **{f"{name}_s": dataclasses.asdict(value) if load.good else None for name, value in times.items()},
        "errors": list(load.errors),
    }


if __name__ == "__main__":
    typer.run(main)
