"""A replica that is being stopped: what it tells the gateways, and when its process may end."""

import math
import time

import pytest

from serve_app.replica import leaving
from serve_app.replica.leaving import Leaving


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leaving, "time", made)
    return made


def test_nothing_moves_before_the_stop_and_within_the_grace(clock: Clock) -> None:
    state = Leaving(grace_s=5, timeout_s=120)
    assert (state.begun, state.left_s()) == (False, None)
    state.begin()
    clock.now += 4.9
    assert (state.begun, state.left_s()) == (True, math.inf)


def test_after_the_grace_it_tells_what_is_left(clock: Clock) -> None:
    state = Leaving(grace_s=5, timeout_s=120)
    state.begin()
    clock.now += 20
    state.begin()
    assert state.left_s() == 100
    clock.now += 200
    assert state.left_s() == 0


def test_the_grace_is_at_most_half_of_the_time(clock: Clock) -> None:
    state = Leaving(grace_s=60, timeout_s=10)
    state.begin()
    clock.now += 5
    assert state.left_s() == 5


@pytest.mark.parametrize(
    ("age_s", "idle", "expected"), [(0.5, True, False), (1.5, True, True), (119, False, False), (121, False, True)]
)
def test_a_terminated_process_ends_when_it_has_nothing_left_to_do(
    clock: Clock, age_s: float, idle: bool, expected: bool
) -> None:
    state = Leaving(grace_s=5, timeout_s=120)
    state.terminate()
    clock.now += age_s
    assert state.may_exit(idle) is expected


def test_one_that_serve_stops_is_ended_by_serve(clock: Clock) -> None:
    state = Leaving(grace_s=5, timeout_s=120)
    state.begin()
    clock.now += 1000
    assert state.may_exit(idle=True) is False
    assert time.monotonic() > 0
