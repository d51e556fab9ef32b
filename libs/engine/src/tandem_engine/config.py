"""Configuration of an engine, and of nothing else; a worker's configuration contains these settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tandem_common.config import ConfigError, setting


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine, which model, and how much it may hold. Raises ConfigError, naming setting, value and fix."""

    engine: str = setting("torch", "what computes", choices=("torch", "simulated"))
    model: str = setting("", "directory of the model; the simulated engine can do without")
    dtype: str = setting(
        "auto",
        "of weights, keys and values; auto: float32 on a CPU, the model's own on a GPU",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = setting("auto", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    block_size: int = setting(16, "tokens per block", minimum=1, maximum=1024)
    num_blocks: int = setting(0, "blocks in the pool; 0: as many as kv_cache_mib holds", minimum=0)
    kv_cache_mib: int = setting(512, "memory for keys and values in MiB", minimum=1)
    max_context_tokens: int = setting(
        0, "longest sequence, prompt and output together; 0: the model's", minimum=0
    )
    max_step_tokens: int = setting(512, "most tokens computed in one step", minimum=1)
    max_sequences: int = setting(64, "most sequences computed in one step", minimum=1)
    max_waiting: int = setting(4096, "most requests that wait in the engine; more are refused", minimum=1)
    cuda_graphs: bool = setting(True, "on a GPU: capture decode steps in CUDA graphs when loading")
    threads: int = setting(0, "threads for computing; 0: the library's default", minimum=0)
    poison_freed_blocks: bool = setting(
        False,
        "fill freed blocks with garbage, so that reading one shows, and check all counts in each step (tests)",
    )
    sim_prefill_base_ms: float = setting(0.0, "simulated: a step with prompt chunks takes this", minimum=0)
    sim_prefill_token_ms: float = setting(0.0, "simulated: plus this per prompt token", minimum=0)
    sim_prefill_context_ms: float = setting(
        0.0, "simulated: plus this per prompt token and token before its chunk", minimum=0
    )
    sim_decode_base_ms: float = setting(0.0, "simulated: a step with decodes takes this", minimum=0)
    sim_decode_sequence_ms: float = setting(0.0, "simulated: plus this per decoding sequence", minimum=0)
    sim_decode_kv_ms: float = setting(0.0, "simulated: plus this per token that decodes attend to", minimum=0)

    @property
    def shares_pool(self) -> bool:
        """Whether the pool is to lie in memory that other processes can be let to read; whoever ships blocks knows.

        Only where there is need: they read all of it then.
        """
        return False

    def __post_init__(self) -> None:
        """Check each value against its field, and those that depend on each other."""
        for field in dataclasses.fields(EngineConfig):
            value, low, choices = (
                getattr(self, field.name),
                field.metadata["minimum"],
                field.metadata["choices"],
            )
            if low is not None and value < low:
                raise ConfigError(f"{field.name} = {value!r}: must be at least {low:g}")
            if choices is not None and value not in choices:
                raise ConfigError(f"{field.name} = {value!r}: must be one of {', '.join(choices)}")
        if self.engine == "torch" and not self.model:
            raise ConfigError(
                "model is empty: the torch engine needs the directory of a Hugging Face model "
                "(config.json and *.safetensors)"
            )
