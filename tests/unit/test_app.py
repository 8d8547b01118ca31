"""What Serve is told of a model's replicas: what they reserve, and the environment of their processes."""

from typing import Any

import pytest
from ray import serve

from cli.launcher.failures import deployment_of
from cli.launcher.service import SERVE
from serve_app.app import ENVIRONMENT, replica_options
from serve_app.config import ModelConfig, load_model
from serve_app.gateway.config import GatewayConfig
from serve_app.replica.deployment import Replica


def options(environment: dict[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    """What Serve is told of a model; Serve itself takes it."""
    made = replica_options(ModelConfig.model_validate({"id": "m", "source": "acme/m", **settings}), environment or {})
    serve.deployment(**made)(Replica)
    return made


def variables(environment: dict[str, str] | None = None, **settings: Any) -> dict[str, str]:
    """The replica's own environment, less what every process of the service has."""
    own: dict[str, str] = options(environment, **settings)["ray_actor_options"]["runtime_env"]["env_vars"]
    assert own.items() >= ENVIRONMENT.items()
    assert own.pop("GLOO_SOCKET_IFNAME") == "lo"
    return {name: value for name, value in own.items() if name not in ENVIRONMENT}


@pytest.mark.parametrize(
    ("settings", "reserved"),
    [
        ({"device": "cpu"}, {"num_cpus": 1}),
        ({"device": "cpu", "tensor_parallel_size": 2, "num_cpus": 8}, {"num_cpus": 8}),
        ({"device": "gpu"}, {"num_cpus": 1, "num_gpus": 1}),
        ({"device": "gpu", "num_gpus": 0.5}, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"device": "gpu", "tensor_parallel_size": 4}, {"num_cpus": 1, "num_gpus": 4}),
    ],
)
def test_a_replica_on_one_node_reserves_what_it_needs_itself(
    settings: dict[str, Any], reserved: dict[str, float]
) -> None:
    made = options(**settings)
    made["ray_actor_options"].pop("runtime_env")
    assert made["ray_actor_options"] == reserved
    assert "placement_group_bundles" not in made


def test_a_replica_over_two_nodes_has_a_bundle_for_each_gpu() -> None:
    made = options(device="gpu", nodes=2, tensor_parallel_size=2, pipeline_parallel_size=2, num_cpus=3)
    assert made["placement_group_bundles"] == [{"CPU": 3, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert made["placement_group_strategy"] == "PACK"
    assert "num_gpus" not in made["ray_actor_options"]
    assert "GLOO_SOCKET_IFNAME" not in made["ray_actor_options"]["runtime_env"]["env_vars"]


def test_the_settings_of_a_model_reach_serve() -> None:
    made = options(id="acme/Chat_1.5", replicas=3, max_ongoing_requests=7, drain_timeout_s=9, device="cpu")
    assert (made["name"], made["num_replicas"]) == ("replica-acme-Chat-1.5", 3)
    assert (made["max_ongoing_requests"], made["graceful_shutdown_timeout_s"]) == (7, 9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"device": "cpu"}, 1),
        ({"device": "gpu"}, 0),
        ({"device": "gpu", "surge": True}, 1),
        ({"device": "cpu", "surge": False}, 0),
    ],
)
def test_a_new_version_starts_first_where_there_is_room(settings: dict[str, Any], expected: int) -> None:
    assert options(**settings)["max_surge_percent"] == expected


def test_a_gateway_that_is_replaced_outlives_its_longest_request() -> None:
    config = GatewayConfig()
    assert config.drain_timeout_s > config.deadlines.total_s
    assert float(SERVE["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= config.drain_timeout_s


@pytest.mark.parametrize("name", ["demo", "acme/Chat_1.5", "a:b//c"])
def test_the_launcher_looks_for_replicas_by_their_name(name: str) -> None:
    assert options(id=name)["name"] == deployment_of(name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"VLLM_CPU_KVCACHE_SPACE": "4"}),
        ({"tensor_parallel_size": 2}, {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
        ({"vllm_args": {"gpu_memory_utilization": 0.2}}, {}),
        ({"vllm_args": {"kv_cache_memory_bytes": 10**9}}, {}),
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": "40", "A": "b"}}, {"VLLM_CPU_KVCACHE_SPACE": "40", "A": "b"}),
    ],
)
def test_a_model_on_cpu_leaves_the_machine_memory(settings: dict[str, Any], expected: dict[str, str]) -> None:
    assert variables(device="cpu", **settings) == expected


def test_the_operators_variables_stay_and_empty_ones_do_not_count() -> None:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "16", "VLLM_CPU_OMP_THREADS_BIND": ""}
    settings = {"device": "cpu", "tensor_parallel_size": 2}
    assert variables(environment, **settings) == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def test_a_model_on_gpu_has_its_own_variables_only() -> None:
    assert variables(device="gpu", tensor_parallel_size=2, env={"A": "b"}) == {"A": "b"}


def test_the_demo_model_keeps_its_own() -> None:
    demo = load_model("demo")
    assert variables(**{**demo.model_dump(), "device": "cpu"}) == demo.env
