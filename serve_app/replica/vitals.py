"""Signs of life of an engine core's processes, as the kernel tells them."""

from typing import NamedTuple

import psutil

STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})
AWAKE = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP})


class Vitals(NamedTuple):
    """What the processes of an engine core do at one moment."""

    cpu_s: float
    """CPU time that they have used so far, that of their ended children included."""
    awake: bool
    """Whether one of them runs, is ready to, or waits for a disk."""
    stopped: bool
    """Whether a signal or a debugger has stopped one of them."""


def vitals_below(pid: int) -> Vitals:
    """Of all descendants of a process: of a replica these are its engine core, workers, and compilers they run."""
    cpu_s, states = 0.0, set[str]()
    for child in psutil.Process(pid).children(recursive=True):
        try:
            with child.oneshot():
                times = child.cpu_times()
                states.add(child.status())
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system + times.children_user + times.children_system
    return Vitals(cpu_s, awake=bool(states & AWAKE), stopped=bool(states & STOPPED))
