"""How several gateways share their quarantine: a board on which each writes its verdicts and reads those of all.

The board is one Ray actor. If it restarts, the gateways write what they know once more; while it is away, each goes
by what it has heard.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from serve_app.fleet.failures import UNREACHABLE, is_cancelled_here
from serve_app.fleet.quarantine import Finding, Quarantine
from serve_app.ray_seam import listen_on_node_address

logger = logging.getLogger("ray.serve")

# How long a reader waits for news, and after a failure.
READ_S = 5.0
RETRY_S = 1.0
# Findings that the board keeps for readers that are new, or slow.
KEPT = 10_000


class Page(NamedTuple):
    """What a reader has not read yet."""

    board: str
    """Changes when the board restarts."""
    position: int
    """Where to read on."""
    findings: Sequence[Finding]


class QuarantineBoard:
    """The board. Each gateway reads its own findings too, which changes nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        listen_on_node_address()
        self._clock = clock
        self._id = secrets.token_hex(8)
        self._findings: deque[tuple[Finding, float]] = deque(maxlen=KEPT)
        self._count = 0
        self._written = asyncio.Event()

    async def write(self, findings: Sequence[Finding]) -> None:
        now = self._clock()
        self._findings += [(finding, now + finding.seconds) for finding in findings]
        self._count += len(findings)
        self._written.set()
        self._written = asyncio.Event()

    async def read(self, board: str, position: int) -> Page:
        """What was written after `position` of this board, as soon as there is anything, or an empty page in time."""
        if board == self._id and position == self._count:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._written.wait(), READ_S)
        now, unread = self._clock(), self._count - (position if board == self._id else 0)
        found = list(self._findings)[-unread:] if unread else []
        standing = [finding._replace(seconds=expires - now) for finding, expires in found if expires > now]
        return Page(self._id, self._count, standing)


class Call(Protocol):
    """Calls a method of the board by name, as `getattr(handle, method).remote(*arguments)` does."""

    def __call__(self, method: str, *arguments: Any) -> Awaitable[Any]: ...


async def share(quarantine: Quarantine, call: Call) -> None:
    """Keep a gateway's quarantine and the board in step. Runs until cancelled."""
    mine: asyncio.Queue[Finding] = asyncio.Queue()
    quarantine.on_finding = mine.put_nowait
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_write(mine, call))
        tasks.create_task(_read(quarantine, mine, call))


async def _write(mine: asyncio.Queue[Finding], call: Call) -> None:
    while True:
        findings = [await mine.get()]
        while not mine.empty():
            findings.append(mine.get_nowait())
        while not await _tried(call("write", findings)):
            pass


async def _read(quarantine: Quarantine, mine: asyncio.Queue[Finding], call: Call) -> None:
    board, position = "", 0
    while True:
        page: Page | None = await _tried(call("read", board, position))
        if page is None:
            continue
        if board and page.board != board:
            for finding in quarantine.findings():
                mine.put_nowait(finding)
        board, position = page.board, page.position
        for finding in page.findings:
            quarantine.note(finding)


async def _tried(answer: Awaitable[Any]) -> Any:
    """The board's answer; None, a moment later, if there is none."""
    try:
        return (await answer) or True
    except asyncio.CancelledError:
        if is_cancelled_here():
            raise
    except UNREACHABLE as error:
        logger.warning("the quarantine board does not answer: %s", type(error).__name__)
    await asyncio.sleep(RETRY_S)
    return None
