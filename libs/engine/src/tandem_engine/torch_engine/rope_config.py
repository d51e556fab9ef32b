"""What a config.json says about rotary position embedding, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tandem_engine.api import ModelError
from tandem_engine.torch_engine.config_fields import ConfigFields
from tandem_engine.torch_engine.families import Family

_SCALINGS = ("default", "linear", "llama3", "longrope")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding; `scaling` is "default", "linear", "llama3" or "longrope"."""

    theta: float
    scaling: str = "default"
    share: float = 1.0  # of each head that is turned; the rest stays as it is
    factor: float = 1.0
    # llama3 only:
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # llama3 and longrope only:
    original_max_position_embeddings: int = 8192
    # longrope only: a divisor for each frequency, and what cosines and sines are multiplied by.
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's numbers are turned: the first ones."""
        return int(head_dim * self.share)

    def is_long(self, num_positions: int) -> bool:
        """Whether LongRoPE's long factors are for a context of so many tokens.

        Keys that were turned by one set of factors cannot be used with the other, so that an engine takes one
        set for all sequences, by the longest context that it admits.
        """
        return self.scaling == "longrope" and num_positions > self.original_max_position_embeddings


def parse_ropes(raw: Mapping[str, object], family: Family, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """RoPE of the layers that see everything, and of those with a window."""
    fields = ConfigFields(raw)
    parameters = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = fields.get("rope_theta", family.rope_theta)
    if not family.local_rope_theta:
        rope = _parse_rope(parameters, theta, raw, family, head_dim)
        return rope, rope
    local_theta = fields.get("rope_local_base_freq", family.local_rope_theta)
    by_kind = ConfigFields(parameters)
    if by_kind.has("full_attention") or by_kind.has("sliding_attention"):
        everywhere, local = by_kind.section("full_attention"), by_kind.section("sliding_attention")
    else:
        everywhere, local = parameters, {}
    return (
        _parse_rope(everywhere, theta, raw, family, head_dim),
        _parse_rope(local, local_theta, raw, family, head_dim),
    )


def _parse_rope(
    parameters: Mapping[str, object], theta: float, raw: Mapping[str, object], family: Family, head_dim: int
) -> RopeConfig:
    if nested := sorted(name for name, value in parameters.items() if isinstance(value, dict)):
        raise ModelError(
            f"RoPE that differs between kinds of layers ({', '.join(nested)} in config.json) is not supported "
            f"by the torch engine for {family.name}; use the sglang or vllm engine"
        )
    whole = ConfigFields(raw)
    fields = ConfigFields(parameters)
    scaling = fields.get("rope_type", fields.get("type", "default"))
    scaling = family.rope_aliases.get(scaling, scaling)
    if scaling not in _SCALINGS:
        raise ModelError(
            f"RoPE scaling {scaling!r} is not supported by the torch engine; {', '.join(_SCALINGS)} are. "
            "Other models are for the sglang and vllm engines"
        )
    share = fields.get("partial_rotary_factor", whole.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not family.partial_rotary:
        raise ModelError(
            f"partial_rotary_factor {share:g} is not supported by the torch engine for {family.name}; only 1 is"
        )
    original = fields.get("original_max_position_embeddings", 8192)
    if scaling == "longrope":
        original = whole.get(
            "original_max_position_embeddings",
            fields.get("original_max_position_embeddings", whole.need("max_position_embeddings")),
        )
    rope = RopeConfig(
        theta=fields.get("rope_theta", theta),
        scaling=scaling,
        share=share,
        factor=fields.get("factor", 1.0),
        low_freq_factor=fields.get("low_freq_factor", 1.0),
        high_freq_factor=fields.get("high_freq_factor", 4.0),
        original_max_position_embeddings=original,
        short_factors=fields.numbers("short_factor") if scaling == "longrope" else (),
        long_factors=fields.numbers("long_factor") if scaling == "longrope" else (),
        attention_factor=_attention_factor(fields, whole, original) if scaling == "longrope" else 1.0,
    )
    _check(rope, head_dim)
    return rope


def _attention_factor(fields: ConfigFields, whole: ConfigFields, original: int) -> float:
    """What LongRoPE multiplies cosines and sines by: given, or by the rule of its paper (Ding et al. 2024)."""
    if original < 2:
        raise ModelError(
            f"original_max_position_embeddings in config.json must be at least 2, got {original}"
        )
    factor = fields.get("factor", whole.need("max_position_embeddings") / original)
    by_rule = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    return fields.get("attention_factor", by_rule)


def _check(rope: RopeConfig, head_dim: int) -> None:
    if not (math.isfinite(rope.theta) and rope.theta > 0 and rope.factor > 0):
        raise ModelError(
            f"rope_theta ({rope.theta:g}) and factor ({rope.factor:g}) in config.json must be positive"
        )
    if rope.scaling == "llama3" and not 0 < rope.low_freq_factor < rope.high_freq_factor:
        raise ModelError("llama3 RoPE scaling needs 0 < low_freq_factor < high_freq_factor")
    dim = rope.rotary_dim(head_dim)
    if not 0 < rope.share <= 1 or dim < 2 or dim % 2:
        raise ModelError(
            f"partial_rotary_factor {rope.share:g} in config.json turns {dim} of {head_dim} numbers of a head; "
            "rotary position embedding needs an even number"
        )
    if rope.scaling == "longrope":
        for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
            if len(factors) != dim // 2 or min(factors) <= 0:
                raise ModelError(
                    f"longrope scaling needs a {name} of {dim // 2} positive numbers in config.json, "
                    f"got {len(factors)}"
                )
