"""The transformer of all families: which parts a layer has is data in ModelConfig."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.attention import attend
from tandem_engine.torch_engine.capped_attention import attend_capped
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.linear import Linear
from tandem_engine.torch_engine.mlp import load_mlp
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.norm import RMSNorm, load_norm
from tandem_engine.torch_engine.projections import load_linear
from tandem_engine.torch_engine.rope import LayerRotations, Rotation, rotate
from tandem_engine.torch_engine.step_inputs import StepInputs
from tandem_engine.torch_engine.weights import Weights


class Attention:
    """Grouped-query attention over the paged pool, with RoPE and, in some families, normed queries and keys."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.self_attn"
        self._layer = layer
        self._window = config.windows[layer]
        self._softcap = config.attention_softcap
        self._query_scale = config.query_scale
        self._heads = (config.num_heads, config.num_kv_heads)
        self._head_dim = config.head_dim
        num_q, num_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        if config.fused_weights:
            parts = {f"{name}.qkv_proj": num_q + 2 * num_kv}
        else:
            parts = {f"{name}.q_proj": num_q, f"{name}.k_proj": num_kv, f"{name}.v_proj": num_kv}
        self._qkv = load_linear(weights, parts, config.hidden_size, bias=config.qkv_bias)
        self._output = load_linear(
            weights, {f"{name}.o_proj": config.hidden_size}, num_q, bias=config.output_bias
        )
        self._q_norm: RMSNorm | None = None
        self._k_norm: RMSNorm | None = None
        if config.qk_norm:
            self._q_norm = load_norm(weights, f"{name}.q_norm", config.head_dim, config)
            self._k_norm = load_norm(weights, f"{name}.k_norm", config.head_dim, config)

    def __call__(self, x: Tensor, inputs: StepInputs, rotation: Rotation, cache: KVCache) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); stores the tokens' keys and values on the way."""
        num_heads, num_kv_heads = self._heads
        qkv = self._qkv(x).view(x.shape[0], num_heads + 2 * num_kv_heads, self._head_dim)
        qk, v = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
        if self._q_norm is not None and self._k_norm is not None:
            qk = torch.cat((self._q_norm(qk[:, :num_heads]), self._k_norm(qk[:, num_heads:])), 1)
        qk = rotate(qk, *rotation)
        q, k = qk[:, :num_heads], qk[:, num_heads:]
        if self._query_scale != 1.0:
            q = q * self._query_scale
        cache.store(inputs.key_rows[self._layer], k, inputs.value_rows[self._layer], v)
        groups = inputs.groups[self._window]
        if self._softcap:
            out = attend_capped(q, groups, cache, self._layer, self._softcap)
        else:
            out = attend(q, groups, cache, self._layer)
        return self._output(out.flatten(1))


class Layer:
    """Attention, then MLP, each behind its norm and added to its input, in some families after another norm."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        def norm(name: str) -> RMSNorm:
            return load_norm(weights, f"model.layers.{layer}.{name}", config.hidden_size, config)

        self._attention_norm = norm("input_layernorm")
        self._attention = Attention(config, layer, weights)
        self._mlp_norm = norm(
            "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
        )
        self._mlp = load_mlp(config, layer, weights)
        self._after_attention = norm("post_attention_layernorm") if config.post_norms else _unchanged
        self._after_mlp = norm("post_feedforward_layernorm") if config.post_norms else _unchanged

    def __call__(self, x: Tensor, inputs: StepInputs, rotation: Rotation, cache: KVCache) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        x = x + self._after_attention(self._attention(self._attention_norm(x), inputs, rotation, cache))
        return x + self._after_mlp(self._mlp(self._mlp_norm(x)))


class Transformer:
    """Token ids in, logits of the rows that draw a token out; keys and values go to the pool on the way."""

    def __init__(self, config: ModelConfig, weights: Weights, rotations: LayerRotations) -> None:
        """Take what the model needs out of `weights`; ModelError when that does not fit `config`."""
        vocab_size, hidden = config.vocab_size, config.hidden_size
        self._rotations = rotations
        self._embeddings = weights.read("model.embed_tokens.weight", vocab_size, hidden)
        # Rounded to the model's dtype first, as it was in training.
        self._embedding_scale = self._embeddings.new_tensor(config.embedding_scale).item()
        self._layers = [Layer(config, layer, weights) for layer in range(config.num_layers)]
        self._norm = load_norm(weights, "model.norm", hidden, config)
        self._logit_softcap = config.logit_softcap
        if config.tied_embeddings:
            weights.ignore("lm_head.weight")
            self._head = Linear(self._embeddings)
        else:
            self._head = load_linear(weights, {"lm_head": vocab_size}, hidden)
        weights.check_all_read()

    def __call__(self, inputs: StepInputs, cache: KVCache) -> Tensor:
        """Logits (drawing rows, vocab_size), float32."""
        x = F.embedding(inputs.token_ids, self._embeddings)  # (tokens, hidden)
        if self._embedding_scale != 1.0:
            x = x * self._embedding_scale
        for layer, rotation in zip(self._layers, self._rotations.at(inputs.positions), strict=True):
            x = layer(x, inputs, rotation, cache)
        logits = self._head(self._norm(x.index_select(0, inputs.last_tokens))).float()
        if self._logit_softcap:
            logits = logits.div_(self._logit_softcap).tanh_().mul_(self._logit_softcap)
        return logits


def _unchanged(x: Tensor) -> Tensor:
    return x
