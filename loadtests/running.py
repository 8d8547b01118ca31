"""Starts one system under test, waits until it answers, and leaves no process of it behind."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from loadtests.stream import Plan, run_load
from loadtests.systems import System

STOP_S = 15.0
POLL_S = 0.5
KILL_ROUNDS = 10  # a killed process's children show up, adopted, in the round after


class SystemFailedError(Exception):
    """The system did not start, or did not end; the message says where its log is."""


@contextlib.contextmanager
def running(system: System, log: Path, start_s: float) -> Iterator[None]:
    """Runs the system for the length of the block, its output in `log`. Raises SystemFailedError.

    Call `adopt_orphans` first: stopping relies on every process of the system being below this one.
    """
    for port in system.ports:
        require_free(port)
    before = descendants()
    with log.open("wb") as output:
        process = subprocess.Popen(
            system.command,
            env={**os.environ, **system.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(system, process, log, time.monotonic() + start_s)
        yield
    finally:
        stop(process, before)


def descendants() -> set[psutil.Process]:
    """Every process below this one."""
    return set(psutil.Process().children(recursive=True))


def require_free(port: int) -> None:
    """Makes sure that what answers on the port later is the system under test."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SystemFailedError(f"Port {port} is in use. Free it, or choose others with --port.") from None


def wait_until_it_answers(system: System, process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    """Returns once a streamed completion has come through."""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemFailedError(f"It ended with exit code {process.returncode}. {last_lines(log)}")
        if not asyncio.run(run_load(system.target, Plan(1, 1, max_tokens=4))).errors:
            return
        time.sleep(POLL_S)
    raise SystemFailedError(f"It did not answer in time. {last_lines(log)}")


def last_lines(log: Path, count: int = 15) -> str:
    """Where the log is and how it ends."""
    lines = log.read_text(errors="replace").splitlines()[-count:]
    return "\n".join([f"The end of {log}:", *lines])


def stop(process: subprocess.Popen[bytes], before: set[psutil.Process]) -> None:
    """Ctrl+C, then SIGKILL to what is left of all that came after `before`. Raises SystemFailedError."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for _ in range(KILL_ROUNDS):
        left = descendants() - before
        if not left:
            return
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, timeout=POLL_S)
    raise SystemFailedError(f"Processes that do not end: {sorted(each.pid for each in descendants() - before)}")
