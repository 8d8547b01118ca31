"""Sums the CPU time that a system under test spends outside vLLM's engine.

Everything that the comparison started counts: front ends, replicas, HAProxy and Ray's own daemons. Not
counted are the engine's processes (EngineCore and its workers, with their children) and the load generator.
"""

import ctypes
import os
import time
from collections.abc import Iterator

import psutil

PR_SET_CHILD_SUBREAPER = 36
ENGINE_TITLES = ("VLLM::EngineCore", "VLLM::Worker")


def adopt_orphans() -> None:
    """Makes this process the parent of every orphan below it, so that nothing it started gets lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def outside_engine(parent: psutil.Process) -> Iterator[psutil.Process]:
    """Every process below `parent`, without the engines' processes and what is below those."""
    for child in parent.children():
        try:
            if is_engine(child):
                continue
            yield child
            yield from outside_engine(child)
        except psutil.NoSuchProcess:
            continue


def is_engine(process: psutil.Process) -> bool:
    """Whether it is an EngineCore or one of its workers, by the title vLLM gives them."""
    return " ".join(process.cmdline()).startswith(ENGINE_TITLES)


class CpuMeter:
    """Reads how much CPU time has passed outside the engine since it was made, in seconds.

    A process that starts meanwhile counts from its start; one that ends meanwhile is not counted.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = psutil.Process(root or os.getpid())
        self._before = self._read()

    def seconds(self) -> float:
        now = self._read()
        return sum(used - self._before.get(process, 0.0) for process, used in now.items())

    def _read(self) -> dict[psutil.Process, float]:
        used = {}
        for process in outside_engine(self._root):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[process] = times.user + times.system
        return used


class OthersMeter:
    """Reads how much of the machine its other processes used since this was made: a measurement's noise."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = self._read()

    def cores(self) -> float:
        """Cores that processes outside this one's tree used on average; 0 on a quiet machine."""
        return max(0.0, (self._read() - self._before) / (time.monotonic() - self._started))

    def _read(self) -> float:
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            busy -= times.user + times.system
        return busy
