"""The autoscaling policy: how many replicas a model's load calls for.

Serve runs it in its controller, ten times a second for each model with a range, and adds the delays and the bounds.
It ships this module there by value, so it imports nothing of the service.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ray.serve.config import AutoscalingContext

# Of the requests that a replica computes at once: above it new ones would soon have to wait.
FULL = 0.8


class ReplicaLoad(NamedTuple):
    """What one replica's engine core says of itself, as a mean over the last seconds."""

    seats: float
    """Requests that it computes at once."""
    running: float
    waiting: float
    """Requests that it has and cannot compute yet: for want of seats, or of KV cache."""
    kv_cache_usage: float
    """Share of its KV cache in use, 0 to 1."""


class LoadPolicy:
    """Serve's autoscaling policy of one model."""

    def __init__(self, ongoing: float | None, kv_cache_usage: float) -> None:
        """Args:
        ongoing: requests that a replica should have, a share of its seats at most; None: that share.
        kv_cache_usage: share of the KV cache that a replica should use.
        """
        self._ongoing = ongoing
        self._kv_cache_usage = kv_cache_usage

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        loads = _loads(context.aggregated_metrics or {})
        if not loads:  # none runs, or none has reported yet
            return context.target_num_replicas, {}
        # Gateways let in no more than there are seats: a higher target would never be reached.
        ongoing = FULL * sum(load.seats for load in loads) / len(loads)
        if self._ongoing is not None:
            ongoing = min(ongoing, self._ongoing)
        by_requests = context.total_num_requests / ongoing
        by_engines = self._by_engines(loads) * context.current_num_replicas
        return max(by_requests, by_engines), {}

    def _by_engines(self, loads: Collection[ReplicaLoad]) -> float:
        """By how much the replicas would have to be multiplied for nothing to wait, nor the KV cache to be full."""
        usage = sum(load.kv_cache_usage for load in loads) / len(loads)
        running, waiting = sum(load.running for load in loads), sum(load.waiting for load in loads)
        for_waiting = (running + waiting) / max(running, 1) if waiting >= 1 else 0.0
        return max(usage / self._kv_cache_usage, for_waiting)


def _loads(metrics: Mapping[str, Mapping[Any, float]]) -> list[ReplicaLoad]:
    """The loads of the replicas that have reported all of it."""
    columns = [metrics.get(name, {}) for name in ReplicaLoad._fields]
    replicas = set[Any](columns[0]).intersection(*columns[1:])
    return [ReplicaLoad(*(column[replica] for column in columns)) for replica in replicas]
