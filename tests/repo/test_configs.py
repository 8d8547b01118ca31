"""Every file in configs/models is a model that the service takes and that vLLM's own parser understands."""

from pathlib import Path

import pytest
import yaml
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve_app.config import ModelConfig
from serve_app.replica.arguments import vllm_flags

FOLDER = Path(__file__).parents[2] / "configs" / "models"
FILES = sorted(FOLDER.glob("*.yaml"))


def load(path: Path) -> ModelConfig:
    return ModelConfig.model_validate(yaml.safe_load(path.read_text()))


def test_the_models_we_promise_are_there() -> None:
    promised = {"llama-3.1-8b", "llama-3.1-70b", "qwen2.5-7b", "mistral-7b", "phi-3-mini"}
    assert promised <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_id_is_the_file_name(path: Path) -> None:
    assert load(path).id == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_vllm_knows_every_argument(path: Path) -> None:
    model = load(path)
    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))  # type: ignore[no-untyped-call]
    parsed = parser.parse_args(list(vllm_flags(model.vllm_args)))
    validate_parsed_serve_args(parsed)
    assert {name: getattr(parsed, name) for name in model.vllm_args} == model.vllm_args


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tool_calls_have_a_parser(path: Path) -> None:
    arguments = load(path).vllm_args
    assert arguments.get("enable_auto_tool_choice", False) == ("tool_call_parser" in arguments)
    if "tool_call_parser" in arguments:
        assert arguments["tool_call_parser"] in ToolParserManager.list_registered()


def test_the_large_model_spans_four_gpus() -> None:
    model = load(FOLDER / "llama-3.1-70b.yaml")
    assert (model.tensor_parallel_size, model.reserved_gpus()) == (4, 4)
