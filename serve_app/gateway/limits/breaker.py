"""Whether a service that fails is called: after some failures in a row only now and then."""

import logging
from collections.abc import Callable

logger = logging.getLogger("ray.serve")

FAILURES_TO_OPEN = 3
OPEN_S = 5.0


class Breaker:
    """Opens after `FAILURES_TO_OPEN` failures in a row; then one call in `OPEN_S` seconds is let through."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._failures = 0
        self._try_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES_TO_OPEN

    def admits(self) -> bool:
        """Whether a call may be made now."""
        if not self.is_open:
            return True
        if self._clock() < self._try_at:
            return False
        self._try_at = self._clock() + OPEN_S
        return True

    def failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == FAILURES_TO_OPEN:
            self._try_at = self._clock() + OPEN_S
            logger.warning("the shared limiter fails (%s): this gateway keeps to its share", type(error).__name__)

    def succeeded(self) -> None:
        if self.is_open:
            logger.warning("the shared limiter answers again")
        self._failures = 0
