"""Watches the memory of every process of a service, and says which grow."""

import statistics
from dataclasses import dataclass, field

import psutil

from loadtests.victims import below, title

MIB = 1024 * 1024
SECONDS_PER_HOUR = 3600.0


@dataclass(slots=True)
class Process:
    """One process: its name, and its resident memory in MiB at times in seconds."""

    name: str
    pid: int
    times: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)

    def slope(self, warm_up_s: float) -> float | None:
        """MiB an hour, by least squares over what came after `warm_up_s`.

        None for a process that came later, as one that replaces another does, and for less than three samples.
        """
        kept = [(at, rss) for at, rss in zip(self.times, self.rss_mib, strict=True) if at >= warm_up_s]
        if len(kept) < 3 or self.times[0] > warm_up_s:
            return None
        times, rss = zip(*kept, strict=True)
        return float(statistics.linear_regression(times, rss).slope) * SECONDS_PER_HOUR


class MemoryWatch:
    """Samples all processes below one."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._seen: dict[psutil.Process, Process] = {}

    def sample(self, at: float) -> None:
        """Read the memory of each process; `at` is the time in seconds."""
        for process in below(self._root):
            try:
                rss = process.memory_info().rss / MIB
            except psutil.NoSuchProcess:
                continue
            if (text := title(process)) and process not in self._seen:
                self._seen[process] = Process(name_of(text), process.pid)
            if process in self._seen:
                self._seen[process].times.append(at)
                self._seen[process].rss_mib.append(rss)

    def processes(self) -> list[Process]:
        """Those seen, by name."""
        return sorted(self._seen.values(), key=lambda process: (process.name, process.pid))


def name_of(command_line: str) -> str:
    """What people call a process: the title that Ray or vLLM gave it, or its program with the script that it runs."""
    if command_line.startswith(("ray::", "VLLM::")):
        return command_line.removeprefix("ray::ServeReplica:chat:")
    program, *arguments = command_line.split()
    name = program.rpartition("/")[2]
    if not name.startswith("python"):
        return name
    script = next((word for word in arguments if not word.startswith("-")), "")
    return f"{name} {'/'.join(script.split('/')[-2:])}".strip()
