"""Measures what routing by prefix is worth: chats of several turns over two replicas, by our router and by Serve's."""

import asyncio
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from cli.launcher.service import SERVE
from loadtests.cpu import adopt_orphans
from loadtests.running import SystemFailedError, running
from loadtests.scenarios import prompt
from loadtests.sse import Answer
from loadtests.stats import Quantiles
from loadtests.stream import Load, Plan, stream_answer
from loadtests.systems import MODEL, UNSET, System, on_serve, target
from loadtests.target import Target
from serve_app.config import load_model

ROUTERS = {"prefix": "by prefix, with bounded load", "power_of_two": "Serve's power of two choices"}
SYSTEM_WORDS, TURN_WORDS, MAX_TOKENS = 250, 60, 32


@dataclass(frozen=True, slots=True)
class Chats:
    """The load: `chats` conversations of `turns` turns each, `concurrency` at a time, under two system prompts."""

    chats: int
    turns: int
    concurrency: int


def service(routing: str, replicas: int, folder: Path, port: int) -> System:
    """The service on CPU with this many replicas of the demo model and a router."""
    demo = load_model("demo").model_dump(mode="json")
    settings = {"id": MODEL, "device": "cpu", "replicas": replicas, "num_cpus": 0, "routing": routing}
    told = {"vllm_args": {**demo["vllm_args"], "enable_prompt_tokens_details": True}}
    application = {
        "name": "chat",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {"models": [{**demo, **settings, **told}]},
    }
    key = secrets.token_urlsafe(32)
    own = {**UNSET, "PROXY_API_KEY": key, "XDG_STATE_HOME": str(folder)}
    return on_serve(application, folder, port, {**SERVE, **own}, target(port, key))


async def chat(session: aiohttp.ClientSession, target: Target, number: int, turns: int) -> list[Answer]:
    """One conversation: each turn sends all that was said before."""
    system = prompt(number % 2, SYSTEM_WORDS)
    messages, answers = [{"role": "system", "content": system}], []
    for turn in range(turns):
        messages.append({"role": "user", "content": prompt(100 * number + turn, TURN_WORDS)})
        body: dict[str, Any] = {
            "model": target.model,
            "messages": messages,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = await stream_answer(session, target, body)
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer.text})
    return answers


async def run_chats(target: Target, load: Chats) -> Load:
    """Runs the load. A failed request is an answer with its error."""
    numbers, answers = iter(range(load.chats)), list[Answer]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=target.headers) as session:

        async def in_turn() -> None:
            for number in numbers:
                answers.extend(await chat(session, target, number, load.turns))

        started = time.perf_counter()
        await asyncio.gather(*(in_turn() for _ in range(load.concurrency)))
        plan = Plan(load.concurrency, load.chats * load.turns, MAX_TOKENS)
        return Load(plan, tuple(answers), time.perf_counter() - started)


def measure(routing: str, replicas: int, chats: Chats, port: int, start_s: float) -> Load:
    """The load on a service of its own. Raises SystemFailedError if it does not start or a request fails."""
    folder = Path(tempfile.mkdtemp(prefix="routing-", dir="/tmp"))  # Ray's sockets need a short path
    system = service(routing, replicas, folder, port)
    with running(system, folder / "log", start_s):
        load = asyncio.run(run_chats(system.target, chats))
    if load.errors:
        raise SystemFailedError(f"{len(load.errors)} requests failed: {load.errors[0]}")
    shutil.rmtree(folder, ignore_errors=True)
    return load


def hit_rate(load: Load) -> float:
    """Share of all prompt tokens that was found in a KV cache."""
    return sum(answer.cached_tokens for answer in load.good) / sum(answer.prompt_tokens for answer in load.good)


def table(loads: dict[str, Load]) -> Table:
    """A row for each router."""
    shown = Table("router", "requests", "prompt tokens cached", "TTFT p50 ms", "TTFT p95 ms", "tokens/s")
    for routing, load in loads.items():
        ttft: Quantiles = load.ttft
        figures = (f"{hit_rate(load):.1%}", f"{ttft.p50 * 1000:.0f}", f"{ttft.p95 * 1000:.0f}")
        shown.add_row(ROUTERS[routing], str(len(load.good)), *figures, f"{load.tokens_per_s:.0f}")
    return shown


def main(
    *,
    chats: Annotated[int, Option(min=1, help="Conversations.")] = 32,
    turns: Annotated[int, Option(min=1, help="Turns of each.")] = 6,
    concurrency: Annotated[int, Option("-c", min=1, help="Conversations at a time.")] = 8,
    replicas: Annotated[int, Option(min=1, help="Replicas of the model.")] = 2,
    port: Annotated[int, Option(help="First of the ports to use.")] = 18400,
    start_s: Annotated[float, Option(help="Seconds that the service may take to start.")] = 300.0,
) -> None:
    """Starts the service with each router, runs chats of several turns on it, and prints what was in the KV cache.

    Takes about 3 minutes a router on two cores. Exits with 1 if the service or any request fails.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a stop in mid-run must still end what was started
        signal.signal(number, signal.default_int_handler)
    console = Console()
    adopt_orphans()
    loads: dict[str, Load] = {}
    try:
        for routing, label in ROUTERS.items():
            with console.status(f"{label}: starting and measuring"):
                loads[routing] = measure(routing, replicas, Chats(chats, turns, concurrency), port, start_s)
    except SystemFailedError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    console.print(table(loads))


if __name__ == "__main__":
    typer.run(main)
