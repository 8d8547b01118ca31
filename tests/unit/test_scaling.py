"""How many replicas a model gets: what its settings say, and what its load calls for."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.config import ModelConfig
from serve_app.fleet.scaling import LoadPolicy, ReplicaLoad

IDLE = ReplicaLoad(seats=10, running=0, waiting=0, kv_cache_usage=0)


def context(ongoing: float, *loads: ReplicaLoad, running: int | None = None, target: int = 7) -> AutoscalingContext:
    """What Serve tells a policy of replicas with these loads."""
    metrics = {name: dict(enumerate(column)) for name, *column in zip(ReplicaLoad._fields, *loads, strict=True)}
    known: Any = {
        "aggregated_metrics": metrics,
        "total_num_requests": ongoing,
        "current_num_replicas": len(loads) if running is None else running,
        "target_num_replicas": target,
    }
    return SimpleNamespace(**known)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("ongoing", "loads", "wanted"),
    [
        (0, [IDLE], 0),
        (8, [IDLE], 1),  # eight of ten seats
        (20, [IDLE, IDLE], 2.5),
        (20, [IDLE, IDLE._replace(seats=30)], 1.25),
        (10, [ReplicaLoad(10, running=5, waiting=5, kv_cache_usage=0.5)], 2),  # ten are there, five can be computed
        (4, [ReplicaLoad(10, running=0, waiting=4, kv_cache_usage=0)], 4),
        (10, [ReplicaLoad(10, 9, 0.5, 0), ReplicaLoad(10, 1, 0.25, 0)], 1.25),  # less than one waits: it is new
        (4, [ReplicaLoad(10, 2, 0, 0.9), ReplicaLoad(10, 2, 0, 1.0)], 2.375),
        (4, [ReplicaLoad(10, 4, 0, 0.4)], 0.5),
    ],
)
def test_replicas_that_a_load_calls_for(ongoing: float, loads: list[ReplicaLoad], wanted: float) -> None:
    policy = LoadPolicy(ongoing=None, kv_cache_usage=0.8)
    assert policy(context(ongoing, *loads)) == (pytest.approx(wanted), {})


def test_a_target_of_ones_own_takes_the_place_of_the_seats() -> None:
    policy = LoadPolicy(ongoing=2, kv_cache_usage=0.8)
    assert policy(context(9, IDLE, IDLE))[0] == 4.5


@pytest.mark.parametrize("target", [8, 10, 500])
def test_a_target_that_no_replica_can_reach_counts_as_the_share_of_the_seats(target: float) -> None:
    policy = LoadPolicy(ongoing=target, kv_cache_usage=0.8)
    assert policy(context(10, IDLE))[0] == 1.25  # all seats are taken, and gateways let no more in


def test_nothing_changes_before_a_replica_has_reported() -> None:
    policy = LoadPolicy(ongoing=None, kv_cache_usage=0.8)
    assert policy(context(500, running=1, target=3)) == (3, {})


def model(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"id": "m", "source": "acme/m", "device": "cpu", **settings})


def test_a_number_is_a_range_that_never_changes() -> None:
    assert model(replicas=3).replicas.options() == {"num_replicas": 3}
    assert model(replicas={"min": 2, "max": 2}).replicas.options() == {"num_replicas": 2}
    assert model().replicas.options() == {"num_replicas": 1}


def test_serve_takes_a_range_and_finds_the_policy() -> None:
    replicas = model(replicas={"min": 0, "max": 4, "target_ongoing_requests": 6, "down_after_s": 30}).replicas
    config = AutoscalingConfig(**replicas.options()["autoscaling_config"])
    assert (config.min_replicas, config.max_replicas, config.downscale_delay_s) == (0, 4, 30)
    policy = _resolve_policy_callable(config.policy)
    assert policy(context(12, IDLE))[0] == 2


def test_a_range_survives_being_written_down() -> None:
    whole = model(replicas={"min": 0, "max": 4}, vllm_args={"max_num_seqs": 3})
    assert ModelConfig.model_validate(whole.model_dump(mode="json")) == whole


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        ({"min": 3, "max": 2}, r"min \(3\) is above max \(2\)"),
        ({"min": -1, "max": 2}, "min"),
        ({"min": 0, "max": 0}, "max"),
        ({"min": 1}, "max"),
        (True, "replicas"),
        ("2", "replicas"),
        ({"min": 1, "max": 2, "most": 3}, "Extra inputs"),
        ({"min": 1, "max": 2, "target_kv_cache_usage": 1.5}, "target_kv_cache_usage"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(replicas: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(replicas=replicas)
