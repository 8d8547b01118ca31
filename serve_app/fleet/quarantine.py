"""The requests that a gateway suspects and refuses, by digest. Several gateways share them: see quarantine_board.py."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What is thought of a request."""

    SUSPECTED = "suspected"
    """A replica died while it was there without a token."""
    REFUSED = "refused"
    """Two did: it is what kills."""
    CLEARED = "cleared"
    """It has given a token since."""


class Finding(NamedTuple):
    """A verdict on the way from one gateway to the others."""

    digest: bytes
    verdict: Verdict
    seconds: float
    """For how long it stands."""


class Quarantine:
    """Verdicts of one gateway and of those that it hears of. For one event loop."""

    def __init__(self, refuse_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`refuse_s`: how long a verdict stands; `clock`: seconds."""
        self.on_finding: Callable[[Finding], None] | None = None
        """Called with each verdict of this gateway's own."""
        self._refuse_s = refuse_s
        self._clock = clock
        self._verdicts: dict[bytes, tuple[Verdict, float]] = {}
        self._running: dict[bytes, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._verdicts)

    def verdict(self, digest: bytes) -> Verdict:
        verdict, expires = self._verdicts.get(digest, (Verdict.CLEARED, 0.0))
        if expires > self._clock():
            return verdict
        self._verdicts.pop(digest, None)
        return Verdict.CLEARED

    def find(self, digest: bytes, verdict: Verdict) -> None:
        """Reach a verdict, and let others know."""
        finding = Finding(digest, verdict, self._refuse_s)
        self.note(finding)
        if self.on_finding is not None:
            self.on_finding(finding)

    def note(self, finding: Finding) -> None:
        """Take over a verdict; one that is refused stays so for its time."""
        if self.verdict(finding.digest) is Verdict.REFUSED and finding.verdict is not Verdict.REFUSED:
            return
        self._drop_expired()
        if finding.verdict is Verdict.CLEARED:
            self._verdicts.pop(finding.digest, None)
        else:
            self._verdicts[finding.digest] = finding.verdict, self._clock() + finding.seconds
        if finding.verdict is not Verdict.SUSPECTED:
            self._end_turn(finding.digest)

    def findings(self) -> list[Finding]:
        """All verdicts that stand."""
        self._drop_expired()
        now = self._clock()
        return [Finding(digest, verdict, expires - now) for digest, (verdict, expires) in self._verdicts.items()]

    @contextlib.asynccontextmanager
    async def turn(self, digest: bytes) -> AsyncIterator[None]:
        """Wait until no other request of this digest is being tried, and hold the next up until there is a verdict."""
        while (running := self._running.get(digest)) is not None:
            await running.wait()
        mine = self._running[digest] = asyncio.Event()
        try:
            yield
        finally:
            if self._running.get(digest) is mine:
                self._end_turn(digest)

    def _end_turn(self, digest: bytes) -> None:
        if (running := self._running.pop(digest, None)) is not None:
            running.set()

    def _drop_expired(self) -> None:
        now = self._clock()
        self._verdicts = {digest: found for digest, found in self._verdicts.items() if found[1] > now}
