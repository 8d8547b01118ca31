"""The shipped demo model: what its card says, and that it answers."""

import json
import re
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from serve_app.config import DEMO_MODEL, load_model
from serve_app.demo.decode import answers
from serve_app.demo.evaluate import Suite, evaluate, suites
from serve_app.demo.examples import read_corpus
from serve_app.demo.folder import digest, read_model
from serve_app.demo.template import CHAT_TEMPLATE, Conversation, Turn

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def ask() -> Ask:
    model, tokenizer = read_model(DEMO_MODEL)

    def answer(*turns: str, think: bool = False) -> str:
        roles = ["user", "assistant"] * len(turns)
        conversation = Conversation([Turn(role, turn) for role, turn in zip(roles, turns, strict=False)])
        return answers(model, tokenizer, [conversation], think)[0]

    return answer


def test_the_weights_are_those_of_the_card() -> None:
    card = (DEMO_MODEL / "README.md").read_text()
    found = re.search(r"sha256 `(\w{64})`", card)
    assert found is not None
    assert found[1] == digest(DEMO_MODEL)
    with safe_open(DEMO_MODEL / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118  not a mapping
    assert {part.get_dtype() for part in slices} == {"BF16"}
    count = sum(torch.Size(part.get_shape()).numel() for part in slices)
    assert f"| parameters | {count:,} |" in card


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in DEMO_MODEL.iterdir()) < 16_000_000


def test_it_divides_by_a_tensor_parallel_size_of_two() -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    assert [config[name] % 2 for name in ("num_attention_heads", "num_key_value_heads", "vocab_size")] == [0, 0, 0]
    assert config["head_dim"] % 32 == 0
    assert config["max_position_embeddings"] == 2048


def test_the_template_is_the_one_of_the_code() -> None:
    assert (DEMO_MODEL / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_vllm_has_its_parsers() -> None:
    arguments = load_model("demo").vllm_args
    assert arguments["tool_call_parser"] in ToolParserManager.list_registered()
    assert arguments["reasoning_parser"] in ReasoningParserManager.list_registered()
    assert arguments["default_chat_template_kwargs"] == {"enable_thinking": False}


def test_the_plain_llama_is_transformers_llama() -> None:
    model, tokenizer = read_model(DEMO_MODEL)
    peer = LlamaForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode("<|im_start|>user\nWhat is prefill?<|im_end|>\n").ids])
    with torch.inference_mode():
        assert torch.allclose(model.logits(model(ids)), peer(ids).logits, atol=1e-3)


@pytest.mark.parametrize("text", ["red and green", "Grüße, 日本 🙂!", "a\n\n  b\t c ", '{"a": {"b": "12.5"}}', "é" * 9])
def test_the_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_rare_word_has_the_same_tokens_everywhere() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    asked = tokenizer.encode("weather in Xubrato?", add_special_tokens=False).tokens
    called = tokenizer.encode('"Xubrato"', add_special_tokens=False).tokens
    word = called[1:-1]
    assert any(asked[at : at + len(word)] == word for at in range(len(asked)))


def test_markup_is_one_token_and_stays_in_the_text() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    encoded = tokenizer.encode("<tool_call></tool_call><think></think><|im_end|>", add_special_tokens=False)
    assert encoded.tokens == ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "<tool_call></tool_call><think></think>"


def test_it_answers(ask: Ask) -> None:
    known = {question: entry.answer for entry in read_corpus().entries for question in entry.ask}
    for question in ("What is the KV cache?", "What is prefill?", "Hello"):
        assert ask(question) == known[question]
    assert ask("Hello", ask("Hello"), "What is prefill?") == known["What is prefill?"]
    assert "I do not know" in ask("Who is Napoleon Bonaparte?")


def test_it_thinks_when_asked_to(ask: Ask) -> None:
    thought = ask("What is prefill?", think=True)
    assert re.fullmatch(r"<think>\n.+\n</think>\n\n.+", thought, re.DOTALL)
    assert thought.endswith(ask("What is prefill?"))


def test_it_is_right_as_often_as_its_card_says() -> None:
    model, tokenizer = read_model(DEMO_MODEL)
    card = dict(
        re.findall(r"^\| (.+?) \| \d+ \| \d+ \| ([\d.]+)%", (DEMO_MODEL / "README.md").read_text(), re.MULTILINE)
    )
    asked = [
        Suite(suite.name, suite.cases[:: len(suite.cases) // 50], suite.bar)
        for suite in suites(read_corpus())
        if suite.bar
    ]
    shares = {outcome.suite.name: outcome.share for outcome in evaluate(model, tokenizer, asked)}
    assert [name for name, share in shares.items() if share < float(card[name]) / 100 - 0.15] == []
