"""The watchdog of an engine core: what it takes for a hang, and what it does not, with real processes below."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from serve_app.replica.engine_watch import EngineWatch, WatchdogConfig
from serve_app.replica.vitals import Vitals, vitals_below
from tests.service import wait_for

TICK_S = 0.5
BUSY = "while True: pass"
ASLEEP = "import time; time.sleep(600)"
AWAKE, SLEEPING, STOPPED = Vitals(1, True, False), Vitals(1, False, False), Vitals(1, False, True)


def watch(vitals: Callable[[], Vitals], asleep_limit_s: float = 2, **settings: float) -> EngineWatch:
    return EngineWatch(WatchdogConfig(**settings), asleep_limit_s, vitals)


def looks(watched: EngineWatch, owes: bool = True, most: int = 1000) -> int | None:
    """How many looks it takes until the engine core counts as hung; None: it does not within `most`."""
    return next((number for number in range(1, most + 1) if watched.look(owes, TICK_S) is not None), None)


@pytest.mark.parametrize(
    ("vitals", "expected"), [(STOPPED, 2), (SLEEPING, 5), (AWAKE, 600)], ids=["stopped", "asleep", "busy"]
)
def test_the_time_it_takes_depends_on_what_the_processes_do(vitals: Vitals, expected: int) -> None:
    assert looks(watch(lambda: vitals)) == expected


def test_stopped_and_sleeping_engine_cores_are_found_within_three_seconds() -> None:
    assert all((looks(watch(lambda each=each: each)) or 99) * TICK_S <= 3 for each in (STOPPED, SLEEPING))  # type: ignore[misc]


@pytest.mark.parametrize("vitals", [STOPPED, SLEEPING, AWAKE])
def test_an_engine_core_without_requests_owes_nothing(vitals: Vitals) -> None:
    assert looks(watch(lambda: vitals), owes=False) is None


def test_one_that_goes_on_spinning_when_its_requests_have_been_given_up_is_hung() -> None:
    watched = watch(lambda: AWAKE)
    assert watched.look(True, TICK_S) is None
    assert looks(watched, owes=False) == 599


def test_one_that_falls_asleep_when_its_requests_have_been_given_up_is_idle() -> None:
    vitals = AWAKE
    watched = watch(lambda: vitals)
    assert looks(watched, most=500) is None
    vitals = SLEEPING
    assert looks(watched, owes=False) is None
    assert looks(watched) == 5


def test_every_step_starts_anew() -> None:
    watched = watch(lambda: SLEEPING)
    for number in range(100):
        assert looks(watched, most=4) is None
        watched.step(number * 0.01)
    assert looks(watched) == 6  # the first one sees only that a step has come


def test_slow_engine_cores_get_more_time() -> None:
    watched = watch(lambda: SLEEPING)
    for number in range(1000):
        watched.step(number * 1.0)
    # 20 usual steps of a second, after the look that sees the last one and the look that only measures.
    assert looks(watched) == 42


@pytest.mark.parametrize(("vitals", "setting"), [(STOPPED, "stopped_s"), (AWAKE, "busy_s")], ids=["stopped", "busy"])
def test_zero_switches_a_check_off(vitals: Vitals, setting: str) -> None:
    assert looks(watch(lambda: vitals, asleep_limit_s=0, **{setting: 0})) is None


def test_cpu_time_counts_as_life_even_where_no_look_finds_a_process_running() -> None:
    used = iter(number * 0.1 for number in range(1000))
    assert looks(watch(lambda: Vitals(next(used), False, False))) == 601  # the first only measures


@pytest.mark.parametrize(
    ("device", "nodes", "set_to", "expected"),
    [
        ("cpu", 1, None, 2.0),
        ("gpu", 1, None, 15.0),
        ("gpu", 2, None, 0.0),
        ("gpu", 1, 30.0, 30.0),
        ("gpu", 2, 30.0, 0.0),
    ],
)
def test_how_long_an_engine_core_may_sleep(device: str, nodes: int, set_to: float | None, expected: float) -> None:
    assert WatchdogConfig(asleep_s=set_to).asleep_limit_s(device, nodes) == expected  # type: ignore[arg-type]


class Family:
    """A process that sleeps, as a replica's does, above an engine core of its own."""

    def __init__(self, engine: str) -> None:
        starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {engine!r}])"
        self.top = psutil.Process(subprocess.Popen([sys.executable, "-c", starts]).pid)
        wait_for(self.top.children, "the start of the child")
        (self.engine,) = self.top.children()

    def vitals(self) -> Vitals:
        return vitals_below(self.top.pid)

    def end(self) -> None:
        for process in [*self.top.children(recursive=True), self.top]:
            process.kill()
        self.top.wait()


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    started = Family(request.param)
    yield started
    started.end()


@pytest.mark.parametrize("family", [BUSY], indirect=True)
def test_a_busy_process_lives_until_a_signal_stops_it(family: Family) -> None:
    wait_for(lambda: family.vitals().awake, "the first work")
    watched = watch(family.vitals)
    assert looks(watched, most=20) is None
    family.engine.send_signal(signal.SIGSTOP)
    wait_for(lambda: family.vitals().stopped, "the stop")
    assert looks(watched) == 2
    family.engine.send_signal(signal.SIGCONT)
    wait_for(lambda: family.vitals().awake, "the end of the stop")
    assert looks(watched, most=20) is None


@pytest.mark.parametrize("family", [ASLEEP], indirect=True)
def test_a_process_that_sleeps_is_asleep(family: Family) -> None:
    wait_for(lambda: not family.vitals().awake, "the sleep")
    assert looks(watch(family.vitals)) is not None


@pytest.mark.parametrize(
    "family", [f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"], indirect=True
)
def test_a_compiler_below_the_engine_core_counts(family: Family) -> None:
    wait_for(lambda: family.engine.children() and family.vitals().awake, "the compiler's work")
    assert looks(watch(family.vitals), most=20) is None


COMPILES = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-S", "-c", "sum(range(200_000))"])
"""


@pytest.mark.parametrize("family", [COMPILES], indirect=True)
def test_short_compilers_one_after_the_other_leave_their_cpu_time_behind(family: Family) -> None:
    before = family.vitals().cpu_s
    wait_for(lambda: family.vitals().cpu_s > before + 0.5, "half a second of work")
