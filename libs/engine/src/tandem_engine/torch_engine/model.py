"""The transformer of all families: which parts a layer has is data in ModelConfig."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.attention import attend
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.linear import Linear
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.rope import RotaryTable, rotate
from tandem_engine.torch_engine.step_inputs import StepInputs
from tandem_engine.torch_engine.weights import Weights


class RMSNorm:
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Norm of x (..., size), in x's shape and dtype."""
        return F.rms_norm(x, self._weight.shape, self._weight, self._eps)


class Attention:
    """Grouped-query attention over the paged pool, with RoPE and, in some families, normed queries and keys."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.self_attn"
        self._layer = layer
        self._window = config.windows[layer]
        self._heads = (config.num_heads, config.num_kv_heads)
        self._head_dim = config.head_dim
        num_q, num_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {f"{name}.q_proj": num_q, f"{name}.k_proj": num_kv, f"{name}.v_proj": num_kv}
        self._qkv = _load_linear(weights, parts, config.hidden_size, bias=config.qkv_bias)
        self._output = _load_linear(
            weights, {f"{name}.o_proj": config.hidden_size}, num_q, bias=config.output_bias
        )
        self._q_norm: RMSNorm | None = None
        self._k_norm: RMSNorm | None = None
        if config.qk_norm:
            self._q_norm = RMSNorm(
                weights.read(f"{name}.q_norm.weight", config.head_dim), config.rms_norm_eps
            )
            self._k_norm = RMSNorm(
                weights.read(f"{name}.k_norm.weight", config.head_dim), config.rms_norm_eps
            )

    def __call__(
        self, x: Tensor, inputs: StepInputs, rotation: tuple[Tensor, Tensor], cache: KVCache
    ) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); stores the tokens' keys and values on the way."""
        num_heads, num_kv_heads = self._heads
        qkv = self._qkv(x).view(x.shape[0], num_heads + 2 * num_kv_heads, self._head_dim)
        qk, v = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
        if self._q_norm is not None and self._k_norm is not None:
            qk = torch.cat((self._q_norm(qk[:, :num_heads]), self._k_norm(qk[:, num_heads:])), 1)
        qk = rotate(qk, *rotation)
        q, k = qk[:, :num_heads], qk[:, num_heads:]
        cache.store(inputs.key_rows[self._layer], k, inputs.value_rows[self._layer], v)
        out = attend(q, inputs.groups[self._window], cache, self._layer)
        return self._output(out.flatten(1))


class MLP:
    """Gated feed-forward: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.mlp"
        width = config.intermediate_size
        parts = {f"{name}.gate_proj": width, f"{name}.up_proj": width}
        self._gate_up = _load_linear(weights, parts, config.hidden_size, bias=config.mlp_bias)
        self._down = _load_linear(
            weights, {f"{name}.down_proj": config.hidden_size}, width, bias=config.mlp_bias
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        gate, up = self._gate_up(x).chunk(2, -1)
        return self._down(F.silu(gate).mul_(up))


class Layer:
    """Attention, then MLP, each behind its norm and added to its input."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}"
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self._attention_norm = RMSNorm(weights.read(f"{name}.input_layernorm.weight", hidden), eps)
        self._attention = Attention(config, layer, weights)
        self._mlp_norm = RMSNorm(weights.read(f"{name}.post_attention_layernorm.weight", hidden), eps)
        self._mlp = MLP(config, layer, weights)

    def __call__(
        self, x: Tensor, inputs: StepInputs, rotation: tuple[Tensor, Tensor], cache: KVCache
    ) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        x = x + self._attention(self._attention_norm(x), inputs, rotation, cache)
        return x + self._mlp(self._mlp_norm(x))


class Transformer:
    """Token ids in, logits of the rows that draw a token out; keys and values go to the pool on the way."""

    def __init__(self, config: ModelConfig, weights: Weights, rotary: RotaryTable) -> None:
        """Take what the model needs out of `weights`; ModelError when that does not fit `config`."""
        vocab_size, hidden = config.vocab_size, config.hidden_size
        self._rotary = rotary
        self._embeddings = weights.read("model.embed_tokens.weight", vocab_size, hidden)
        self._layers = [Layer(config, layer, weights) for layer in range(config.num_layers)]
        self._norm = RMSNorm(weights.read("model.norm.weight", hidden), config.rms_norm_eps)
        if config.tied_embeddings:
            weights.ignore("lm_head.weight")
            self._head = Linear(self._embeddings)
        else:
            self._head = _load_linear(weights, {"lm_head": vocab_size}, hidden, bias=False)
        weights.check_all_read()

    def __call__(self, inputs: StepInputs, cache: KVCache) -> Tensor:
        """Logits (drawing rows, vocab_size), float32."""
        x = F.embedding(inputs.token_ids, self._embeddings)  # (tokens, hidden)
        rotation = self._rotary.at(inputs.positions)
        for layer in self._layers:
            x = layer(x, inputs, rotation, cache)
        return self._head(self._norm(x.index_select(0, inputs.last_tokens))).float()


def _load_linear(weights: Weights, parts: dict[str, int], in_features: int, *, bias: bool) -> Linear:
    """Projections of one input, fused; `parts` gives their names and widths in order."""
    rows = list(parts.values())
    weight = weights.stack([f"{name}.weight" for name in parts], rows, in_features)
    return Linear(weight, weights.stack([f"{name}.bias" for name in parts], rows) if bias else None)
