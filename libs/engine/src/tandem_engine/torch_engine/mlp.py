"""Gated feed-forward networks: one for all tokens, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.elementwise import silu_gate
from tandem_engine.torch_engine.linear import Linear
from tandem_engine.torch_engine.model_config import ExpertsConfig, ModelConfig
from tandem_engine.torch_engine.projections import load_linear
from tandem_engine.torch_engine.weights import Weights

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class MLP:
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        self.gate_up = gate_up
        self.down = down
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        gate_up = self.gate_up(x)
        if self._activation is F.silu:
            return self.down(silu_gate(gate_up))
        gate, up = gate_up.chunk(2, -1)
        return self.down(self._activation(gate).mul_(up))


class Experts:
    """A mixture of experts: each token goes to the few MLPs that the router scores highest.

    Each expert runs once per step, on the tokens that chose it, and a token's shares are added up in the order of
    the experts: its result does not depend on what else is in the batch. The numbers of tokens are read back from
    the device, which makes a GPU wait.
    """

    def __init__(self, router: Linear, experts: list[MLP], config: ExpertsConfig) -> None:
        self._router = router
        self._experts = experts
        self._num_chosen = config.num_chosen
        self._normalised = config.normalised

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        shares, chosen = self._router(x).softmax(-1, dtype=torch.float32).topk(self._num_chosen, -1)
        if self._normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # places in (tokens, num_chosen), by expert
        counts: list[int] = chosen.flatten().bincount(minlength=len(self._experts)).tolist()
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, places in zip(self._experts, torch.split(order, counts), strict=True):
            if len(places):
                rows = places // self._num_chosen
                out.index_add_(0, rows, expert(x[rows]) * shares.flatten()[places].unsqueeze(1))
        return out.to(x.dtype)


def load_mlp(config: ModelConfig, layer: int, weights: Weights) -> MLP | Experts:
    """The feed-forward network of one layer."""
    name = f"model.layers.{layer}"
    experts = config.experts
    if experts is None or layer not in experts.layers:
        if config.fused_weights:
            parts = {f"{name}.mlp.gate_up_proj": 2 * config.intermediate_size}
        else:
            parts = dict.fromkeys((f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"), config.intermediate_size)
        return _load_one(config, parts, f"{name}.mlp.down_proj", config.intermediate_size, weights)
    names = experts.names
    block, width = f"{name}.{names.block}", experts.intermediate_size
    router = load_linear(weights, {f"{block}.gate": experts.num_experts}, config.hidden_size)
    each = [f"{block}.experts.{number}" for number in range(experts.num_experts)]
    mlps = [
        _load_one(
            config,
            {f"{expert}.{names.gate}": width, f"{expert}.{names.up}": width},
            f"{expert}.{names.down}",
            width,
            weights,
        )
        for expert in each
    ]
    return Experts(router, mlps, experts)


def _load_one(
    config: ModelConfig, gate_up: Mapping[str, int], down: str, width: int, weights: Weights
) -> MLP:
    return MLP(
        load_linear(weights, gate_up, config.hidden_size, bias=config.mlp_bias),
        load_linear(weights, {down: config.hidden_size}, width, bias=config.mlp_bias),
        config.activation,
    )
