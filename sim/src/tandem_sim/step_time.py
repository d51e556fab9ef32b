"""How long an engine step takes: by roofline for GPUs, or by the fits of a measured worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_engine.api import StepCost

from tandem_sim import layer_times
from tandem_sim.hardware import FITTED, GPUS, Efficiency, GpuProfile
from tandem_sim.models import MODELS, ModelShape

# How steps are modelled: efficiencies that are assumed, those fitted to a measured layer, or that layer's own times.
STEP_MODELS = ("roofline", "fitted", "measured")


class StepTime(Protocol):
    """Time of engine steps."""

    def step_s(self, work: StepCost, inner_context: int) -> float:
        """Seconds for `work` (its duration is ignored).

        `inner_context` is the sum over prompt chunks of the pairs of tokens within the chunk.
        """
        ...


class Roofline:
    """A worker of `model.tensor_parallel` GPUs: each part of a step takes what its scarcer resource takes.

    Source: S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model" (2009), applied
    to the matrix products and to attention apart, plus a constant per step and the all-reduces of tensor parallelism.
    With `Efficiency.overlap` below 1 products take a part of the less scarce resource's time besides.
    """

    def __init__(
        self, gpu: GpuProfile, model: ModelShape, efficiency: Efficiency | None = None, speed: float = 1.0
    ) -> None:
        """`speed` scales the whole worker: 0.5 is one that takes twice as long for everything."""
        e = efficiency or Efficiency()
        n = model.tensor_parallel
        self._model = model
        self._speed = speed
        self._exposed = 1.0 - e.overlap
        self._product_s = 2.0 * model.num_active_params / (gpu.flops * e.compute * n)
        self._pair_s = model.attention_flops / (gpu.flops * e.attention * n)
        self._byte_s = 1.0 / (gpu.memory_bytes_per_s * e.bandwidth * n)
        self._kv_s = model.kv_bytes_per_token * self._byte_s
        self._base_s = e.step_s
        self._reduce_s = 0.0
        if n > 1:
            # A ring all-reduce sends 2(n - 1)/n of the activations, twice per layer, in bf16.
            self._base_s += 2 * model.num_layers * e.collective_s
            num_bytes = 2 * model.num_layers * model.hidden_size * 2 * 2 * (n - 1) / n
            self._reduce_s = num_bytes / (gpu.peer_bytes_per_s * e.peer)

    def step_s(self, work: StepCost, inner_context: int) -> float:
        """As `StepTime.step_s`."""
        num_tokens = work.num_prefill_tokens + work.num_decode_sequences
        attention = (work.prefill_token_context + inner_context) * self._pair_s
        attention += work.decode_kv_tokens * self._kv_s
        rest = self._base_s + attention + num_tokens * self._reduce_s
        return (self._products_s(num_tokens) + rest) / self._speed

    def _products_s(self, num_tokens: int) -> float:
        computing_s = num_tokens * self._product_s
        reading_s = self._model.weight_bytes_read(num_tokens) * self._byte_s
        return max(computing_s, reading_s) + self._exposed * min(computing_s, reading_s)


class MeasuredLayers(Roofline):
    """As a roofline, but products and the work on activations take what was measured (`layer_times`)."""

    def __init__(self, gpu: GpuProfile, model: ModelShape, speed: float = 1.0) -> None:
        """ValueError for anything but the GPU and the model that were measured."""
        if (gpu.name, model.name) != (layer_times.GPU, layer_times.MODEL):
            known = f"{layer_times.MODEL} on {layer_times.GPU}"
            raise ValueError(
                f"{model.name} on {gpu.name} was not measured, only {known}: use another step model"
            )
        super().__init__(gpu, model, speed=speed)

    def _products_s(self, num_tokens: int) -> float:
        layers_s = 1e-3 * self._model.num_layers * layer_times.layer_ms(num_tokens)
        return layers_s + layer_times.HEAD_BYTES * self._byte_s


def gpu_step_time(step_model: str, gpu: str, model: str, speed: float = 1.0) -> Roofline:
    """The steps of a worker, by a name of `STEP_MODELS`."""
    match step_model:
        case "roofline":
            return Roofline(GPUS[gpu], MODELS[model], speed=speed)
        case "fitted":
            return Roofline(GPUS[gpu], MODELS[model], FITTED, speed)
        case "measured":
            return MeasuredLayers(GPUS[gpu], MODELS[model], speed)
    raise ValueError(f"step model {step_model!r}: must be one of {', '.join(STEP_MODELS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedStepTime:
    """A worker as its own fits describe it; a step that does both pays the base of one."""

    prefill: PrefillSpeed
    decode: DecodeSpeed

    def step_s(self, work: StepCost, inner_context: int) -> float:
        """As `StepTime.step_s`; pairs within chunks are in the fit's tokens already."""
        seconds = 0.0
        if work.num_prefill_tokens:
            seconds += self.prefill.a_ms + self.prefill.b_ms * work.num_prefill_tokens
            seconds += self.prefill.c_ms * work.prefill_token_context
        if work.num_decode_sequences:
            seconds += self.decode.step_ms(work.num_decode_sequences, work.decode_kv_tokens)
            if work.num_prefill_tokens:
                seconds -= self.decode.a_ms
        return seconds / 1e3


def kv_tokens(gpu: GpuProfile, model: ModelShape, efficiency: Efficiency | None = None) -> int:
    """Tokens whose keys and values fit beside the weights; ValueError when none do."""
    e = efficiency or Efficiency()
    room = model.tensor_parallel * gpu.memory_bytes * e.memory - model.weight_bytes
    tokens = int(room / model.kv_bytes_per_token)
    if tokens < 1024:
        raise ValueError(f"{model.name} does not fit on {model.tensor_parallel} x {gpu.name}")
    return tokens
