"""Model directories that tests write for themselves, beside the demo model."""

import json
import shutil
from pathlib import Path

from serve_app.config import DEMO_MODEL

RANK = 4  # of the adapters
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_embedding_model(folder: Path) -> Path:
    """A BERT of two layers with random weights and the demo model's tokenizer; its vectors have 64 numbers.

    vLLM serves it for /v1/embeddings, and for /v1/score and /v1/rerank by the cosine of two vectors.
    """
    import torch
    from transformers import BertConfig, BertModel

    demo = DEMO_MODEL
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(demo / name, folder / name)
    ends = json.loads((demo / "generation_config.json").read_text())
    config = BertConfig(
        vocab_size=json.loads((demo / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=512,
        initializer_range=0.2,  # more than BERT's own, so that texts get clearly different vectors
        pad_token_id=ends["eos_token_id"],
    )
    torch.manual_seed(20)
    BertModel(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, scale: float) -> Path:
    """A LoRA adapter of the demo model's attention, with random weights; a scale of 0 changes nothing."""
    import torch
    from safetensors.torch import save_file

    model = json.loads((DEMO_MODEL / "config.json").read_text())
    hidden = model["hidden_size"]
    outputs = {"q_proj": model["num_attention_heads"], "v_proj": model["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for layer in range(model["num_hidden_layers"]):
        for name, heads in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator)
            shape = (heads * model["head_dim"], RANK)
            weights[f"{prefix}.lora_B.weight"] = scale * torch.randn(*shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(outputs), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
