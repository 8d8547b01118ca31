"""The processes of a running fleet that a storm strikes, and how it strikes them."""

import contextlib
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from cli.launcher.failures import deployment_of

REPLICA = "ray::ServeReplica:chat:"
"""So begin the titles of replicas, with the name of the deployment behind it, and more while one starts."""
ENGINE_CORE = "VLLM::EngineCore"
WORKER = "VLLM::Worker"


@dataclass(frozen=True, slots=True)
class Strike:
    """A way to strike a replica: which of its processes gets which signal; no title means the replica itself."""

    number: signal.Signals
    title: str = ""


STRIKES = {
    "replica": Strike(signal.SIGKILL),
    "engine": Strike(signal.SIGKILL, ENGINE_CORE),
    "worker": Strike(signal.SIGKILL, WORKER),
    "hang": Strike(signal.SIGSTOP),
    "engine-hang": Strike(signal.SIGSTOP, ENGINE_CORE),
}


STRUCK = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
EFFECT_S = 1.0


class Killer:
    """Strikes a living replica at random, by the same choices each time it has the same seed and the same victims."""

    def __init__(self, root: psutil.Process, model: str, kinds: Sequence[str], seed: int, spare: int) -> None:
        """Args:
        root: the process that all of the fleet is below.
        model: whose replicas.
        kinds: of STRIKES; a replica is struck by those for which it has a process.
        seed: of the random choices.
        spare: so many living replicas are left alone.
        """
        self._root = root
        self._model = model
        self._kinds = kinds
        self._random = random.Random(seed)  # noqa: S311 - to be repeatable, not to be secret
        self._spare = spare

    def strike(self) -> str | None:
        """Strike one replica; the kind, or None where no more than `spare` live, or none has such a process."""
        living = sorted(living_replicas(self._root, self._model), key=lambda replica: replica.pid)
        victims = [found for replica in living if (found := self._victims(replica))]
        if len(living) <= self._spare or not victims:
            return None
        kind, victim = self._random.choice(self._random.choice(victims))
        try:
            victim.send_signal(STRIKES[kind].number)
        except psutil.NoSuchProcess:
            return None
        wait_for_effect(victim)
        return kind

    def _victims(self, replica: psutil.Process) -> list[tuple[str, psutil.Process]]:
        return [(kind, victim) for kind in self._kinds if (victim := find(replica, STRIKES[kind].title))]


def wait_for_effect(victim: psutil.Process) -> None:
    """Signals arrive a moment after they are sent: return once the process is stopped, dead or gone."""
    deadline = time.monotonic() + EFFECT_S
    with contextlib.suppress(psutil.NoSuchProcess):
        while victim.status() not in STRUCK and time.monotonic() < deadline:
            time.sleep(0.001)


def living_replicas(root: psutil.Process, model: str) -> list[psutil.Process]:
    """A model's replicas below `root` that have started, and neither they nor their engine core are stopped."""
    name = REPLICA + deployment_of(model)
    return [process for process in below(root) if title(process) == name and is_at_work(process)]


def is_at_work(replica: psutil.Process) -> bool:
    """Whether neither it nor a process below it is stopped."""
    try:
        return all(process.status() != psutil.STATUS_STOPPED for process in (replica, *below(replica)))
    except psutil.NoSuchProcess:
        return False


def find(replica: psutil.Process, wanted: str) -> psutil.Process | None:
    """The replica's process of that title, or itself without one; None where it has none."""
    return replica if not wanted else next((each for each in below(replica) if title(each).startswith(wanted)), None)


def below(root: psutil.Process) -> Iterator[psutil.Process]:
    """All processes below `root`, at the moment."""
    try:
        yield from root.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def title(process: psutil.Process) -> str:
    """A process's command line, which Ray and vLLM overwrite by a title; empty where it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""
