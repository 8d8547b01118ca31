"""A replica that is being stopped: since when, and how long it has for what it carries."""

import math
import time

# How long Serve's routers may still have a call under way to a replica that takes none.
LAST_CALL_S = 1.0


class Terminated(Exception):
    """This replica got SIGTERM."""


class Leaving:
    """Begun by Serve, which ends the process itself, or by SIGTERM, after which the process must end itself."""

    def __init__(self, grace_s: float, timeout_s: float) -> None:
        """Args:
        grace_s: how long streams may end by themselves before they move; at most half of `timeout_s` counts.
        timeout_s: when what is still there is cut.
        """
        self._grace_s = min(grace_s, timeout_s / 2)
        self._timeout_s = timeout_s
        self._begun_at: float | None = None
        self.terminated = False

    @property
    def begun(self) -> bool:
        return self._begun_at is not None

    def begin(self) -> None:
        """From any thread."""
        if self._begun_at is None:
            self._begun_at = time.monotonic()

    def terminate(self) -> None:
        """As `begin`, for a process that nobody will end."""
        self.begin()
        self.terminated = True

    def left_s(self) -> float | None:
        """Seconds until the end, once streams should move, and infinity before; None: it is not being stopped."""
        age_s = self._age_s()
        if age_s is None:
            return None
        return math.inf if age_s < self._grace_s else max(0.0, self._timeout_s - age_s)

    def may_exit(self, idle: bool) -> bool:
        """Whether a terminated process has nothing left to do, or no time left to do it."""
        age_s = self._age_s()
        return self.terminated and age_s is not None and (age_s > self._timeout_s or (idle and age_s > LAST_CALL_S))

    def _age_s(self) -> float | None:
        return None if self._begun_at is None else time.monotonic() - self._begun_at
