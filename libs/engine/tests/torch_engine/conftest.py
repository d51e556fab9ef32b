"""Tiny random models saved by transformers, and a driver that runs a TorchRunner without a scheduler."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tandem_common.generation import SamplingParams, StoppingParams
from tandem_engine.api import EngineInfo
from tandem_engine.batch import Batch, DrawnToken, ScheduledSequence
from tandem_engine.config import EngineConfig
from tandem_engine.torch_engine import TorchRunner
from tandem_engine.torch_engine.paged_rows import PagedRows

# These models are far too small for a second thread to help.
torch.set_num_threads(1)

GREEDY = SamplingParams(temperature=0.0)
VOCAB_SIZE = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that greedy output does not collapse to one token.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 9.0],
    "original_max_position_embeddings": 64,
}
# Tied embeddings that are scaled up would have the model repeat its last token for ever.
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 19, "tie_word_embeddings": False}
WIDE = {"head_dim": 32, "intermediate_size": 128, "num_hidden_layers": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 24}
# Name to (architecture, what differs from SHAPE).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    # No grouping of heads, and heads that are wider together than the model.
    "llama2": ("Llama", {"num_key_value_heads": 4, "head_dim": 24, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 32}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 21}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}),
    "qwen2.5": ("Qwen2", {"use_sliding_window": False, "sliding_window": 19, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-window": (
        "Qwen3",
        {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1, "seed": 5},
    ),
    # Caps low enough that they matter for scores and logits of this size.
    "gemma2": (
        "Gemma2",
        GEMMA
        | {
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
            "num_hidden_layers": 4,
            "initializer_range": 0.4,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "phi3-partial": (
        "Phi3",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "pad_token_id": 0,
            "seed": 1,
        },
    ),
    "phi3-window": ("Phi3", {"sliding_window": 23, "pad_token_id": 0}),
    "phi4-mini": (
        "Phi3",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        EXPERTS | {"num_experts": 6, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "qwen3-moe-shares": ("Qwen3Moe", EXPERTS | {"num_experts": 6, "decoder_sparse_step": 2}),
    # Sizes that the kernel for steps of few tokens knows.
    "llama-wide": ("Llama", WIDE | {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biases-wide": ("Llama", WIDE | {"attention_bias": True, "mlp_bias": True}),
    "mistral-wide": ("Mistral", WIDE | {"sliding_window": 21}),
    "qwen2-wide": ("Qwen2", WIDE | {"vocab_size": 323}),
    "qwen3-wide": ("Qwen3", WIDE | {"head_dim": 64, "num_key_value_heads": 1}),
    "gemma2-wide": ("Gemma2", WIDE | GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}),
    "gemma3-wide": (
        "Gemma3Text",
        WIDE | GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "phi3-wide": ("Phi3", WIDE | {"pad_token_id": 0}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 17}),
}


@dataclass(frozen=True)
class TinyModel:
    """A model directory and the same model in transformers."""

    path: Path
    reference: Any

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits after each token, (tokens, vocab_size)."""
        with torch.inference_mode():
            return self.reference(torch.tensor([list(token_ids)]), use_cache=False).logits[0]

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        token_ids = list(prompt)
        for _ in range(num_tokens):
            token_ids.append(int(self.logits(token_ids)[-1].argmax()))
        return token_ids[len(prompt) :]


def save_tiny_model(path: Path, architecture: str, seed: int = 0, **overrides: Any) -> TinyModel:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**(SHAPE | overrides))
    config._attn_implementation = "eager"
    reference = getattr(transformers, f"{architecture.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.3)
    reference.save_pretrained(path)
    return TinyModel(path, reference)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Makes each of MODELS once."""
    made: dict[str, TinyModel] = {}

    def make(name: str) -> TinyModel:
        if name not in made:
            architecture, overrides = MODELS[name]
            made[name] = save_tiny_model(tmp_path_factory.mktemp(name), architecture, **overrides)
        return made[name]

    return make


@dataclass
class Track:
    """One sequence that a test steps through a runner."""

    token_ids: list[int]
    num_prompt_tokens: int
    block_ids: list[int]
    sampling: SamplingParams
    stopping: StoppingParams
    num_computed_tokens: int = 0

    @property
    def output(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


class Driver:
    """Hands out shuffled blocks and builds batches; what a scheduler does, without any policy."""

    def __init__(self, runner: TorchRunner, info: EngineInfo) -> None:
        self.runner = runner
        self.info = info
        self._free = list(range(info.num_blocks))
        random.Random(5).shuffle(self._free)

    def track(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        stopping: StoppingParams | None = None,
        num_prompt_tokens: int | None = None,
    ) -> Track:
        return Track(
            list(prompt),
            num_prompt_tokens or len(prompt),
            [],
            sampling,
            stopping or StoppingParams(max_tokens=200),
        )

    def release(self, track: Track) -> list[int]:
        freed, track.block_ids = track.block_ids, []
        self._free.extend(freed)
        return freed

    def batch(self, *rows: tuple[Track, int]) -> Batch:
        """A batch that computes so many new tokens of each track."""
        sequences = []
        for track, num_new_tokens in rows:
            end = track.num_computed_tokens + num_new_tokens
            self.reserve(track, end)
            sequences.append(
                ScheduledSequence(
                    request_id=f"r{id(track)}",
                    token_ids=track.token_ids,
                    num_computed_tokens=track.num_computed_tokens,
                    num_new_tokens=num_new_tokens,
                    block_ids=track.block_ids,
                    num_prompt_tokens=track.num_prompt_tokens,
                    sampling=track.sampling,
                    stopping=track.stopping,
                    draws_token=end == len(track.token_ids),
                )
            )
        return Batch(sequences)

    def reserve(self, track: Track, num_tokens: int) -> None:
        while len(track.block_ids) * self.info.block_size < num_tokens:
            track.block_ids.append(self._free.pop(0))

    def step(self, *rows: tuple[Track, int]) -> None:
        """Run one batch and append what was drawn."""
        drawn = self.runner.execute(self.batch(*rows))
        for (track, num_new_tokens), token in zip(rows, drawn, strict=True):
            track.num_computed_tokens += num_new_tokens
            if token is not None:
                track.token_ids.append(token.token_id if isinstance(token, DrawnToken) else token)

    def logits(self, track: Track, num_new_tokens: int) -> torch.Tensor | None:
        """Advance one track without drawing; logits (vocab_size,) when it reached its last token."""
        (logits,) = self.runner.compute_logits(self.batch((track, num_new_tokens)))
        track.num_computed_tokens += num_new_tokens
        return logits

    def prefill(self, track: Track, chunk: int = 1000) -> None:
        while (left := len(track.token_ids) - track.num_computed_tokens) > chunk:
            self.step((track, chunk))
        self.step((track, left))

    def generate(self, track: Track, num_tokens: int, chunk: int = 1000) -> list[int]:
        """Prefill in chunks, then decode alone."""
        self.prefill(track, chunk)
        while len(track.output) < num_tokens:
            self.step((track, 1))
        return track.output


@pytest.fixture
def load() -> Iterator[Callable[..., Driver]]:
    """Loads a runner for a model directory; closed after the test."""
    runners: list[TorchRunner] = []

    def make(path: Path, **settings: Any) -> Driver:
        defaults = {
            "engine": "torch",
            "model": str(path),
            "device": "cpu",
            "num_blocks": 128,
            "block_size": 8,
        }
        runner = TorchRunner(EngineConfig(**(defaults | settings)))
        runners.append(runner)
        return Driver(runner, runner.load())

    yield make
    for runner in runners:
        runner.close()


@pytest.fixture(scope="session")
def random_prompt() -> Callable[[int, int], list[int]]:
    def make(length: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(VOCAB_SIZE), k=length)

    return make


@pytest.fixture(scope="session")
def attend_plainly() -> Callable[..., torch.Tensor]:
    """A PagedAttention that goes row by row: the kernels for a GPU must give the same."""

    def attend(
        queries: torch.Tensor, pool: torch.Tensor, rows: PagedRows, layer: int, softcap: float
    ) -> torch.Tensor:
        outputs = []
        for query, table, position in zip(
            queries, rows.tables.tolist(), rows.positions.tolist(), strict=True
        ):
            block_size = pool.shape[3]
            blocks = rows.blocks[table : table + position // block_size + 1]
            first = max(0, position + 1 - rows.window) if rows.window else 0
            keys, values = (pool[blocks, layer, part].flatten(0, 1)[first : position + 1] for part in (0, 1))
            own = query.view(keys.shape[1], -1, query.shape[-1]).float()  # (kv heads, heads of one, head_dim)
            scores = torch.einsum("ghd,kgd->ghk", own, keys.float()) * query.shape[-1] ** -0.5
            if softcap:
                scores = (scores / softcap).tanh() * softcap
            outputs.append(torch.einsum("ghk,kgd->ghd", scores.softmax(-1), values.float()).view(query.shape))
        return torch.stack(outputs).to(queries.dtype)

    return attend
