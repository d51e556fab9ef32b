"""The transformer of all families: which parts a layer has is data in ModelConfig."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem_engine.torch_engine.attention import attend
from tandem_engine.torch_engine.embeddings import Embeddings
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.linear import Linear
from tandem_engine.torch_engine.mlp import Experts, load_mlp
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
        self.qkv = load_linear(weights, parts, config.hidden_size, bias=config.qkv_bias)
        self.output = load_linear(
            weights, {f"{name}.o_proj": config.hidden_size}, num_q, bias=config.output_bias
        )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = load_norm(weights, f"{name}.q_norm", config.head_dim, config)
            self.k_norm = load_norm(weights, f"{name}.k_norm", config.head_dim, config)

    def __call__(self, x: Tensor, inputs: StepInputs, rotation: Rotation, cache: KVCache) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); stores the tokens' keys and values on the way."""
        num_heads, num_kv_heads = self._heads
        qkv = self.qkv(x).view(x.shape[0], num_heads + 2 * num_kv_heads, self._head_dim)
        qk, v = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :num_heads]), self.k_norm(qk[:, num_heads:])), 1)
        qk = rotate(qk, *rotation)
        q, k = qk[:, :num_heads], qk[:, num_heads:]
        if self._query_scale != 1.0:
            q = q * self._query_scale
        cache.store(inputs.key_rows[self._layer], k, inputs.value_rows[self._layer], v)
        out = attend(q, inputs.groups[self._window], cache, self._layer, self._softcap)
        return self.output(out.flatten(1))


class Layer:
    """Attention, then MLP, each behind its norm and added to its input, in some families after another norm."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        def norm(name: str) -> RMSNorm:
            return load_norm(weights, f"model.layers.{layer}.{name}", config.hidden_size, config)

        self.attention_norm = norm("input_layernorm")
        self.attention = Attention(config, layer, weights)
        self.mlp_norm = norm("pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm")
        self.mlp = load_mlp(config, layer, weights)
        self.after_attention = norm("post_attention_layernorm") if config.post_norms else None
        self.after_mlp = norm("post_feedforward_layernorm") if config.post_norms else None

    def __call__(self, x: Tensor, inputs: StepInputs, rotation: Rotation, cache: KVCache) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        attended = self.attention(self.attention_norm(x), inputs, rotation, cache)
        x = x + (self.after_attention(attended) if self.after_attention is not None else attended)
        out = self.mlp(self.mlp_norm(x))
        return x + (self.after_mlp(out) if self.after_mlp is not None else out)


class Transformer:
    """Token ids in, logits of the rows that draw a token out; keys and values go to the pool on the way."""

    def __init__(self, config: ModelConfig, weights: Weights, rotations: LayerRotations) -> None:
        """Take what the model needs out of `weights`; ModelError when that does not fit `config`."""
        vocab_size, hidden = config.vocab_size, config.hidden_size
        self.rotations = rotations
        table = weights.read("model.embed_tokens.weight", vocab_size, hidden)
        self.layers = [Layer(config, layer, weights) for layer in range(config.num_layers)]
        self.norm = load_norm(weights, "model.norm", hidden, config)
        self._logit_softcap = config.logit_softcap
        if config.tied_embeddings:
            weights.ignore("lm_head.weight")
            self.head = Linear(table)
        else:
            self.head = load_linear(weights, {"lm_head": vocab_size}, hidden)
        self.embeddings = Embeddings(
            table, config.embedding_scale, self.head if config.tied_embeddings else None
        )
        weights.check_all_read()

    @property
    def is_static(self) -> bool:
        """Whether a step never waits for the device, so that it can be captured."""
        return not any(isinstance(layer.mlp, Experts) for layer in self.layers)

    def __call__(self, inputs: StepInputs, cache: KVCache) -> Tensor:
        """Logits (drawing rows, vocab_size), float32."""
        x = self.embeddings(inputs.token_ids)  # (tokens, hidden)
        for layer, rotation in zip(self.layers, self.rotations.at(inputs.positions), strict=True):
            x = layer(x, inputs, rotation, cache)
        logits = self.head(self.norm(x.index_select(0, inputs.last_tokens))).float()
        if self._logit_softcap:
            logits = logits.div_(self._logit_softcap).tanh_().mul_(self._logit_softcap)
        return logits
