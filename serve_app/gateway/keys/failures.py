"""Counts failed attempts by client address, so that guessing keys gets told to slow down."""

import math
from collections import Counter

from serve_app.gateway.errors import TooManyAttempts

WINDOW_S = 60.0
MOST_ADDRESSES = 10_000


class Failures:
    """Failed attempts of the current minute. Right keys are never counted, and never refused."""

    def __init__(self, limit: int) -> None:
        """`limit` failures a minute and address; 0: any number."""
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._ends = 0.0

    def add(self, address: str, now: float) -> None:
        """Count one failure at `now`, in seconds; raise TooManyAttempts when it is over the limit."""
        if not self._limit or not address:
            return
        if not self._ends - WINDOW_S <= now < self._ends:
            self._counts.clear()
            self._ends = now + WINDOW_S
        if address in self._counts or len(self._counts) < MOST_ADDRESSES:
            self._counts[address] += 1
        if self._counts[address] > self._limit:
            raise TooManyAttempts(math.ceil(self._ends - now))
