"""The gauges of a fleet: what the engine cores of all replicas have running and waiting, together."""

from serve_app.vllm_seam import SchedulerStats


class Gauges:
    """The newest gauges of each replica."""

    def __init__(self) -> None:
        self._of: dict[str, SchedulerStats] = {}

    def clear(self) -> None:
        """Forget all replicas: one is gone, and the others will report again."""
        self._of.clear()

    def combine(self, replica: str, stats: SchedulerStats) -> None:
        """Turn one replica's gauges into the fleet's; its counters are increments and stand as they are."""
        self._of[replica] = SchedulerStats(
            num_running_reqs=stats.num_running_reqs,
            num_waiting_reqs=stats.num_waiting_reqs,
            kv_cache_usage=stats.kv_cache_usage,
        )
        loads = [(each.num_running_reqs, each.num_waiting_reqs, each.kv_cache_usage) for each in self._of.values()]
        running, waiting, usage = (sum(values) for values in zip(*loads, strict=True))
        stats.num_running_reqs, stats.num_waiting_reqs = running, waiting
        stats.kv_cache_usage = usage / len(loads)
