"""Greedy answers of the demo model without vLLM: many prompts at once, with a KV cache."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from serve_app.demo.llama import Llama
from serve_app.demo.template import EOS, HEADER, NO_THOUGHT, Conversation

ROWS = 64  # prompts of one batch


def answers(
    model: Llama, tokenizer: Tokenizer, prompts: Sequence[Conversation], think: bool = False, most: int = 700
) -> list[str]:
    """The model's answer to each conversation that ends with a user's or a tool's turn, in order.

    `most`: tokens after which an answer is cut. Neighbours with answers of one length are answered fastest.
    """
    decoder = _as_transformers(model)
    texts = ["".join(text for text, _ in prompt.pieces()) + f"{HEADER}assistant\n" for prompt in prompts]
    rows = [tokenizer.encode(text + ("" if think else NO_THOUGHT), add_special_tokens=False).ids for text in texts]
    (eos,) = tokenizer.encode(EOS, add_special_tokens=False).ids
    found = [ids for at in range(0, len(rows), ROWS) for ids in _generate(decoder, rows[at : at + ROWS], eos, most)]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found]


def _as_transformers(model: Llama) -> Any:
    """The same model with transformers' KV cache and generation."""
    config: dict[str, Any] = model.shape.config()
    decoder: Any = LlamaForCausalLM(LlamaConfig(**config))  # type: ignore[no-untyped-call]
    decoder.load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()}, strict=False)
    decoder.tie_weights()
    return decoder.eval()


def _generate(decoder: Any, rows: list[list[int]], eos: int, most: int) -> list[list[int]]:
    length = max(map(len, rows))
    ids = torch.tensor([[eos] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        out = decoder.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=eos, pad_token_id=eos
        )
    return [_until(row, eos) for row in out[:, length:].tolist()]


def _until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos)] if eos in row else row
