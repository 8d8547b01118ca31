"""A model directory as vLLM and transformers read it."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from serve_app.demo.llama import Llama, Shape
from serve_app.demo.template import BOS, CHAT_TEMPLATE, EOS

WEIGHTS = "model.safetensors"


def write_model(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write weights (bfloat16), tokenizer, chat template and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ends = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    _write_json(folder / "config.json", model.shape.config() | ends)
    _write_json(folder / "generation_config.json", ends)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "model_max_length": model.shape.context,
            "clean_up_tokenization_spaces": False,
        },
    )
    weights = {f"model.{name}": value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # made for this user alone


def read_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """The model in float32 and its tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    model = Llama(
        Shape(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            mlp=config["intermediate_size"],
        )
    )
    weights = load_file(folder / WEIGHTS)
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def digest(folder: Path) -> str:
    """SHA-256 of the weights."""
    return sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
