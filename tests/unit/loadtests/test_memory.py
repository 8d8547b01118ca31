"""The slope of a process's memory: least squares over what comes after the warm-up."""

import psutil
import pytest

from loadtests.memory import MemoryWatch, Process, name_of


def test_a_steady_growth_is_its_slope() -> None:
    times = [float(at) for at in range(0, 100, 5)]
    assert Process("gateway", 1, times, [300 + at / 60 for at in times]).slope(0) == pytest.approx(60)


def test_noise_around_a_level_is_no_growth() -> None:
    assert Process("gateway", 1, [0.0, 10, 20, 30, 40], [10.0, 12, 10, 12, 10]).slope(0) == pytest.approx(0)


def test_what_comes_before_the_end_of_the_warm_up_does_not_count() -> None:
    grown = Process("gateway", 1, [0.0, 10, 20, 30, 40, 50], [100.0, 200, 300, 300, 300, 300])
    assert grown.slope(0) == pytest.approx(3600 * 6500 / 1750)
    assert grown.slope(20) == pytest.approx(0)


@pytest.mark.parametrize("times", [[0.0, 10], [11.0, 20, 30, 40]], ids=["too few samples", "came too late"])
def test_a_process_that_was_not_there_long_has_no_slope(times: list[float]) -> None:
    assert Process("gateway", 1, times, [1.0] * len(times)).slope(10) is None


def test_the_processes_below_one_are_watched_by_name() -> None:
    with psutil.Popen(["sleep", "60"]) as sleeping:
        watch = MemoryWatch(psutil.Process())
        for at in (0.0, 5.0, 10.0):
            watch.sample(at)
        sleeping.kill()
        sleeping.wait()
        watch.sample(15.0)
    (found,) = (process for process in watch.processes() if process.pid == sleeping.pid)
    assert (found.name, found.times) == ("sleep", [0.0, 5.0, 10.0])
    assert all(0 < rss < 100 for rss in found.rss_mib)


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        ("ray::ServeReplica:chat:gateway", "gateway"),
        ("ray::ServeController.listen_for_change", "ray::ServeController.listen_for_change"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/s", "raylet"),
        ("/x/bin/python3.11 -u /x/ray/dashboard/agent.py --node-ip-address=127.0.0.1", "python3.11 dashboard/agent.py"),
    ],
)
def test_names(command_line: str, name: str) -> None:
    assert name_of(command_line) == name
