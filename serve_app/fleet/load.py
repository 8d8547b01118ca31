"""The fleet's figures as one engine core's: vLLM's metrics above know of no other."""

import time

from serve_app.vllm_seam import EngineCoreOutputs, SchedulerStats


class FleetLoad:
    """The gauges of each replica, as of its last step."""

    def __init__(self) -> None:
        self._load: dict[str, SchedulerStats] = {}

    def forget(self) -> None:
        """A replica is gone: those that are left report again with their next step."""
        self._load.clear()

    def combine(self, replica: str, stats: SchedulerStats) -> None:
        """Turn one replica's gauges into the fleet's; its counters are increments and stand as they are."""
        self._load[replica] = stats
        if len(self._load) == 1:
            return
        loads = [(s.num_running_reqs, s.num_waiting_reqs, s.kv_cache_usage) for s in self._load.values()]
        self._load[replica] = SchedulerStats(
            num_running_reqs=stats.num_running_reqs,
            num_waiting_reqs=stats.num_waiting_reqs,
            kv_cache_usage=stats.kv_cache_usage,
        )
        running, waiting, usage = (sum(values) for values in zip(*loads, strict=True))
        stats.num_running_reqs, stats.num_waiting_reqs = running, waiting
        stats.kv_cache_usage = usage / len(loads)


def translate_times(step: EngineCoreOutputs) -> None:
    """Turn a replica's monotonic clock into this process's: a request's next step may come from another node."""
    shift = time.monotonic() - step.timestamp
    step.timestamp += shift
    for output in step.outputs:
        for event in output.events or ():
            event.timestamp += shift
