"""The demo model's directory: the same bytes every time, written once, and read by the usual libraries."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from serve_app.replica.demo_model import ensure_demo_model

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo_model(tmp_path_factory.mktemp("cache"))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_another_process_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "serve_app.replica.demo_model"],
        env={"VLLM_CHAT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(printed.strip()) == tmp_path / model.name
    assert digests(tmp_path / model.name) == digests(model)


def test_many_callers_at_once_write_it_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_demo_model(tmp_path), range(4)))
    assert set(folders) == {folders[0]}
    assert sorted(path.name for path in tmp_path.iterdir()) == [folders[0].name, f"{folders[0].name}.lock"]


def test_a_written_model_is_left_alone(tmp_path: Path) -> None:
    folder = ensure_demo_model(tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_demo_model(tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_weights_are_small_and_in_bfloat16(model: Path) -> None:
    with safe_open(model / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118  not a mapping
        assert {part.get_dtype() for part in slices} == {"BF16"}
    assert (model / "model.safetensors").stat().st_size < 2_000_000


def test_every_text_survives_the_tokenizer(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = "Grüße, 世界! 🙂\n\tdef f(x): return x<3"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.get_vocab_size() == json.loads((model / "config.json").read_text())["vocab_size"] == 1024


def test_markup_is_one_token_and_stays_in_the_text(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    encoded = tokenizer.encode("<tool_call></tool_call><think></think><|im_end|>", add_special_tokens=False)
    assert encoded.tokens == ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "<tool_call></tool_call><think></think>"


def test_chat_template_renders_every_kind_of_turn(model: Path) -> None:
    from transformers import AutoTokenizer

    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Sunny."},
    ]
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template(
        messages, tools=[TOOL], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt == (
        "<|bos|><|im_start|>system\nBe kind.\n\nYou may call one or more of these functions:\n<tools>\n"
        '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}'
        "\n</tools>\nFor each call return a JSON object with its name and arguments:\n"
        '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nSunny.\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
