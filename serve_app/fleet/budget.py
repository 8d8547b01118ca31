"""The pace of moves: a lost replica's requests must not all be computed again at once, before those that run."""

import asyncio
import time
from collections.abc import Callable

# Looks again this often: replicas come and go.
LOOK_S = 1.0


class MoveBudget:
    """A token bucket that holds one second's tokens. Requests are served in turn and none is refused."""

    def __init__(self, tokens_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        tokens_per_s: what one replica may compute again; 0: no bound.
        clock: seconds.
        """
        self._each = tokens_per_s
        self._rate = tokens_per_s
        self._clock = clock
        self._level = tokens_per_s
        self._at = clock()
        self._turn = asyncio.Lock()

    def set_replicas(self, replicas: int, gateways: int) -> None:
        """Say how many replicas there are, and how many gateways share them. A lone replica that is lost comes back."""
        self._refill()
        self._rate = self._each * max(replicas, 1) / gateways

    def is_spent(self) -> bool:
        """Whether who comes now has to wait."""
        self._refill()
        return self._each > 0 and (self._turn.locked() or self._level <= 0)

    async def take(self, tokens: int) -> None:
        """Wait until `tokens` may be computed again; how many they are delays those that come after."""
        if not self._each:
            return
        async with self._turn:
            while True:
                self._refill()
                if self._level > 0:
                    break
                await asyncio.sleep(min((1 - self._level) / self._rate, LOOK_S))
            self._level -= tokens

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._rate, self._level + (now - self._at) * self._rate)
        self._at = now
