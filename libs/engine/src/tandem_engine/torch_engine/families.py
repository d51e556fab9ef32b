"""The model families, as data: what an architecture's name implies and its config.json does not say.

Defaults are those that the family's published checkpoints rely on when their files leave something out. A new
family that differs from these in values only is one more entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertNames:
    """What the tensors of a mixture of experts are called: `block`.gate, `block`.experts.N.`up`, ..."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What an architecture's name implies."""

    name: str

    # Attention
    head_dim: int = 0  # when config.json does not say; 0 is hidden_size / num_attention_heads
    qkv_bias: bool = False  # when config.json does not say `attention_bias`
    output_bias: bool = False  # whether `attention_bias` covers the output projection too
    qk_norm: bool = False  # RMSNorm over each head of queries and keys, before RoPE
    query_pre_attn_scalar: int = 0  # scores are divided by its root; 0: by the root of head_dim, always
    attention_softcap: float = 0.0  # when config.json does not say `attn_logit_softcapping`

    # Sliding windows
    has_windows: bool = False  # whether `sliding_window` means anything
    sliding_window: int = 0  # when config.json does not name one; 0 is none
    window_is_optional: bool = False  # the window counts only with `use_sliding_window`
    first_window_layer: int = 0  # when config.json does not say `max_window_layers`; 0: it does not count
    window_pattern: int = 0  # each so many layers, the last sees everything; 0: all layers are alike

    # RoPE
    rope_theta: float = 10_000.0
    local_rope_theta: float = 0.0  # of layers with a window; 0: as in the others
    rope_aliases: Mapping[str, str] = field(default_factory=dict)  # other names of a scaling
    partial_rotary: bool = False  # whether `partial_rotary_factor` is known

    # Norms
    rms_norm_eps: float = 1e-6
    unit_offset_norms: bool = False  # the norm's factor is 1 + weight
    post_norms: bool = False  # attention and MLP are normed again before they are added

    # Embeddings and head
    scaled_embeddings: bool = False  # embeddings are multiplied by the root of hidden_size
    tied_embeddings: bool = False  # when config.json does not say `tie_word_embeddings`
    logit_softcap: float = 0.0  # when config.json does not say `final_logit_softcapping`
    caps_logits: bool = False  # whether that key counts

    # MLP
    activation_field: str = "hidden_act"
    activation: str = "silu"
    fused_weights: bool = False  # qkv_proj and gate_up_proj are one tensor each in the checkpoint
    experts: ExpertNames | None = None  # a router chooses among many MLPs
    normalises_shares: bool = False  # when config.json does not say `norm_topk_prob`


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(name="llama", output_bias=True),
    "MistralForCausalLM": Family(name="mistral", has_windows=True, sliding_window=4096),
    "MixtralForCausalLM": Family(
        name="mixtral",
        has_windows=True,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-5,
        experts=ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2"),
        normalises_shares=True,
    ),
    "Qwen2ForCausalLM": Family(
        name="qwen2",
        qkv_bias=True,
        has_windows=True,
        window_is_optional=True,
        sliding_window=4096,
        first_window_layer=28,
    ),
    "Qwen3ForCausalLM": Family(
        name="qwen3",
        output_bias=True,
        qk_norm=True,
        has_windows=True,
        window_is_optional=True,
        sliding_window=4096,
        first_window_layer=28,
    ),
    "Qwen3MoeForCausalLM": Family(
        name="qwen3_moe",
        output_bias=True,
        qk_norm=True,
        has_windows=True,
        window_is_optional=True,
        sliding_window=4096,
        experts=ExpertNames(),
    ),
    "Gemma2ForCausalLM": Family(
        name="gemma2",
        head_dim=256,
        output_bias=True,
        query_pre_attn_scalar=256,
        attention_softcap=50.0,
        has_windows=True,
        sliding_window=4096,
        window_pattern=2,
        unit_offset_norms=True,
        post_norms=True,
        scaled_embeddings=True,
        tied_embeddings=True,
        logit_softcap=30.0,
        caps_logits=True,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
    ),
    "Gemma3ForCausalLM": Family(
        name="gemma3",
        head_dim=256,
        output_bias=True,
        qk_norm=True,
        query_pre_attn_scalar=256,
        has_windows=True,
        sliding_window=4096,
        window_pattern=6,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        unit_offset_norms=True,
        post_norms=True,
        scaled_embeddings=True,
        tied_embeddings=True,
        caps_logits=True,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
    ),
    "Phi3ForCausalLM": Family(  # Phi-3, Phi-3.5, Phi-4 and Phi-4-mini
        name="phi3",
        has_windows=True,
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        partial_rotary=True,
        rms_norm_eps=1e-5,
        fused_weights=True,
    ),
}
