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
# CUDA's compute capability from which torch has a kernel for grouped products (Hopper).
_GROUPING_CAPABILITY = (9, 0)


class MLP:
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        self.gate_up = gate_up
        self.down = down
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        return self.down(_gated(self.gate_up(x), self._activation))


class Router:
    """Which experts each token goes to."""

    def __init__(self, scores: Linear, config: ExpertsConfig) -> None:
        self.num_chosen = config.num_chosen
        self._scores = scores
        self._normalised = config.normalised

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of (tokens, hidden): shares (float32) and numbers of each one's experts, (tokens, num_chosen)."""
        shares, chosen = self._scores(x).softmax(-1, dtype=torch.float32).topk(self.num_chosen, -1)
        return (shares / shares.sum(-1, keepdim=True) if self._normalised else shares), chosen


class Experts:
    """A mixture of experts: each token goes to the few MLPs that the router scores highest.

    Each expert runs once per step, on the tokens that chose it, and a token's shares are added up in the order of
    the experts: its result does not depend on what else is in the batch. The numbers of tokens are read back from
    the device, which makes a GPU wait: GroupedExperts do without.
    """

    def __init__(self, router: Router, experts: list[MLP]) -> None:
        self._router = router
        self._experts = experts
        self._num_chosen = router.num_chosen

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        shares, chosen = self._router(x)
        order = chosen.flatten().argsort(stable=True)  # places in (tokens, num_chosen), by expert
        counts: list[int] = chosen.flatten().bincount(minlength=len(self._experts)).tolist()
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, places in zip(self._experts, torch.split(order, counts), strict=True):
            if len(places):
                rows = places // self._num_chosen
                out.index_add_(0, rows, expert(x[rows]) * shares.flatten()[places].unsqueeze(1))
        return out.to(x.dtype)


class GroupedExperts:
    """The same mixture with each projection of all experts in one product, and nothing read back from the device."""

    def __init__(self, router: Router, gate_up: Tensor, down: Tensor, activation: str) -> None:
        """`gate_up` is (experts, 2 * width, hidden), `down` (experts, hidden, width)."""
        self._router = router
        self._gate_up = gate_up.transpose(1, 2)
        self._down = down.transpose(1, 2)
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        shares, chosen = self._router(x)
        experts, order = chosen.flatten().sort(stable=True)  # places in (tokens, num_chosen), by expert
        numbers = torch.arange(self._down.shape[0], device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)  # of each expert's places
        gate_up = F.grouped_mm(x[order // self._router.num_chosen], self._gate_up, offs=ends)
        down = F.grouped_mm(_gated(gate_up, self._activation), self._down, offs=ends)
        weighted = down.float() * shares.flatten()[order].unsqueeze(1)
        out = torch.empty_like(weighted).index_copy_(0, order, weighted)
        return out.view(*chosen.shape, -1).sum(1).to(x.dtype)


def groups_experts(device: str, dtype: torch.dtype) -> bool:
    """Whether this device has grouped products that need no sizes on the host."""
    return (
        device == "cuda"
        and dtype is torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability() >= _GROUPING_CAPABILITY
    )


def load_mlp(config: ModelConfig, layer: int, weights: Weights) -> MLP | Experts | GroupedExperts:
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
    router = Router(load_linear(weights, {f"{block}.gate": experts.num_experts}, config.hidden_size), experts)
    each = [f"{block}.experts.{number}" for number in range(experts.num_experts)]
    if groups_experts(weights.device, weights.dtype) and not config.mlp_bias:
        return load_grouped(config, experts, router, each, weights)
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
    return Experts(router, mlps)


def load_grouped(
    config: ModelConfig, experts: ExpertsConfig, router: Router, each: list[str], weights: Weights
) -> GroupedExperts:
    """The experts of those names, stacked."""
    names, width, hidden = experts.names, experts.intermediate_size, config.hidden_size
    parts = [f"{expert}.{part}.weight" for expert in each for part in (names.gate, names.up)]
    gate_up = weights.stack(parts, [width] * len(parts), hidden)
    down = weights.stack([f"{expert}.{names.down}.weight" for expert in each], [hidden] * len(each), width)
    return GroupedExperts(
        router,
        gate_up.view(len(each), 2 * width, hidden),
        down.view(len(each), hidden, width),
        config.activation,
    )


def _gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Of (tokens, 2 * width): (tokens, width)."""
    if activation is F.silu:
        return silu_gate(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return activation(gate).mul_(up)


def _load_one(
    config: ModelConfig, gate_up: Mapping[str, int], down: str, width: int, weights: Weights
) -> MLP:
    return MLP(
        load_linear(weights, gate_up, config.hidden_size, bias=config.mlp_bias),
        load_linear(weights, {down: config.hidden_size}, width, bias=config.mlp_bias),
        config.activation,
    )
