"""Every system serves the same model with the same engine arguments, apart from any other Ray here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from loadtests.systems import ENGINE_ARGS, ENGINE_ENV, MODEL, SYSTEMS, UNSET, System

ON_SERVE = ["ours", "rayllm", "rayllm-fast"]
MODEL_DIR = Path("/models/tiny")


@pytest.fixture
def made(tmp_path: Path) -> dict[str, System]:
    systems = {}
    for place, (name, entry) in enumerate(SYSTEMS.items()):
        folder = tmp_path / name
        folder.mkdir()
        systems[name] = entry.make(MODEL_DIR, folder, 18000 + place)
    return systems


def serve_config(system: System) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(Path(system.command[-1]).read_text())
    ServeDeploySchema.model_validate(config)
    return config


def test_the_engine_arguments_are_the_same(made: dict[str, System]) -> None:
    (application,) = serve_config(made["ours"])["applications"]
    model = yaml.safe_load(Path(application["args"]["models"][0]).read_text())
    assert (model["source"], model["id"], model["vllm_args"]) == (str(MODEL_DIR), MODEL, ENGINE_ARGS)
    for name in ("rayllm", "rayllm-fast"):
        (llm,) = serve_config(made[name])["applications"][0]["args"]["llm_configs"]
        assert llm["model_loading_config"] == {"model_id": MODEL, "model_source": str(MODEL_DIR)}
        assert llm["engine_kwargs"] == ENGINE_ARGS
    flags = {"--max-model-len=2048", "--dtype=float32", "--enforce-eager", f"--model={MODEL_DIR}"}
    assert flags <= set(made["bare"].command)
    for system in made.values():
        assert system.environment.items() >= ENGINE_ENV.items()


def test_our_model_file_is_one_the_service_takes(made: dict[str, System]) -> None:
    from serve_app.config import ServiceConfig

    (application,) = serve_config(made["ours"])["applications"]
    (model,) = ServiceConfig.model_validate(application["args"]).resolve({})
    assert (model.id, model.resolved_device()) == (MODEL, "cpu")


def test_nothing_of_the_shell_changes_our_service(made: dict[str, System]) -> None:
    from serve_app.config import ServiceConfig
    from serve_app.gateway.config import check_gateway
    from serve_app.gateway.cors import parse_origins
    from serve_app.gateway.keys.keyring import Keyring
    from serve_app.gateway.limits.limiter import Quota
    from serve_app.ledger.settings import database_url

    ours = made["ours"]
    environment = {**dict.fromkeys(UNSET, "/no/such"), "PROXY_API_KEY": "mine", **ours.environment}
    (application,) = serve_config(ours)["applications"]
    service = ServiceConfig.model_validate(application["args"])
    (model,) = service.resolve(environment)
    assert (model.id, model.tensor_parallel_size, model.vllm_args) == (MODEL, 1, ENGINE_ARGS)
    check_gateway(service.gateway, environment)
    authorization = (b"authorization", f"Bearer {ours.environment['PROXY_API_KEY']}".encode())
    assert Keyring(service.gateway.keys, environment).authenticate([authorization])
    assert service.gateway.limits.quota(environment) == Quota(None, None, None)
    assert service.gateway.limits.redis_url(environment) is None
    assert parse_origins(environment["CORS_ORIGINS"]) == parse_origins("")
    url = database_url(service.gateway.ledger, environment)
    assert url is not None
    assert (url.database or "").startswith(ours.environment["XDG_STATE_HOME"])


def test_every_variable_that_our_service_reads_is_set(made: dict[str, System]) -> None:
    example = Path(".env.example").read_text()
    named = set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", example, re.MULTILINE))
    assert named - made["ours"].environment.keys() == {"HF_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL"}


def test_only_the_fast_ones_have_the_fast_path(made: dict[str, System]) -> None:
    fast = {name for name, system in made.items() if system.environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"}
    assert fast == {"ours", "rayllm-fast"}


def test_the_key_is_in_the_environment_only(made: dict[str, System]) -> None:
    ours = made["ours"]
    key = ours.environment["PROXY_API_KEY"]
    assert ours.target.key == key
    assert key not in " ".join(ours.command) + Path(ours.command[-1]).read_text() + repr(ours.target)
    assert {name for name, system in made.items() if system.target.key} == {"ours"}


@pytest.mark.parametrize("name", ON_SERVE)
def test_nothing_is_shared_with_another_ray(made: dict[str, System], name: str) -> None:
    system = made[name]
    folder = str(Path(system.command[-1]).parent)
    assert system.environment["RAY_ADDRESS"] == "local"
    assert system.environment["RAY_TMPDIR"] == folder
    proxy = {name: value for name, value in system.environment.items() if name.startswith("RAY_SERVE_HAPROXY")}
    proxy.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    assert all(value.startswith(folder) or value.isdigit() for value in proxy.values())
    assert serve_config(system)["http_options"] == {"host": "127.0.0.1", "port": system.ports[0]}


def test_no_two_systems_share_a_port(made: dict[str, System]) -> None:
    ports = [port for system in made.values() for port in system.ports]
    assert len(ports) == len(set(ports)) == 13
