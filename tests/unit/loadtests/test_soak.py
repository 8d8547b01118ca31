"""What users of a soak do, and when it says that the service has failed."""

import time

from loadtests.memory import Process
from loadtests.soak import failures_of, table
from loadtests.target import Target
from loadtests.users import KINDS, Tally, Users
from tests.unit.loadtests.sse_server import KEY, Script, serving

TIMES = [float(at) for at in range(0, 60, 5)]
GROWING = Process("gateway", 7, TIMES, [100 + at / 36 for at in TIMES])  # by 100 MiB an hour
STEADY = Process("replica-demo", 8, TIMES, [50.0] * len(TIMES))
LATE = Process("replica-demo", 9, [40.0, 45.0, 50.0], [10.0, 20.0, 30.0])


def test_only_a_process_that_grows_too_fast_is_a_failure() -> None:
    found = failures_of([GROWING, STEADY, LATE], warm_up_s=15, most=60, tally=Tally())
    assert found == ["gateway (pid 7) grows by 100 MiB an hour"]
    assert failures_of([GROWING, STEADY, LATE], warm_up_s=15, most=101, tally=Tally()) == []


def test_requests_that_failed_are_failures() -> None:
    tally = Tally()
    tally.errors["read: HTTP 500: no"] += 2
    assert failures_of([STEADY], 15, 60, tally) == ["2 requests failed, read: HTTP 500: no"]


def test_the_table_has_a_row_for_each_process_that_was_there() -> None:
    cells = [list(column.cells) for column in table([GROWING, STEADY, LATE], 15).columns]
    assert cells == [["gateway", "replica-demo"], ["7", "8"], ["100", "50"], ["102", "50"], ["+100.0", "+0.0"]]


async def test_every_kind_of_user_is_at_work() -> None:
    script, tally = Script(), Tally()
    with serving(script) as url:
        users = Users(Target(url, "loopback", KEY), len(KINDS), "[[pace: 1ms]]", time.monotonic() + 0.5, tally)
        await users.run()
    assert set(tally.done) == set(KINDS)
    assert tally.errors == {}
    assert tally.done.total() == len(script.bodies)
    assert sum("top_logprobs" in body for body in script.bodies) == tally.done["read slowly"]


async def test_a_failed_request_is_counted_with_its_reason() -> None:
    tally = Tally()
    with serving(Script(status=503)) as url:
        await Users(Target(url, "loopback", KEY), len(KINDS), "", time.monotonic() + 0.01, tally).run()
    assert tally.done == {}
    assert tally.errors.total() == len(KINDS)
    assert tally.errors["read: HTTP 503: not now"] == 6
