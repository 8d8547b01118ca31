"""kuberay/rayservice.yaml against KubeRay's CRDs, the operator's further rules and serve_config.yaml."""

import copy
import re
from importlib.metadata import version
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from tests.repo import crd

REPOSITORY = crd.REPOSITORY
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
OVERRIDES = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 8787}}
ARGUMENT_OVERRIDES: dict[str, Any] = {
    "models": ["llama-3.1-8b"],
    "gateway": {"replicas": 1, "num_cpus": 1, "drain_timeout_s": 240},
}
SECRET = "chat"


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "kuberay" / "rayservice.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def cluster(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return found


@pytest.fixture(scope="module")
def serve_config(service: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return loaded


@pytest.fixture(scope="module")
def schema(service: dict[str, Any]) -> dict[str, Any]:
    folder = crd.crd_folder()
    if not (folder / "ray.io_rayservices.yaml").exists():
        pytest.skip(f"no KubeRay CRDs in {folder}; set CRD_DIR to a folder with them")
    return crd.schema_of(service["apiVersion"], service["kind"], folder)


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"]["containers"][0] for group in groups(cluster)]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_crd_accepts_it(service: dict[str, Any], schema: dict[str, Any]) -> None:
    assert crd.errors(service, schema) == []


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (["spec"], "serveConfig", ""),
        (["spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0], "prots", []),
        (["spec", "rayClusterConfig", "workerGroupSpecs", 0], "replicas", "one"),
    ],
)
def test_the_crd_check_catches_mistakes(
    service: dict[str, Any], schema: dict[str, Any], path: list[str | int], key: str, value: object
) -> None:
    wrong = place = copy.deepcopy(service)
    for step in path:
        place = place[step]  # type: ignore[index]
    place[key] = value
    assert len(crd.errors(wrong, schema)) == 1


def test_names_fit_what_the_operator_derives_from_them(service: dict[str, Any]) -> None:
    name = service["metadata"]["name"]
    assert len(name) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_ray_version_is_the_one_we_build_with(cluster: dict[str, Any]) -> None:
    assert cluster["rayVersion"] == version("ray")


def test_resources_are_given_once(cluster: dict[str, Any]) -> None:
    counted = {"num-cpus", "num-gpus", "memory", "resources"}
    for group in groups(cluster):
        parameters = group["rayStartParams"]
        assert "labels" not in parameters
        assert not (group.get("resources") and counted & parameters.keys())
        assert all(isinstance(value, str) for value in parameters.values())


def test_worker_counts_are_consistent(cluster: dict[str, Any]) -> None:
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_token_authentication_is_on_and_ray_knows_it(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"]["mode"] == "token"
    major, minor, _ = map(int, cluster["rayVersion"].split("."))
    assert (major, minor) >= (2, 52)


def test_no_setting_waits_for_a_feature_gate(cluster: dict[str, Any]) -> None:
    assert not cluster.keys() & {"networkPolicy", "tlsOptions", "historyServerOptions"}


def test_a_serve_service_will_exist_on_our_port(cluster: dict[str, Any]) -> None:
    for container in containers(cluster):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == 8787
    assert "headService" not in cluster["headGroupSpec"]


def test_the_head_serves_nothing(
    service: dict[str, Any], cluster: dict[str, Any], serve_config: dict[str, Any]
) -> None:
    assert serve_config["applications"][0]["args"]["gateway"]["num_cpus"] > 0
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_head_and_workers_share_image_and_environment(cluster: dict[str, Any]) -> None:
    head, *workers = containers(cluster)
    assert environment(head)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment(head)["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    for name in ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_SERVE_HAPROXY_BINARY_PATH"):
        assert f"    {name}={environment(head)[name]} \\\n" in DOCKERFILE
    for worker in workers:
        assert (worker["image"], worker["env"]) == (head["image"], head["env"])


def test_secrets_come_from_the_secret(cluster: dict[str, Any]) -> None:
    for container in containers(cluster):
        found = environment(container)
        assert found["PROXY_API_KEY"] == {"secretKeyRef": {"name": SECRET, "key": "PROXY_API_KEY"}}
        assert found["HF_TOKEN"]["secretKeyRef"]["name"] == SECRET
        assert not any("KEY" in name or "TOKEN" in name for name, value in found.items() if isinstance(value, str))


def test_pods_outlive_their_drain(service: dict[str, Any], cluster: dict[str, Any]) -> None:
    for group, container in zip(groups(cluster), containers(cluster), strict=True):
        drain = int(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert before + drain < grace
        assert service["spec"]["rayClusterDeletionDelaySeconds"] >= before + drain
        assert ARGUMENT_OVERRIDES["gateway"]["drain_timeout_s"] < drain


def test_pods_have_no_more_rights_than_they_need(cluster: dict[str, Any]) -> None:
    for group, container in zip(groups(cluster), containers(cluster), strict=True):
        pod = group["template"]["spec"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 1000)
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_probes_and_shared_memory_are_set(cluster: dict[str, Any]) -> None:
    for group, container in zip(groups(cluster), containers(cluster), strict=True):
        assert {"livenessProbe", "readinessProbe"} <= container.keys()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["dshm"] == "/dev/shm"  # noqa: S108
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes["dshm"]["emptyDir"]["medium"] == "Memory"
        assert mounts.keys() == volumes.keys()


def test_serve_config_is_the_local_one_apart_from_the_declared_overrides(
    serve_config: dict[str, Any],
) -> None:
    local = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    expected = copy.deepcopy(local) | OVERRIDES
    expected["applications"][0]["args"] |= ARGUMENT_OVERRIDES
    assert serve_config == expected
    assert serve_config["http_options"]["port"] == local["http_options"]["port"]


def test_serve_config_has_no_key_that_serve_would_ignore(serve_config: dict[str, Any]) -> None:
    from serve_app.config import ServiceConfig

    ServeDeploySchema.model_validate(serve_config)
    assert list(ignored_keys(ServeDeploySchema, serve_config)) == []
    for application in serve_config["applications"]:
        ServiceConfig.model_validate(application["args"])


def test_ignored_keys_are_found() -> None:
    config = {"proxy_locaton": 1, "applications": [{"name": "a", "route_prefx": "/", "args": {"free": 1}}]}
    assert list(ignored_keys(ServeDeploySchema, config)) == ["proxy_locaton", "applications.route_prefx"]


def ignored_keys(schema: type[BaseModel], value: dict[str, Any]) -> list[str]:
    """Keys anywhere in `value` that the schema does not know and so would drop without a word."""
    found = [key for key in value if key not in schema.model_fields]
    for name, field in schema.model_fields.items():
        inner = value.get(name)
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                parts = inner if isinstance(inner, list) else [inner]
                for part in parts:
                    if isinstance(part, dict):
                        found += [f"{name}.{key}" for key in ignored_keys(candidate, part)]
    return found
