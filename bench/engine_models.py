"""Random models in the shapes that `bench/engine.py` measures, and what one pass through them costs at least."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder with tied embeddings in bfloat16."""

    name: str
    architecture: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def least_flops(self, num_tokens: int, num_pairs: int, num_drawn: int) -> float:
        """Operations of a pass: `num_pairs` of query and key positions, logits for `num_drawn` tokens."""
        attention = 4.0 * self.layers * self.heads * self.head_dim * num_pairs
        return 2.0 * (num_tokens * self.layer_weights + num_drawn * self.hidden * self.vocab) + attention

    def least_bytes(self, num_keys: int) -> float:
        """Bytes that a pass has to read: all weights once, and the keys and values of `num_keys` positions."""
        return 2.0 * (self.layer_weights + self.hidden * self.vocab) + self.kv_bytes_per_token * num_keys


SHAPES = {
    "16m": Shape(
        name="16m",
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden=384,
        layers=8,
        heads=6,
        kv_heads=2,
        head_dim=64,
        intermediate=1024,
        vocab=8000,
    ),
    "0.6b": Shape(
        name="0.6b",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        hidden=1024,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        intermediate=3072,
        vocab=151936,
    ),
    "8b": Shape(
        name="8b",
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=14336,
        vocab=128256,
    ),
}


def write_model(shape: Shape, path: Path) -> None:
    """A model directory of this shape with random weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(_config(shape), indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {
        "model.embed_tokens.weight": _random(generator, shape.vocab, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        for part, rows, columns in (
            ("self_attn.q_proj", q, shape.hidden),
            ("self_attn.k_proj", kv, shape.hidden),
            ("self_attn.v_proj", kv, shape.hidden),
            ("self_attn.o_proj", shape.hidden, q),
            ("mlp.gate_proj", shape.intermediate, shape.hidden),
            ("mlp.up_proj", shape.intermediate, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.intermediate),
        ):
            tensors[f"{name}.{part}.weight"] = _random(generator, rows, columns)
        norms = {"input_layernorm": shape.hidden, "post_attention_layernorm": shape.hidden}
        if shape.model_type == "qwen3":
            norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
        for norm, size in norms.items():
            tensors[f"{name}.{norm}.weight"] = torch.ones(size, dtype=torch.bfloat16)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _random(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
