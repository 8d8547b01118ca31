"""What vLLM's metrics show of several replicas."""

from serve_app.fleet.load import FleetLoad
from serve_app.vllm_seam import SchedulerStats


def stats(running: int, waiting: int = 0, usage: float = 0.0) -> SchedulerStats:
    return SchedulerStats(num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=usage)


def gauges(stats: SchedulerStats) -> tuple[int, int, float]:
    return stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage


def test_requests_are_added_and_usage_is_the_mean() -> None:
    load, second = FleetLoad(), stats(3, 1, 0.5)
    load.combine("a", stats(2, 0, 0.25), {"a", "b"})
    load.combine("b", second, {"a", "b"})
    assert gauges(second) == (5, 1, 0.375)


def test_a_replica_that_is_gone_counts_no_longer() -> None:
    load, last = FleetLoad(), stats(0)
    load.combine("a", stats(2), {"a", "b"})
    load.combine("b", last, {"b"})
    assert gauges(last) == (0, 0, 0.0)


def test_a_replica_counts_before_it_is_known_to_run() -> None:
    load, first = FleetLoad(), stats(1)
    load.combine("a", first, set())
    assert gauges(first) == (1, 0, 0.0)
