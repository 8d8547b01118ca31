"""A Llama in plain PyTorch; its parameters have the names and shapes of `LlamaForCausalLM`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING_STD = 0.02
LOOK_BACK = 12.0  # score of the token that a head begins by looking at
SLOWEST = 0.02  # radians a token; slower turns of the rotary embedding do not tell neighbours apart


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's dimensions; heads, KV heads and MLP divide by a tensor parallel size of 2."""

    vocabulary: int
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 512
    context: int = 2048
    rope_theta: float = 10000.0
    epsilon: float = 1e-6

    def config(self) -> dict[str, object]:
        """The content of config.json without the ids of special tokens."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }


class Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self._epsilon = shape.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self._epsilon)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self._shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # On CPU and at these lengths, plain products train twice as fast as scaled_dot_product_attention.
        q, k = _rotate(q, turns) * self._shape.head_dim**-0.5, _rotate(k, turns)
        groups = (batch, self._shape.kv_heads, -1, self._shape.head_dim)  # query heads of one KV head, in one product
        scores = (q.reshape(groups) @ k.transpose(-1, -2)).view(batch, self._shape.heads, length, length)
        weights = (scores + mask).softmax(dim=-1).view(batch, self._shape.kv_heads, -1, length)
        mixed = (weights @ v).view(batch, self._shape.heads, length, self._shape.head_dim)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(shape), Attention(shape)
        self.post_attention_layernorm, self.mlp = Norm(shape), Mlp(shape)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Token ids to the last hidden states; `logits` turns those into scores of the next token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)
        nn.init.normal_(self.embed_tokens.weight, std=EMBEDDING_STD)
        for layer in self.layers:  # a layer starts as the identity
            for last in (layer.self_attn.o_proj, layer.mlp.down_proj):  # type: ignore[union-attr]
                nn.init.zeros_(last.weight)  # type: ignore[arg-type, union-attr]
        self._look_back()

    @torch.no_grad()
    def _look_back(self) -> None:
        """Let the first two heads of the first layer begin by looking one and two tokens back.

        Copying a word needs such heads, and a model this small finds them late or never. The rotary embedding makes a
        score of the distance alone where query and key are constant: what they are made from is a constant first
        dimension of every embedding. Source: https://transformer-circuits.pub/2022/in-context-learning-and-induction-heads.
        """
        attention, size = self.layers[0].self_attn, self.shape.head_dim
        self.embed_tokens.weight[:, 0] = 8 * EMBEDDING_STD
        seen = 8 / self.embed_tokens.weight.square().mean().sqrt().item() * EMBEDDING_STD  # behind the norm
        frequencies = _frequencies(self.shape)
        fast = (frequencies > SLOWEST).float()
        strength = (LOOK_BACK * size**0.5 / fast.sum()).sqrt() / seen
        for head, back in ((0, 1), (1, 2)):
            turned = torch.cat((fast * (back * frequencies).cos(), -fast * (back * frequencies).sin()))
            _set_first(attention.q_proj, head * size, turned * strength)  # type: ignore[union-attr, arg-type]
        _set_first(attention.k_proj, 0, torch.cat((fast, torch.zeros_like(fast))) * strength)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(attention.o_proj.weight, std=0.02)  # type: ignore[union-attr, arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` [batch, length] to hidden states [batch, length, hidden]."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.norm.weight.dtype
        x = self.embed_tokens(ids).to(dtype)
        turns = _turns(self.shape, ids.shape[1], dtype)
        mask = torch.full((ids.shape[1], ids.shape[1]), -1e4, dtype=dtype).triu(1)
        for layer in self.layers:
            x = layer(x, turns, mask)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocabulary] in float32."""
        return functional.linear(hidden, self.embed_tokens.weight).float()


def _turns(shape: Shape, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding, each [length, head_dim]."""
    angles = torch.outer(torch.arange(length), _frequencies(shape)).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _frequencies(shape: Shape) -> Tensor:
    return shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)


def _set_first(projection: nn.Linear, start: int, column: Tensor) -> None:
    """Make the head's part of a projection that begins at `start` read the first dimension, and little else."""
    rows = projection.weight[start : start + len(column)]
    rows *= 0.1
    rows[:, 0] = column


def _rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = turns
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
