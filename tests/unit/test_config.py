"""Settings: what a model name means, what the environment changes, and which mistakes stop the start."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.check import check
from serve_app.config import ModelConfig, ServiceConfig, check_source, load_model
from serve_app.settings import ConfigError


def directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def test_the_default_is_the_demo_model() -> None:
    assert [model.id for model in ServiceConfig().resolve({})] == ["demo"]


def test_default_model_replaces_the_list(tmp_path: Path) -> None:
    source = directory(tmp_path / "my-model")
    (model,) = ServiceConfig(models=["demo", "llama-3.1-8b"]).resolve({"DEFAULT_MODEL": str(source)})
    assert (model.id, model.source) == ("my-model", str(source))


@pytest.mark.parametrize(
    ("name", "id_"), [("my model", "my-model"), ("a+b", "a-b"), ("x@1", "x-1"), ("é", "é"), ("a" * 200, "a" * 128)]
)
def test_a_directory_of_any_name_has_an_id(tmp_path: Path, name: str, id_: str) -> None:
    source = directory(tmp_path / name)
    model = load_model(str(source))
    assert (model.id, model.source) == (id_, str(source))


def test_a_hub_id_is_served_under_its_own_name() -> None:
    model = load_model("acme/Chat-1.5B")
    assert (model.id, model.source) == ("acme/Chat-1.5B", "acme/Chat-1.5B")


def test_a_model_file_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("id: mine\nsource: acme/chat\ntensor_parallel_size: 2\n")
    assert load_model(str(file)).world_size == 2


def test_variables_override_every_model() -> None:
    models = ServiceConfig(models=["demo"]).resolve({"TP_SIZE": "2", "MAX_MODEL_LEN": "512"})
    assert [(m.tensor_parallel_size, m.vllm_args["max_model_len"]) for m in models] == [(2, 512)]
    assert models[0].vllm_args["dtype"] == "float32"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
def test_a_variable_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^TP_SIZE must be a whole number above 0$"):
        ServiceConfig().resolve({"TP_SIZE": value})


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no model 'nope'.*demo"):
        load_model("nope")


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_an_adapter_with_the_id_of_a_model() -> None:
    models = [{"id": name, "source": "acme/m", "adapters": {"law": "/law"}} for name in ("one", "two")]
    with pytest.raises(ConfigError, match="law is listed more than once"):
        ServiceConfig.model_validate({"models": models}).resolve({})


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    model = ModelConfig(id="m", source="acme/m", adapters={"law": str(tmp_path)})
    with pytest.raises(ConfigError, match="model m: adapters: law: no adapter in directory"):
        check_source(model)
    (tmp_path / "adapter_config.json").write_text("{}")
    check_source(model)
    (tmp_path / "adapter_config.json").write_text("not JSON")
    with pytest.raises(ConfigError, match=r"model m: adapters: law: .*adapter_config.json cannot be read"):
        check_source(model)


@pytest.mark.parametrize("ranks", [{"r": 32}, {"r": 8, "rank_pattern": {"q_proj": 32}}])
def test_an_adapter_of_a_rank_that_vllm_would_not_load(tmp_path: Path, ranks: dict[str, Any]) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ranks))
    model = ModelConfig(id="m", source="acme/m", adapters={"law": str(tmp_path)})
    with pytest.raises(ConfigError, match="adapters: law: its rank is 32: set vllm_args: max_lora_rank, which is 16"):
        check_source(model)
    check_source(model.model_copy(update={"vllm_args": {"max_lora_rank": 32}}))


def test_the_same_id_twice() -> None:
    with pytest.raises(ConfigError, match="demo is listed more than once"):
        ServiceConfig(models=["demo", "demo"]).resolve({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_args": {"port": 1}}, "port is set by the service"),
        ({"vllm_args": {"tensor_parallel_size": 2}}, "tensor_parallel_size is set by the service"),
        ({"num_gpus": 0.5, "tensor_parallel_size": 2}, "num_gpus: a fraction"),
        ({"nodes": 2, "device": "cpu"}, "nodes: 2 needs device gpu"),
        ({"tensor_parallel": 2}, "Extra inputs are not permitted"),
        ({"replicas": 0}, "greater than 0"),
    ],
)
def test_a_wrong_model_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"id": "m", "source": "acme/m", **settings})


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"device": "cpu"}, 0),
        ({"device": "gpu"}, 1),
        ({"device": "gpu", "num_gpus": 0.5}, 0.5),
        ({"device": "gpu", "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4),
    ],
)
def test_gpus_that_a_replica_reserves(settings: dict[str, object], gpus: float) -> None:
    assert ModelConfig.model_validate({"id": "m", "source": "acme/m", **settings}).reserved_gpus() == gpus


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: []", "no application imports serve_app.app:build"),
        ("applications:", "no application imports serve_app.app:build"),
        ("applications: [chat]", "no application imports serve_app.app:build"),
        ("a: [", "not valid YAML"),
        ("applications: [{import_path: 'serve_app.app:build', args: {model: [demo]}}]", "args: model: Extra"),
        ("applications: [{import_path: 'serve_app.app:build', args: {models: [/no/such]}}]", "no model '/no/such'"),
    ],
)
def test_check_says_what_is_wrong_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        check(file)
    assert "\n" not in str(caught.value)


def test_check_accepts_the_shipped_config() -> None:
    check(Path("serve_config.yaml"))


def config_of(folder: Path, *models: dict[str, object]) -> Path:
    """A Serve config file with these models."""
    whole = [{"id": f"m{place}", "source": "acme/m", "device": "gpu", **model} for place, model in enumerate(models)]
    file = folder / "serve.yaml"
    application = {"import_path": "serve_app.app:build", "args": {"models": whole}}
    file.write_text(yaml.safe_dump({"applications": [application]}))
    return file


@pytest.mark.parametrize(
    ("models", "gpus", "message"),
    [
        ([{}], 0, r"\(m0 1\) than this machine has \(0\): choose another model, or one with `device: cpu`$"),
        ([{"tensor_parallel_size": 8}], 1, r"\(m0 8\) than this machine has \(1\): .* a smaller TP_SIZE$"),
        ([{"tensor_parallel_size": 2, "nodes": 2}], 1, r"\(m0 2\)"),
        ([{"replicas": 3}], 2, r"\(m0 3\)"),
        ([{}, {"device": "cpu"}, {"num_gpus": 0.5}], 1, r"\(m0 1, m2 0\.5\)"),
    ],
)
def test_check_refuses_models_that_would_wait_for_gpus_for_ever(
    tmp_path: Path, models: list[dict[str, object]], gpus: int, message: str
) -> None:
    file = config_of(tmp_path, *models)
    with pytest.raises(ConfigError, match=r"^models need more GPUs " + message):
        check(file, gpus)
    check(file)  # for a cluster, which this machine knows nothing of


def test_check_accepts_models_that_fit(tmp_path: Path) -> None:
    check(config_of(tmp_path, {"num_gpus": 0.5, "replicas": 2}, {"device": "cpu"}, {}), 2)
    check(config_of(tmp_path, {"device": "cpu"}), 0)
