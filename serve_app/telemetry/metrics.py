"""`/metrics`: vLLM's own metrics of every model, and the gateway's, in one Prometheus text."""

from collections.abc import Iterable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

# `Content-Type` of the text format, https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def adopt_vllm_metrics() -> CollectorRegistry:
    """Move the metrics that vLLM has just registered for one model into a registry of their own.

    vLLM keeps them in the process-wide registry and clears that for each engine it builds, so a second model
    would take the first one's away.
    """
    registry = CollectorRegistry(auto_describe=False)
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("vllm:"):
            REGISTRY.unregister(collector)
            registry.register(collector)
    return registry


def exposition(registries: Iterable[CollectorRegistry]) -> bytes:
    """Prometheus text of several registries; families of the same name become one."""
    return generate_latest(_Merged(registries))


class _Merged:
    def __init__(self, registries: Iterable[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for registry in self._registries:
            for metric in registry.collect():
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                family.samples.extend(metric.samples)
        return iter(families.values())
