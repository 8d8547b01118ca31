"""Measures bare vLLM, this project and ray.serve.llm on the same model, one after the other, in rounds."""

import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from loadtests.cpu import CpuMeter, OthersMeter, adopt_orphans
from loadtests.report import Sample, Samples, Section, sections
from loadtests.running import SystemFailedError, running
from loadtests.stream import Plan, run_load
from loadtests.systems import ENGINE_ARGS, ENGINE_ENV, SYSTEMS, System
from serve_app.config import DEMO_MODEL

LEVELS = [1, 8, 32]
HEADER = """# Performance

    make bench                       # a running service: time to first byte, TTFT, inter-token latency, tokens/s
    make loadtest                    # a running service under Locust's users
    make compare                     # bare vLLM, this service and ray.serve.llm on the same model, in rounds
    make routing                     # routing by prefix against Serve's own: cache hits, TTFT
    make compare ARGS='--markdown docs/performance.md'   # writes this page

`make compare` starts each system on the demo model, warms it, measures it at 1, 8 and 32 streams and stops it; rounds
alternate the order. It also tells how much of the machine other processes used meanwhile: figures from a machine that
was not quiet say little.

Under load most of the work outside the engine is one message, one JSON object and one write for each chunk of a stream.
So a replica sends one token more at a time for each four requests that it computes (`busy_from` of the model), at most
eight, and never one that would wait more than 0.1 s for the others; first tokens leave at once. ray.serve.llm, too,
gathers tokens for 50 ms before it sends a chunk.
"""
MAX_TOKENS = 64
WIDTH = 160  # of the tables where there is no terminal to fit


def main(
    *,
    model_dir: Annotated[Path | None, Option(help="Model directory. [the demo model]")] = None,
    rounds: Annotated[int, Option(min=1, help="Rounds; every system starts anew in each.")] = 3,
    only: Annotated[list[str] | None, Option(help=f"Only this system; repeatable: {', '.join(SYSTEMS)}.")] = None,
    concurrency: Annotated[list[int] | None, Option("-c", min=1, help="Streams at a time; repeatable.")] = None,
    port: Annotated[int, Option(help="First of the ports to use.")] = 18000,
    start_s: Annotated[float, Option(help="Seconds a system may take to start.")] = 300.0,
    markdown: Annotated[Path | None, Option(help="Also write the tables to this file.")] = None,
) -> None:
    """Starts each system, warms it, measures it at each concurrency and stops it; rounds alternate the order.

    Prints tokens/s, TTFT, inter-token latency and CPU outside the engine, and each as a ratio to bare vLLM.
    Takes about 2 minutes a system and round. Exits with 1 if a system fails or any request failed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a stop in mid-run must still end what was started
        signal.signal(number, signal.default_int_handler)
    notes, names = Console(stderr=True, highlight=False), only or list(SYSTEMS)
    if unknown := set(names) - SYSTEMS.keys():
        raise typer.BadParameter(f"No such system: {', '.join(sorted(unknown))}. Known: {', '.join(SYSTEMS)}.")
    adopt_orphans()
    try:
        model = (model_dir or DEMO_MODEL).resolve()
        comparison = Comparison(model, names, rounds, concurrency or LEVELS, port, start_s)
        samples = Samples(comparison.samples(notes))
    except SystemFailedError as error:
        notes.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    tables, conditions = sections(samples), describe_conditions(rounds, samples.noise())
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for section in tables:
        console.print(rich_table(section))
    console.print(conditions, highlight=False)
    if markdown:
        markdown.write_text("\n".join([HEADER, conditions, "", *(section.markdown() for section in tables)]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to measure: systems in rounds, each anew on `model` with a port of its own from `port` on."""

    model: Path
    systems: list[str]
    rounds: int
    levels: list[int]
    port: int
    start_s: float

    def samples(self, notes: Console) -> Iterator[Sample]:
        """Every sample, round by round; odd rounds take the systems in order, even ones in reverse."""
        for number in range(1, self.rounds + 1):
            for name in self.systems if number % 2 else reversed(self.systems):
                place = f"round {number} of {self.rounds}, {SYSTEMS[name].label}"
                with notes.status(f"{place}: starting, warming, measuring"):
                    for sample in self._samples_of(name, number):
                        notes.print(f"{place}, c={sample.concurrency}: {sample.tokens_per_s:.0f} tokens/s")
                        yield sample

    def _samples_of(self, name: str, number: int) -> Iterator[Sample]:
        """One system from start to stop. Its folder, with its log, stays only if it failed."""
        folder = Path(tempfile.mkdtemp(prefix="compare-", dir="/tmp"))  # Ray's sockets need a short path
        system = SYSTEMS[name].make(self.model, folder, self.port + list(SYSTEMS).index(name))
        most = max(self.levels)
        try:
            with running(system, folder / "log", self.start_s):
                asyncio.run(run_load(system.target, Plan(most, 2 * most, MAX_TOKENS)))
                for level in self.levels:
                    yield measure(system, name, number, level)
        except SystemFailedError as error:
            raise SystemFailedError(f"{SYSTEMS[name].label}: {error}") from None
        shutil.rmtree(folder, ignore_errors=True)


def measure(system: System, name: str, number: int, level: int) -> Sample:
    """One load on a running, warm system. Raises SystemFailedError if any request failed."""
    meter, others = CpuMeter(), OthersMeter()
    load = asyncio.run(run_load(system.target, Plan(level, max(24, 8 * level), MAX_TOKENS)))
    used, other_cores = meter.seconds(), others.cores()
    if load.errors:
        raise SystemFailedError(f"{len(load.errors)} requests failed: {load.errors[0]}")
    return Sample.of(name, number, load, used, other_cores)


def describe_conditions(rounds: int, noise: float) -> str:
    """What the figures depend on, as one paragraph."""
    engine = packages_distributions()["vllm"][0]
    arguments = " ".join(f"{name}={value}" for name, value in {**ENGINE_ARGS, **ENGINE_ENV}.items())
    return (
        f"Rounds: {rounds}. {MAX_TOKENS} tokens a request, streamed, greedy, ignore_eos. "
        f"{os.cpu_count()} cores, of which other processes used up to {noise:.1f} during a measurement, "
        f"Python {platform.python_version()}, {engine} {version(engine)}, ray {version('ray')}. "
        f"Engine: {arguments}. "
        "CPU is that of every process outside the engine, Ray's own daemons included, without the load "
        "generator, which shares the cores. A ratio compares with bare vLLM of the same round. "
        "Values are medians over the rounds, in brackets the smallest and the largest."
    )


def rich_table(section: Section) -> Table:
    """A section for the terminal."""
    table = Table(title=section.title, title_justify="left")
    for number, heading in enumerate(section.headings):
        table.add_column(heading, no_wrap=number == 0)
    for row in section.rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    typer.run(main)
