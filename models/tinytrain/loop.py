"""The training loop: loss, optimisers, schedule, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from .packing import Batch


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train and how fast to learn; the rate rises, stays, then falls to zero in a line.

    Training ends after `steps` or `minutes`, whichever comes first, and the rate is at zero then in both
    cases: a busy machine gives a model that has seen less, not one that was cut off.
    """

    steps: int
    minutes: float
    rate: float = 1.0
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 60
    decay_share: float = 0.6
    weight_decay: float = 0.02

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the training done after `step` steps and `elapsed_s` seconds; 1 or more is the end."""
        return max(step / self.steps, elapsed_s / (60.0 * self.minutes))

    def factor(self, step: int, progress: float) -> float:
        """Share of the full rate at `step`, counted from 0, and `progress`."""
        return self.rate * max(
            0.0, min(1.0, (step + 1) / self.warmup_steps, (1.0 - progress) / self.decay_share)
        )


class Learner:
    """Holds the compiled loss and both optimisers of one model.

    Muon moves the matrices inside the layers, AdamW the embedding and the norms: Muon needs fewer steps, and
    it is defined only for matrices that map vectors to vectors.
    """

    def __init__(self, model: LlamaForCausalLM, schedule: Schedule) -> None:
        self._model = model
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay),
            torch.optim.AdamW(
                others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
            ),
        )
        self._rates = (schedule.matrix_rate, schedule.other_rate)
        self._loss: Callable[[Tensor, Tensor], Tensor] = torch.compile(self._loss_of, dynamic=False)

    def _loss_of(self, ids: Tensor, weights: Tensor) -> Tensor:
        hidden = self._model.model(input_ids=ids).last_hidden_state[:, :-1]
        logits = self._model.lm_head(hidden).flatten(0, 1).float()
        each = nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        return (each * weight).sum() / weight.sum()

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean cross-entropy in nats per token, computed in bfloat16 where that is safe."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self._loss(torch.from_numpy(batch.ids), torch.from_numpy(batch.weights))

    def step(self, batch: Batch, factor: float) -> float:
        """One update at `factor` times the full rate; returns the loss before it."""
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimiser, rate in zip(self._optimisers, self._rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()
        return float(loss.detach())


@torch.no_grad()
def evaluate(learner: Learner, held_out: list[Batch]) -> float:
    """Mean loss over `held_out`."""
    return sum(float(learner.loss(batch)) for batch in held_out) / len(held_out)


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights in bfloat16 and the configuration; `model` itself stays in float32."""
    state = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embedding
    rounded = LlamaForCausalLM(model.config).bfloat16()
    rounded.load_state_dict(state, strict=False)
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(folder)


def train(
    model: LlamaForCausalLM, batches: list[Batch], held_out: list[Batch], schedule: Schedule, folder: Path
) -> float:
    """Train over `batches` again and again; save to `folder` every 500 steps and at the end.

    Returns the held-out loss at the end. Progress goes to standard output.
    """
    learner = Learner(model, schedule)
    began = time.monotonic()
    mean, step, progress = 0.0, 0, 0.0
    while progress < 1.0:
        loss = learner.step(batches[step % len(batches)], schedule.factor(step, progress))
        step += 1
        mean = loss if step == 1 else 0.95 * mean + 0.05 * loss
        elapsed_s = time.monotonic() - began
        progress = schedule.progress(step, elapsed_s)
        if step % 50 == 0:
            print(f"step {step}/{schedule.steps}  loss {mean:.4f}  {elapsed_s:.0f} s", flush=True)
        if step % 500 == 0:
            save(model, folder)
    final = evaluate(learner, held_out)
    print(f"held-out loss {final:.4f} after {step} steps, {time.monotonic() - began:.0f} s", flush=True)
    save(model, folder)
    return final
