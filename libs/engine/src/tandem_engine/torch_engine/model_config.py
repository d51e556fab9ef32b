"""What a Hugging Face config.json says about a model, in one shape for all families.

What the file does not say is in `families`. Nothing that would change results is ignored: what is not
supported is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem_engine.api import ModelError
from tandem_engine.torch_engine.config_fields import ConfigFields
from tandem_engine.torch_engine.families import FAMILIES, ExpertNames, Family
from tandem_engine.torch_engine.rope_config import RopeConfig, parse_ropes

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsConfig:
    """A mixture of experts: in some layers a router sends each token to a few of many MLPs."""

    names: ExpertNames
    num_experts: int
    num_chosen: int  # experts that each token is sent to
    intermediate_size: int
    normalised: bool  # the shares of the chosen ones add up to 1
    layers: frozenset[int]  # the others have one MLP


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention, RMSNorm, RoPE and gated MLPs."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_context_tokens: int
    rope: RopeConfig
    window_rope: RopeConfig  # of layers with a window
    windows: tuple[int, ...]  # per layer: how many tokens it sees, itself included; 0 sees all
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    query_scale: float  # of queries, beside the usual 1/sqrt(head_dim) of scores
    attention_softcap: float  # scores are kept within it by a tanh; 0 is none
    logit_softcap: float  # likewise the logits
    embedding_scale: float
    activation: str  # of the gate: one of ACTIVATIONS
    unit_offset_norms: bool  # the norms' factor is 1 + weight
    post_norms: bool  # attention and MLP are normed before they are added
    fused_weights: bool  # qkv_proj and gate_up_proj are one tensor each in the checkpoint
    experts: ExpertsConfig | None
    dtype: str  # of the checkpoint: "float32", "bfloat16", "float16"


def load_model_config(path: Path) -> ModelConfig:
    """Read `path`/config.json; ModelError when it is missing, malformed or describes an unknown model."""
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"cannot read config.json of the model ({error.strerror}); point to a directory in the format of "
            "Hugging Face transformers"
        ) from None
    except ValueError as error:
        raise ModelError(f"config.json of the model is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError("config.json of the model does not hold a JSON object; download it again")
    return parse_model_config(content)


def parse_model_config(raw: Mapping[str, object]) -> ModelConfig:
    """The configuration that a parsed config.json stands for."""
    family = _family(raw)
    fields = ConfigFields(raw)
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelError(
            f"the model's weights are quantised ({method or 'quantization_config'} in config.json), which the torch "
            "engine does not support; use the model's unquantised version, or the sglang or vllm engine"
        )
    if (activation := fields.get(family.activation_field, family.activation)) not in ACTIVATIONS:
        raise ModelError(
            f"{family.activation_field} {activation!r} is not supported by the torch engine; only "
            f"{' and '.join(ACTIVATIONS)} are"
        )
    if fields.get("use_bidirectional_attention", False):
        raise ModelError(
            "use_bidirectional_attention in config.json is for embeddings, not for generation; use another model"
        )
    num_layers = fields.need("num_hidden_layers")
    num_heads = fields.need("num_attention_heads")
    num_kv_heads = fields.get("num_key_value_heads", num_heads)
    hidden_size = fields.need("hidden_size")
    if num_heads % num_kv_heads:
        raise ModelError(
            f"num_attention_heads ({num_heads}) is no multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = fields.get("head_dim", family.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise ModelError(f"head_dim is {head_dim}; rotary position embedding needs an even number")
    rope, window_rope = parse_ropes(raw, family, head_dim)
    attention_bias = fields.get("attention_bias", family.qkv_bias)
    return ModelConfig(
        family=family.name,
        vocab_size=fields.need("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.need("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.get("rms_norm_eps", family.rms_norm_eps),
        max_context_tokens=fields.need("max_position_embeddings"),
        rope=rope,
        window_rope=window_rope,
        windows=_windows(fields, family, num_layers),
        tied_embeddings=fields.get("tie_word_embeddings", family.tied_embeddings),
        # Qwen2 has biases whatever its file says; in the other families the file decides.
        qkv_bias=attention_bias or family.qkv_bias,
        output_bias=attention_bias and family.output_bias,
        mlp_bias=fields.get("mlp_bias", False),
        qk_norm=family.qk_norm,
        query_scale=_query_scale(fields, family, head_dim),
        attention_softcap=_softcap(raw, "attn_logit_softcapping", family.attention_softcap)
        if family.attention_softcap
        else 0.0,
        logit_softcap=_softcap(raw, "final_logit_softcapping", family.logit_softcap)
        if family.caps_logits
        else 0.0,
        embedding_scale=math.sqrt(hidden_size) if family.scaled_embeddings else 1.0,
        activation=activation,
        unit_offset_norms=family.unit_offset_norms,
        post_norms=family.post_norms,
        fused_weights=family.fused_weights,
        experts=_experts(fields, family, raw, num_layers),
        dtype=fields.get("dtype", fields.get("torch_dtype", "float32")),
    )


def _family(raw: Mapping[str, object]) -> Family:
    for architecture in ConfigFields(raw).strings("architectures"):
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    if named := ", ".join(ConfigFields(raw).strings("architectures")):
        problem = f"the torch engine does not know the model architecture {named}"
    else:
        problem = (
            "the torch engine goes by the architecture, and config.json of the model names none "
            f"(model_type is {raw.get('model_type')!r})"
        )
    raise ModelError(
        f"{problem}; it knows {', '.join(FAMILIES)}. Other models are for the sglang and vllm engines"
    )


def _query_scale(fields: ConfigFields, family: Family, head_dim: int) -> float:
    """What queries are multiplied by where scores are not scaled by 1/sqrt(head_dim)."""
    if not family.query_pre_attn_scalar:
        return 1.0
    scalar = fields.get("query_pre_attn_scalar", float(family.query_pre_attn_scalar))
    if not scalar > 0:
        raise ModelError(f"query_pre_attn_scalar in config.json must be positive, got {scalar:g}")
    return math.sqrt(head_dim / scalar)


def _softcap(raw: Mapping[str, object], name: str, default: float) -> float:
    """The bound, or 0 for none: an absent key is the family's, a null is none."""
    cap = ConfigFields(raw).get(name, 0.0) if name in raw else default
    if not cap >= 0:
        raise ModelError(f"{name} in config.json must be positive, got {cap:g}")
    return cap


def _experts(
    fields: ConfigFields, family: Family, raw: Mapping[str, object], num_layers: int
) -> ExpertsConfig | None:
    """The mixture of experts, if the family has one."""
    if family.experts is None:
        return None
    num_experts = fields.get("num_experts", 0) or fields.need("num_local_experts")
    num_chosen = fields.need("num_experts_per_tok")
    if num_chosen > num_experts:
        raise ModelError(f"num_experts_per_tok ({num_chosen}) is above the number of experts ({num_experts})")
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ModelError(f"mlp_only_layers in config.json must be a list, got {dense!r}")
    period = max(1, fields.get("decoder_sparse_step", 1))
    return ExpertsConfig(
        names=family.experts,
        num_experts=num_experts,
        num_chosen=num_chosen,
        intermediate_size=fields.get("moe_intermediate_size", fields.need("intermediate_size")),
        normalised=fields.get("norm_topk_prob", family.normalises_shares),
        layers=frozenset(
            layer for layer in range(num_layers) if layer not in dense and (layer + 1) % period == 0
        ),
    )


def _windows(fields: ConfigFields, family: Family, num_layers: int) -> tuple[int, ...]:
    """Sliding window of each layer: from `layer_types` if listed, else by the family's rule."""
    window = fields.get("sliding_window", 0) if fields.has("sliding_window") else family.sliding_window
    if not family.has_windows or (family.window_is_optional and not fields.get("use_sliding_window", False)):
        window = 0
    if window < 0 or (family.local_rope_theta and not window):
        raise ModelError(f"sliding_window in config.json must be positive, got {window}")
    if layer_types := fields.strings("layer_types"):
        unknown = set(layer_types) - {"full_attention", "sliding_attention"}
        if unknown or len(layer_types) != num_layers:
            raise ModelError(
                f"layer_types in config.json must name full_attention or sliding_attention for each of "
                f"{num_layers} layers; got {len(layer_types)} entries of {', '.join(sorted(set(layer_types)))}"
            )
        return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)
    if family.window_pattern:
        period = max(1, fields.get("sliding_window_pattern", family.window_pattern))
        return tuple(window if (layer + 1) % period else 0 for layer in range(num_layers))
    first = fields.get("max_window_layers", family.first_window_layer) if family.first_window_layer else 0
    return tuple(window if layer >= first else 0 for layer in range(num_layers))
