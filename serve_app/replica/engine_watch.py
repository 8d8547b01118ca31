"""The watchdog of an engine core: tells one that hangs from one that computes or compiles for long.

An engine core owes a step as long as it has requests: it sends the outputs of each, and its figures for a step of
prefill without any. One that owes and sends nothing is judged by what its processes do meanwhile (`vitals.py`).
"""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from serve_app.replica.vitals import Vitals
from serve_app.settings import Closed

# Below this share of a core the processes of an engine core are asleep but for their housekeeping.
AWAKE_SHARE = 0.05
# The share of the newest step in the usual one.
NEWEST = 0.05
ASLEEP_S = {"cpu": 2.0, "gpu": 15.0}


class WatchdogConfig(Closed):
    """When a replica counts as hung, in seconds; 0 switches a check off. It is then replaced, and its streams move."""

    stopped_s: float = Field(default=1, ge=0)
    """For how long one of its engine processes may be stopped (SIGSTOP, a debugger) while there are requests."""
    asleep_s: float | None = Field(default=None, ge=0)
    """For how long they may all sleep without finishing a step; null: 2 on cpu, where a step needs a CPU all along,
    15 on gpu, where they sleep while it computes. Not checked where a replica spans several nodes."""
    busy_s: float = Field(default=300, ge=0)
    """For how long they may use CPU without finishing a step: first steps compile, stuck collectives spin."""
    usual_steps: float = Field(default=20, ge=1)
    """Neither of the last two is ever shorter than so many usual steps of this engine core."""
    silent_s: float = Field(default=2.5, ge=0)
    """For how long a gateway may hear nothing from a replica, which gives a sign of life every half second."""

    def asleep_limit_s(self, device: Literal["cpu", "gpu"], nodes: int) -> float:
        """`asleep_s` with null decided; 0 where workers on other nodes are out of sight."""
        if nodes > 1:
            return 0.0
        return ASLEEP_S[device] if self.asleep_s is None else self.asleep_s


class EngineWatch:
    """Counts the seconds in which an engine core owes a step, by what its processes do.

    It counts only time in which this process itself was able to notice a step, so that a process that was late
    or stopped does not blame its engine core.
    """

    def __init__(self, config: WatchdogConfig, asleep_limit_s: float, vitals: Callable[[], Vitals]) -> None:
        self._config = config
        self._asleep_limit_s = asleep_limit_s
        self._vitals = vitals
        self._last_step: float | None = None
        self._stepped = False
        self._usual_step_s = 0.0
        self._cpu_s: float | None = None
        self._stopped_s = self._asleep_s = self._busy_s = 0.0

    def step(self, now: float) -> None:
        """A step has ended; `now` in seconds of any steady clock."""
        if self._last_step is not None:
            self._usual_step_s += NEWEST * (now - self._last_step - self._usual_step_s)
        self._last_step, self._stepped = now, True
        self._cpu_s = None
        self._stopped_s = self._asleep_s = self._busy_s = 0.0

    def look(self, owes: bool, elapsed_s: float) -> str | None:
        """Judge the engine core.

        Args:
            owes: whether it has requests.
            elapsed_s: seconds since the last look in which a step would have been noticed.

        Returns:
            Why it counts as hung; None: it does not.
        """
        if not owes:
            self._last_step = None
            self._stopped_s = self._asleep_s = 0.0
            if not self._busy_s:
                self._cpu_s = None
                return None
        if self._stepped:  # it lives, and to look at the machine's processes costs
            self._stepped = False
            return None
        vitals, before = self._vitals(), self._cpu_s
        self._cpu_s = vitals.cpu_s
        awake = vitals.awake or (before is not None and abs(vitals.cpu_s - before) > AWAKE_SHARE * elapsed_s)
        asleep = owes and not awake and before is not None
        self._stopped_s = self._stopped_s + elapsed_s if owes and vitals.stopped else 0.0
        self._asleep_s = self._asleep_s + elapsed_s if asleep else 0.0
        # A hung engine core goes on spinning when its requests have been given up; an idle one does not.
        self._busy_s = self._busy_s + elapsed_s if awake else 0.0
        return self._verdict()

    def _verdict(self) -> str | None:
        patience_s = self._config.usual_steps * self._usual_step_s
        if 0 < self._config.stopped_s <= self._stopped_s:
            return f"one of its processes has been stopped for {self._stopped_s:.1f} s"
        if self._asleep_limit_s > 0 and max(self._asleep_limit_s, patience_s) <= self._asleep_s:
            return f"its processes have slept for {self._asleep_s:.1f} s over a step"
        if self._config.busy_s > 0 and max(self._config.busy_s, patience_s) <= self._busy_s:
            return f"its processes have been busy with one step for {self._busy_s:.0f} s"
        return None
