"""What a gateway hears from the replicas of one model, and what it does with those that leave or fall silent.

Every replica that this gateway has sent a request gives a sign of life each half second (`channel.BEAT_S`). One that
is being stopped says so in it, and its streams move to others bit by bit. One that falls silent is hung: its
requests go on elsewhere, and it is killed, so that Serve starts another.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ray.exceptions import RayError

from serve_app.fleet.budget import MoveBudget
from serve_app.fleet.channel import BEAT_S, Header
from serve_app.fleet.journal import Entry, Journal

logger = logging.getLogger("ray.serve")

# A gateway that was stopped for so long has itself been given up by the replicas, and must not blame them.
LATE_S = 5.0
# What such a gateway hears at first was sent before, perhaps by a replica that has stopped talking to it.
BACKLOG_S = 2.0
# A replica that has missed so many signs of life gets no new requests until it is heard of again.
SUSPECT_S = 3 * BEAT_S
# All streams have moved so long before their replica is gone.
MARGIN_S = 2.0


class Deployment(Protocol):
    """The replicas of one model as Serve sees them."""

    def wake(self) -> None:
        """Have a look now: a replica seems to be gone."""

    def running(self) -> Collection[str]:
        """The ids of the replicas that answer and are not being stopped, as of the last look."""

    def kill(self, replica: str) -> bool:
        """Have a replica's process killed; False: there is none. Blocks.

        Raises:
            RayError: Ray does not answer.
        """


class Limits(NamedTuple):
    """How long a replica may be silent, and how fast streams leave one that is being stopped."""

    silent_s: float
    """Seconds; 0: for ever."""
    moves_per_s: float
    """Streams that move each second, more where the time would not do for all."""


@dataclass
class _Peer:
    silent_s: float = 0.0
    leaving_s: float | None = None
    due: float = 0.0
    """Streams that may move by now."""


class Peers:
    """The replicas that this gateway has heard of."""

    def __init__(
        self,
        journal: Journal,
        deployment: Deployment,
        limits: Limits,
        budget: MoveBudget,
        *,
        can_move: Callable[[Entry], bool],
        move: Callable[[Entry], None],
        lost: Callable[[Entry], None],
    ) -> None:
        """Args:
        budget: that moves have to wait for.
        can_move: whether a request could go on elsewhere.
        move: takes a request off a replica that is being stopped.
        lost: takes one off a replica that is gone.
        """
        self._journal = journal
        self._deployment = deployment
        self._limits = limits
        self._can_move = can_move
        self._move = move
        self._lost = lost
        self._budget = budget
        self._doubtful_s = 0.0
        self.suspects: set[str] = set()
        """Replicas that should get no request now: they are being stopped, or are silent."""
        self._peers: dict[str, _Peer] = {}
        self._kills: dict[str, asyncio.Task[None]] = {}

    def heard(self, header: Header) -> None:
        """Take note of a message's header."""
        peer = self._peers.setdefault(header.replica, _Peer())
        peer.silent_s = 0.0
        peer.leaving_s = header.leaving_s if header.leaving_s is not None else peer.leaving_s
        if peer.leaving_s is None:
            self.suspects.discard(header.replica)
        else:
            self.suspects.add(header.replica)
        for attempt in header.taken:
            if (entry := self._journal.entry_at(attempt)) is not None:
                entry.take(header.replica)

    def forget(self, replica: str | None) -> None:
        """Expect no more of a replica: it is gone, or has given this gateway up. None: which one is not known."""
        if replica is not None:
            self._peers.pop(replica, None)
            self.suspects.discard(replica)

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Watch for ever, as long as what the replicas send is read: otherwise all of them would seem silent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reading)
            tasks.create_task(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(BEAT_S)
            elapsed_s, last = loop.time() - last, loop.time()
            self._doubtful_s = BACKLOG_S if elapsed_s > LATE_S else max(0.0, self._doubtful_s - elapsed_s)
            if self._doubtful_s:
                self._peers.clear()
                self.suspects.clear()
            # Only time in which a message would have been noticed counts as silence.
            self._look(min(elapsed_s, 2 * BEAT_S))

    def _look(self, elapsed_s: float) -> None:
        for name, peer in list(self._peers.items()):
            peer.silent_s += elapsed_s
            if peer.silent_s >= SUSPECT_S:
                self.suspects.add(name)
            if 0 < self._limits.silent_s <= peer.silent_s:
                self._give_up(name)
            elif peer.leaving_s is not None and peer.leaving_s < math.inf:
                self._move_some(name, peer, peer.leaving_s, elapsed_s)

    def _carried_by(self, replica: str) -> list[Entry]:
        return [entry for entry in self._journal if entry.carrier == replica]

    def _give_up(self, replica: str) -> None:
        self._peers[replica].silent_s = 0.0  # until the process is no more, it is killed again
        if replica not in self._kills:  # while Ray does not answer, each holds a thread
            self._kills[replica] = asyncio.create_task(self._kill(replica))
            self._kills[replica].add_done_callback(lambda _: self._kills.pop(replica))
        for entry in self._carried_by(replica):
            self._lost(entry)

    async def _kill(self, replica: str) -> None:
        try:
            existed = await asyncio.to_thread(self._deployment.kill, replica)
        except RayError as error:
            logger.warning("replica %s is silent and cannot be killed: %s", replica, type(error).__name__)
            return
        if existed:
            logger.error("replica %s was silent for %.1f s and is killed", replica, self._limits.silent_s)
        else:
            self.forget(replica)
        self._deployment.wake()

    def _move_some(self, replica: str, peer: _Peer, leaving_s: float, elapsed_s: float) -> None:
        leaving = {name for name, other in self._peers.items() if other.leaving_s is not None}
        if not set(self._deployment.running()) - leaving:
            self._deployment.wake()  # nobody can take them: they run on where they are
            return
        if leaving_s > 2 * MARGIN_S and self._budget.is_spent():
            return  # here they go on meanwhile
        movable = [entry for entry in self._carried_by(replica) if self._can_move(entry)]
        peer.due += elapsed_s * max(self._limits.moves_per_s, len(movable) / max(leaving_s - MARGIN_S, elapsed_s))
        moving, peer.due = movable[: int(peer.due)], peer.due % 1
        for entry in moving:
            self._move(entry)
