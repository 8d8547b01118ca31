"""What must hold for compose.yaml and the Dockerfile, read from the files: no container engine is needed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    found: dict[str, Any] = loaded["services"]
    return found


def test_there_is_a_profile_for_each_kind_of_machine(services: dict[str, Any]) -> None:
    assert {name: service["profiles"] for name, service in services.items()} == {
        "cpu": ["cpu"],
        "gpu": ["gpu"],
    }
    for name, service in services.items():
        assert service["build"]["args"] == {"EXTRA": name}
        assert (REPOSITORY / "configs" / "locks" / f"{name}.txt").exists()


def test_only_this_machine_reaches_the_service(services: dict[str, Any]) -> None:
    port = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["http_options"]["port"]
    for service in services.values():
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert "network_mode" not in service


def test_keys_come_from_the_env_file_only(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["env_file"] == ".env"
        assert "environment" not in service
    assert not re.search(r"(KEY|TOKEN|SECRET|PASSWORD)", DOCKERFILE)


def test_containers_have_no_more_rights_than_they_need(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["user"] == "1000:1000"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service


def test_containers_get_time_and_shared_memory(services: dict[str, Any]) -> None:
    for service in services.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > 120
        assert service["shm_size"].endswith("gb")


def test_health_is_the_service_own_answer(services: dict[str, Any]) -> None:
    for service in services.values():
        kind, *command = service["healthcheck"]["test"]
        assert kind == "CMD"
        assert command[0] == "python"
        assert "http://127.0.0.1:8787/api/healthz" in command[2]


def test_the_gpu_profile_reserves_gpus(services: dict[str, Any]) -> None:
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in services["cpu"]


def test_the_image_runs_as_a_named_user_with_what_the_probes_need() -> None:
    final = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.findall(r"^USER (.+)$", final, re.M) == ["1000:1000"]
    assert "useradd --uid 1000" in final
    (packages,) = re.findall(r"--no-install-recommends (.+) \\", final)
    assert {"bash", "wget", "tini"} <= set(packages.split())
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE


def test_the_image_listens_beyond_itself() -> None:
    expression, replacement = re.findall(r"sed 's/(.+)/(.+)/' serve_config\.yaml", DOCKERFILE)[0]
    changed, count = re.subn(expression, replacement, (REPOSITORY / "serve_config.yaml").read_text())
    assert count == 1
    assert yaml.safe_load(changed)["http_options"]["host"] == "0.0.0.0"


def test_everything_the_image_copies_passes_the_ignore_file() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    assert {name.split("/")[0] for names in copied for name in names.split()} == kept
