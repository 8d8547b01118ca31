"""A model's settings as vLLM's own parser reads them."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config import ModelConfig, load_model
from serve_app.replica.arguments import engine_config, parse_arguments, vllm_flags
from serve_app.settings import ConfigError


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


def test_vllm_is_told_of_the_adapters() -> None:
    adapters = {"law": "/adapters/law", "m/med:2": "adapters/med"}
    parsed = parse_arguments(model(adapters=adapters, vllm_args={"max_lora_rank": 32}))
    assert [(each.name, each.path) for each in parsed.lora_modules] == [
        ("law", "/adapters/law"),
        ("m/med:2", str(Path("adapters/med").resolve())),
    ]
    assert (parsed.enable_lora, parsed.max_loras, parsed.max_lora_rank) == (True, 2, 32)
    odd = parse_arguments(model(adapters={"law": "/a=b,c"}))
    assert [each.path for each in odd.lora_modules] == ["/a=b,c"]
    assert parse_arguments(model(adapters=adapters, vllm_args={"max_loras": 1})).max_loras == 1
    assert parse_arguments(model(adapters={f"a{n}": "/a" for n in range(20)})).max_loras == 8


@pytest.mark.parametrize(("nodes", "backend"), [(1, None), (2, "ray")])
def test_vllm_uses_its_ray_executor_over_several_nodes_only(nodes: int, backend: str | None) -> None:
    arguments = parse_arguments(model(device="gpu", tensor_parallel_size=2, pipeline_parallel_size=3, nodes=nodes))
    assert (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (2, 3)
    assert arguments.distributed_executor_backend == backend


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"no_such_flag": 1}, "^model demo: vllm_args: unrecognized arguments: --no-such-flag"),
        ({"structured_outputs_config": {"x": 1}}, "^model demo: vllm_args: argument --structured-outputs-config"),
        ({"max_model_len": 999999}, r"^model demo: User-specified max_model_len \(999999\) is greater than"),
    ],
)
def test_what_vllm_refuses_is_said_in_one_line(flags: dict[str, object], message: str) -> None:
    demo = load_model("demo")
    refused = demo.model_copy(update={"vllm_args": {**demo.vllm_args, **flags}})
    with pytest.raises(ConfigError, match=message) as caught:
        engine_config(refused)
    assert "\n" not in str(caught.value)


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"^model nope/nope: ") as caught:
        engine_config(load_model("nope/nope"))
    assert "\n" not in str(caught.value)
