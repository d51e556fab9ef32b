"""What a Hugging Face config.json says about a model, in one shape for all families.

A family is data: what its architecture fixes and its config.json does not say. Everything else is read from
the file, with the defaults that the family's published checkpoints rely on. Nothing that would change
results is ignored: what is not supported is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tandem_engine.api import ModelError

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What an architecture's name implies."""

    name: str
    qkv_bias: bool = False  # when config.json does not say `attention_bias`
    output_bias: bool = False  # whether `attention_bias` covers the output projection too
    qk_norm: bool = False  # RMSNorm over each head of queries and keys, before RoPE
    sliding_window: int = 0  # when config.json does not name one; 0 is none
    window_is_optional: bool = False  # the window counts only with `use_sliding_window`


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(name="llama", output_bias=True),
    "MistralForCausalLM": Family(name="mistral", sliding_window=4096),
    "Qwen2ForCausalLM": Family(name="qwen2", qkv_bias=True, window_is_optional=True, sliding_window=4096),
    "Qwen3ForCausalLM": Family(
        name="qwen3", output_bias=True, qk_norm=True, window_is_optional=True, sliding_window=4096
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding; `scaling` is "default", "linear" or "llama3" (the last four are its own)."""

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A dense decoder-only transformer with grouped-query attention, RMSNorm, RoPE and a gated SiLU MLP."""

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
    windows: tuple[int, ...]  # per layer: how many tokens it sees, itself included; 0 sees all
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
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
    fields = _Fields(raw)
    if raw.get("quantization_config"):
        raise ModelError(
            "the model's weights are quantised (quantization_config in config.json), which the torch engine "
            "does not support; use the model's unquantised version, or the sglang or vllm engine"
        )
    if (activation := fields.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"hidden_act {activation!r} is not supported by the torch engine; only silu is")
    num_layers = fields.need("num_hidden_layers")
    num_heads = fields.need("num_attention_heads")
    num_kv_heads = fields.get("num_key_value_heads", num_heads)
    hidden_size = fields.need("hidden_size")
    if num_heads % num_kv_heads:
        raise ModelError(
            f"num_attention_heads ({num_heads}) is no multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = fields.get("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise ModelError(f"head_dim is {head_dim}; rotary position embedding needs an even number")
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
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        max_context_tokens=fields.need("max_position_embeddings"),
        rope=_rope(raw),
        windows=_windows(fields, family, num_layers),
        tied_embeddings=fields.get("tie_word_embeddings", False),
        # Qwen2 has biases whatever its file says; in the other families the file decides.
        qkv_bias=attention_bias or family.qkv_bias,
        output_bias=attention_bias and family.output_bias,
        mlp_bias=fields.get("mlp_bias", False),
        qk_norm=family.qk_norm,
        dtype=fields.get("dtype", fields.get("torch_dtype", "float32")),
    )


class _Fields:
    """Typed reading of a JSON object; a null counts as absent."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self._raw = raw

    def get(self, name: str, default: T) -> T:
        value = self._raw.get(name)
        if value is None:
            return default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise ModelError(f"{name} in config.json must be of type {type(default).__name__}, got {value!r}")
        return value

    def has(self, name: str) -> bool:
        """Whether the key is there at all, if only as null."""
        return name in self._raw

    def need(self, name: str) -> int:
        """A positive integer without which there is no model."""
        value = self.get(name, 0)
        if value < 1:
            raise ModelError(f"config.json of the model needs a positive {name}; download it again")
        return value

    def strings(self, name: str) -> list[str]:
        value = self._raw.get(name)
        return [str(item) for item in value] if isinstance(value, list) else []


def _family(raw: Mapping[str, object]) -> Family:
    for architecture in _Fields(raw).strings("architectures"):
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    named = ", ".join(_Fields(raw).strings("architectures")) or f"none (model_type {raw.get('model_type')!r})"
    raise ModelError(
        f"the torch engine does not know the model architecture {named}; it knows {', '.join(FAMILIES)}. "
        "Other models are for the sglang and vllm engines"
    )


def _rope(raw: Mapping[str, object]) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"rope_parameters in config.json must be an object, got {parameters!r}")
    fields = _Fields({"rope_theta": raw.get("rope_theta"), **parameters})
    scaling = fields.get("rope_type", fields.get("type", "default"))
    if scaling not in ("default", "linear", "llama3"):
        raise ModelError(
            f"RoPE scaling {scaling!r} is not supported by the torch engine; default, linear and llama3 are. "
            "Other models are for the sglang and vllm engines"
        )
    for source in (fields, _Fields(raw)):
        if (share := source.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ModelError(
                f"partial_rotary_factor {share:g} is not supported by the torch engine; only 1 is"
            )
    rope = RopeConfig(
        theta=fields.get("rope_theta", 10_000.0),
        scaling=scaling,
        factor=fields.get("factor", 1.0),
        low_freq_factor=fields.get("low_freq_factor", 1.0),
        high_freq_factor=fields.get("high_freq_factor", 4.0),
        original_max_position_embeddings=fields.get("original_max_position_embeddings", 8192),
    )
    if not (math.isfinite(rope.theta) and rope.theta > 0 and rope.factor > 0):
        raise ModelError(
            f"rope_theta ({rope.theta:g}) and factor ({rope.factor:g}) in config.json must be positive"
        )
    if scaling == "llama3" and not 0 < rope.low_freq_factor < rope.high_freq_factor:
        raise ModelError("llama3 RoPE scaling needs 0 < low_freq_factor < high_freq_factor")
    return rope


def _windows(fields: _Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """Sliding window of each layer: from `layer_types` if listed, else by the family's rule."""
    window = fields.get("sliding_window", 0) if fields.has("sliding_window") else family.sliding_window
    if not family.sliding_window or (
        family.window_is_optional and not fields.get("use_sliding_window", False)
    ):
        window = 0
    if window < 0:
        raise ModelError(f"sliding_window in config.json must be positive, got {window}")
    if layer_types := fields.strings("layer_types"):
        unknown = set(layer_types) - {"full_attention", "sliding_attention"}
        if unknown or len(layer_types) != num_layers:
            raise ModelError(
                f"layer_types in config.json must name full_attention or sliding_attention for each of "
                f"{num_layers} layers; got {len(layer_types)} entries of {', '.join(sorted(set(layer_types)))}"
            )
        return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)
    first = fields.get("max_window_layers", 28) if family.window_is_optional else 0
    return tuple(window if layer >= first else 0 for layer in range(num_layers))
