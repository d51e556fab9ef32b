"""The structs of short_step.c and what it includes, field by field as there."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p


class Matrix(ctypes.Structure):
    """A weight in tiles of outputs."""

    _fields_ = (("tiles", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64))


class Attention(ctypes.Structure):
    """How keys and values lie in the pool and are attended to."""

    _fields_ = (
        ("block_stride", c_int64),
        ("block_size", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class LayerParts(ctypes.Structure):
    """One layer."""

    _fields_ = (
        ("qkv", Matrix),
        ("output", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attention_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("after_attention", c_void_p),
        ("mlp_norm", c_void_p),
        ("after_mlp", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("window", c_int64),
    )


class ModelParts(ctypes.Structure):
    """A model and its pool."""

    _fields_ = (
        ("layers", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("rotary_dim", c_int64),
        ("vocab", c_int64),
        ("gelu", c_int64),
        ("attention", Attention),
        ("pool", c_void_p),
        ("embeddings", c_void_p),
        ("head", Matrix),
        ("norm", c_void_p),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("query_scale", c_float),
        ("logit_softcap", c_float),
    )


class Step(ctypes.Structure):
    """The tokens of a step and where its results go."""

    _fields_ = (
        ("rows", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("blocks", c_void_p),
        ("tables", c_void_p),
        ("num_single", c_int64),
        ("single", c_void_p),
        ("num_stretches", c_int64),
        ("stretches", c_void_p),
        ("num_drawing", c_int64),
        ("drawing", c_void_p),
        ("scratch", c_void_p),
        ("logits", c_void_p),
        ("likeliest", c_void_p),
        ("best", c_void_p),
        ("best_tokens", c_void_p),
    )
