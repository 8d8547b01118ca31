"""The demo model: a small Llama with random weights that the project writes itself, so that a first run needs
no model hub. vLLM loads it as any other model directory.

`python -m serve_app.replica.demo_model` writes it if need be and prints its path.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.replica.demo_text import CHAT_TEMPLATE, TRAINING_TEXT

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

FOLDER = "demo-1"  # a new number whenever the files' content changes, so that no old copy is served
VOCABULARY = 1024
BOS, HEADER, EOS = "<|bos|>", "<|im_start|>", "<|im_end|>"
MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = (
    128,
    4,
    4,
    2,
    32,
    256,
)  # all divide by a tensor parallel size of 2


def cache_folder() -> Path:
    """Where written models live: $VLLM_CHAT_CACHE, else ~/.cache/vllm-chat-backend."""
    configured = os.environ.get("VLLM_CHAT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "vllm-chat-backend"


def ensure_demo_model(cache: Path | None = None) -> Path:
    """The demo model's directory, written on first use; safe to call from several processes at once."""
    cache = cache or cache_folder()
    folder = cache / FOLDER
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{FOLDER}.lock"):
        if not folder.is_dir():
            _write_whole(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_whole(folder: Path) -> None:
    """Write beside the folder and rename, so that a half-written model is never seen."""
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _write(unfinished)
        unfinished.chmod(0o755)  # made for this user alone, as the weights; a model is for every user to read
        (unfinished / "model.safetensors").chmod(0o644)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write(folder: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415  torch takes seconds to import; most calls do not write

    tokenizer = _train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ends = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    _write_json(folder / "config.json", _config() | ends)
    _write_json(folder / "generation_config.json", ends)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )
    save_file(_weights(tokenizer), folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _train_tokenizer() -> "Tokenizer":
    """A byte-level BPE tokenizer: every text has tokens, and every token sequence has a text."""
    from tokenizers import (  # noqa: PLC0415
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKUP),
        special_tokens=[BOS, HEADER, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    # Tokens but not special ones: the tool and reasoning parsers read markup in the answer's text.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def _weights(tokenizer: "Tokenizer") -> dict[str, "Tensor"]:
    """Random weights, the same on every call.

    Channel 0 of the residual stream is a constant: every embedding sets it and no layer writes to it. It
    serves the output layer as the bias that Llama does not have.
    """
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(20)

    def normal(*shape: int, std: float) -> "Tensor":
        return torch.randn(*shape, generator=generator) * std

    embeddings, output = normal(VOCABULARY, HIDDEN, std=1.0), normal(VOCABULARY, HIDDEN, std=0.3)
    embeddings[:, 0] = 2.0
    words = set(re.findall(r"[a-z]{3,}", TRAINING_TEXT, re.IGNORECASE))
    output[:, 0] = torch.tensor([_liking(tokenizer, token, words) for token in range(VOCABULARY)])
    weights = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": output,
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        block = {
            "input_layernorm": torch.ones(HIDDEN),
            "self_attn.q_proj": normal(HEADS * HEAD_DIM, HIDDEN, std=0.15),
            "self_attn.k_proj": normal(KV_HEADS * HEAD_DIM, HIDDEN, std=0.15),
            "self_attn.v_proj": normal(KV_HEADS * HEAD_DIM, HIDDEN, std=0.12),
            "self_attn.o_proj": normal(HIDDEN, HEADS * HEAD_DIM, std=0.12),
            "post_attention_layernorm": torch.ones(HIDDEN),
            "mlp.gate_proj": normal(MLP, HIDDEN, std=0.12),
            "mlp.up_proj": normal(MLP, HIDDEN, std=0.12),
            "mlp.down_proj": normal(HIDDEN, MLP, std=0.06),
        }
        block["self_attn.o_proj"][0] = 0
        block["mlp.down_proj"][0] = 0
        weights |= {f"model.layers.{layer}.{name}.weight": value for name, value in block.items()}
    return {name: value.to(torch.bfloat16) for name, value in weights.items()}


def _liking(tokenizer: "Tokenizer", token: int, words: Collection[str]) -> float:
    """A token's weight on the constant channel.

    Whole words are liked best, so that an answer reads as words. The end of the answer, markup, bare white
    space and parts of characters are as good as never chosen freely: answers run to max_tokens and are plain
    text. A grammar that leaves a choice gets the end first, not white space or another tool call.
    """
    text = tokenizer.decode([token], skip_special_tokens=False)
    if text == EOS:
        return -30.0
    if not text.strip() or not text.isascii() or not text.isprintable() or "<" in text:
        return -40.0
    return 0.0 if text[0] == " " and text[1:] in words else -6.0


if __name__ == "__main__":
    print(ensure_demo_model())  # noqa: T201
