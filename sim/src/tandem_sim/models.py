"""Models by their shape: what a step computes and reads, from their published configurations (config.json).

    llama-3-8b     meta-llama/Llama-3.1-8B    8.03 B parameters, 32 layers, 32 heads, 8 KV heads of 128
    llama-3-70b    meta-llama/Llama-3.1-70B   70.55 B parameters, 80 layers, 64 heads, 8 KV heads of 128
    qwen3-32b      Qwen/Qwen3-32B             32.76 B parameters, 64 layers, 64 heads, 8 KV heads of 128
    gpt-oss-120b   openai/gpt-oss-120b        116.8 B parameters, 5.1 B active (4 of 128 experts), 36 layers, 64 heads,
                                              8 KV heads of 64; MXFP4 experts, 60.8 GiB checkpoint

Llama 3.1 has the shape of Llama 3 and a context of 131,072 tokens, which the traces need. KV is bf16:
2 · layers · KV heads · head size · 2 bytes per token. Every second layer of gpt-oss attends to 128 tokens only; those
layers' KV does not grow with the sequence and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """One model, served by workers of `tensor_parallel` GPUs each."""

    name: str
    num_active_params: float  # multiplied with each token
    weight_bytes: float
    expert_bytes: float = 0.0  # part of `weight_bytes` of which a token reads `expert_share` only
    expert_share: float = 1.0
    num_layers: int
    num_growing_layers: int  # whose attention goes over the whole sequence
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_context_tokens: int
    tensor_parallel: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in bf16."""
        return 2 * self.num_growing_layers * self.num_kv_heads * self.head_size * 2

    @property
    def attention_flops(self) -> float:
        """Of one token attending to one other: a product with its key and one with its value, in every head."""
        return 4.0 * self.num_growing_layers * self.num_heads * self.head_size

    def weight_bytes_read(self, num_tokens: int) -> float:
        """Weights that a step of this many tokens reads; experts are taken to be chosen independently."""
        unread = (1.0 - self.expert_share) ** num_tokens if self.expert_bytes else 0.0
        return self.weight_bytes - self.expert_bytes * unread


MODELS = {
    model.name: model
    for model in (
        ModelShape(
            name="llama-3-8b",
            num_active_params=8.03e9,
            weight_bytes=2 * 8.03e9,
            num_layers=32,
            num_growing_layers=32,
            hidden_size=4096,
            num_heads=32,
            num_kv_heads=8,
            head_size=128,
            max_context_tokens=131_072,
            tensor_parallel=1,
        ),
        ModelShape(
            name="llama-3-70b",
            num_active_params=70.55e9,
            weight_bytes=2 * 70.55e9,
            num_layers=80,
            num_growing_layers=80,
            hidden_size=8192,
            num_heads=64,
            num_kv_heads=8,
            head_size=128,
            max_context_tokens=131_072,
            tensor_parallel=4,
        ),
        ModelShape(
            name="qwen3-32b",
            num_active_params=32.76e9,
            weight_bytes=2 * 32.76e9,
            num_layers=64,
            num_growing_layers=64,
            hidden_size=5120,
            num_heads=64,
            num_kv_heads=8,
            head_size=128,
            max_context_tokens=40_960,
            tensor_parallel=2,
        ),
        ModelShape(
            name="gpt-oss-120b",
            num_active_params=5.13e9,
            weight_bytes=65.3e9,
            expert_bytes=61.0e9,
            expert_share=4 / 128,
            num_layers=36,
            num_growing_layers=18,
            hidden_size=2880,
            num_heads=64,
            num_kv_heads=8,
            head_size=64,
            max_context_tokens=131_072,
            tensor_parallel=1,
        ),
    )
}
