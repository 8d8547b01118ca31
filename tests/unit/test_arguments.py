"""A model's settings as vLLM's own parser reads them."""

from typing import Any

import pytest

from serve_app.config import ModelConfig
from serve_app.replica.arguments import parse_arguments, vllm_flags


def model(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"id": "m", "source": "acme/m", **settings})


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (2, ["--some-flag", "2"]),
        (True, ["--some-flag"]),
        (False, ["--no-some-flag"]),
        (None, []),
        ({"a": None}, ["--some-flag", '{"a": null}']),
        (["a", 2], ["--some-flag", "a", "2"]),
        ([{"a": True}, "b=c"], ["--some-flag", '{"a": true}', "b=c"]),
    ],
)
def test_a_value_as_vllms_command_line_takes_it(value: object, flags: list[str]) -> None:
    assert list(vllm_flags({"some_flag": value})) == flags


def test_vllm_reads_a_list_of_objects() -> None:
    lora = {"name": "law", "path": "/adapters/law", "base_model_name": None}
    (parsed,) = parse_arguments(model(vllm_args={"enable_lora": True, "lora_modules": [lora]})).lora_modules
    assert (parsed.name, parsed.path, parsed.base_model_name) == ("law", "/adapters/law", None)


@pytest.mark.parametrize(("nodes", "backend"), [(1, None), (2, "ray")])
def test_vllm_uses_its_ray_executor_over_several_nodes_only(nodes: int, backend: str | None) -> None:
    arguments = parse_arguments(model(device="gpu", tensor_parallel_size=2, nodes=nodes))
    assert (arguments.tensor_parallel_size, arguments.distributed_executor_backend) == (2, backend)
