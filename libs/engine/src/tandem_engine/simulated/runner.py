"""A model runner without a model: for tests, and for trying out deployments on machines that could not run one.

Steps take the time that the configured formula gives, on the real clock. Tokens depend on the prompt and the
position only: seed, temperature and penalties are ignored. It never draws one of the request's stop tokens, so
that every sequence has the length that was asked for.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tandem_engine.api import EngineInfo, ModelError, StepCost
from tandem_engine.batch import Batch, Draw, DrawnToken, ScheduledSequence
from tandem_engine.config import EngineConfig
from tandem_engine.pool_memory import PoolMemory, shareable_memory
from tandem_engine.simulated.running_state import (
    FIRST_STATE,
    MASK,
    STATE_BYTES,
    checksum,
    draw_token,
    made_up_logprobs,
    next_states,
)
from tandem_engine.step_cost import step_cost

DEFAULT_VOCAB_SIZE = 32_000
DEFAULT_CONTEXT_TOKENS = 131_072
# kv_cache_mib would give millions of blocks: the real ones take 8 bytes per token.
DEFAULT_NUM_BLOCKS = 16_384


@dataclass(slots=True)
class _Head:
    """What the last draw of a row read: a model's own work in a step is not to be repeated by its stand-in."""

    num_tokens: int  # whose states were read
    state: int  # the last of them
    checksum: int  # of all of them, as they were in the blocks
    at: int  # where the next one goes, unless it begins a block


class SimulatedRunner:
    """`Runner` of tandem_engine.batch whose keys and values are 8 bytes per token: see `running_state`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._block_size = config.block_size
        self._vocab_size = DEFAULT_VOCAB_SIZE
        self.memory: PoolMemory | None = None
        self._blocks: list[memoryview] = []
        self._states = memoryview(b"").cast("Q")  # those of all blocks, one per token

    def load(self) -> EngineInfo:
        """Allocate the blocks; ModelError when there is a model directory that cannot be used."""
        config, block_size = self._config, self._block_size
        model = _read_model_config(Path(config.model)) if config.model else {}
        self._vocab_size = model.get("vocab_size", DEFAULT_VOCAB_SIZE)
        num_blocks = config.num_blocks or DEFAULT_NUM_BLOCKS
        max_context_tokens = model.get("max_position_embeddings", DEFAULT_CONTEXT_TOKENS)
        if config.max_context_tokens:
            max_context_tokens = min(max_context_tokens, config.max_context_tokens)
        block_bytes = block_size * STATE_BYTES
        self.memory = shareable_memory(num_blocks * block_bytes) if config.shares_pool else None
        memory = self.memory.view if self.memory else memoryview(bytearray(num_blocks * block_bytes))
        self._states = memory.cast("Q")
        self._blocks = [memory[i * block_bytes : (i + 1) * block_bytes] for i in range(num_blocks)]
        layout = f"simulated v2, {block_size} tokens per block, vocabulary {self._vocab_size}"
        return EngineInfo(
            name="simulated",
            vocab_size=self._vocab_size,
            max_context_tokens=min(max_context_tokens, num_blocks * block_size),
            block_size=block_size,
            num_blocks=num_blocks,
            max_step_tokens=config.max_step_tokens,
            max_sequences=config.max_sequences,
            dtype="uint64",
            block_shape=(1, 1, block_size, 1, 1),
            block_bytes=block_bytes,
            layout_digest=blake2b(layout.encode(), digest_size=16).digest(),
        )

    def execute(self, batch: Batch) -> list[Draw]:
        """Compute the states, draw, and take as long as the formula says."""
        started = time.perf_counter()
        drawn, cost = self.begin(batch)
        remaining_s = started + cost.duration_ms / 1e3 - time.perf_counter()
        if remaining_s > 0:
            time.sleep(remaining_s)
        return drawn

    def begin(self, batch: Batch) -> tuple[list[Draw], StepCost]:
        """What `execute` gives, and what it computes and takes for that, without the wait."""
        drawn: list[Draw] = []
        states, size, vocab_size = self._states, self._block_size, self._vocab_size
        for row in batch.sequences:
            head, start = row.note, row.num_computed_tokens
            if type(head) is not _Head or head.num_tokens != start:
                drawn.append(self._compute(row))
                continue
            # Decoding goes on from what the last draw read.
            head.num_tokens = start + 1
            at = head.at if start % size else row.block_ids[start // size] * size
            head.at = at + 1
            # `next_state`, without a call.
            state = states[at] = head.state = hash((head.state, row.token_ids[start])) & MASK
            head.checksum = checksum(state.to_bytes(STATE_BYTES, "little"), head.checksum)
            token_id = head.checksum % vocab_size
            if token_id in row.stopping.stop_token_ids or row.sampling.logprobs is not None:
                drawn.append(self._draw(row, head.checksum))
            else:
                drawn.append(token_id)
        cost = step_cost(batch, 0.0)
        return drawn, cost.lasting(self._step_ms(cost))

    def view_blocks(self, block_ids: Sequence[int]) -> list[memoryview]:
        """The blocks' memory itself."""
        return [self._blocks[block_id] for block_id in block_ids]

    def host_memory(self, num_bytes: int) -> memoryview:
        """Any."""
        return memoryview(bytearray(num_bytes))

    def page_lock(self, memory: memoryview) -> None:
        """There is no device."""

    def read_blocks(self, block_ids: Sequence[int], out: memoryview) -> None:
        """Copy blocks into `out`, one after another."""
        size = self._block_size * STATE_BYTES
        target = out.cast("B")
        for index, block_id in enumerate(block_ids):
            target[index * size : (index + 1) * size] = self._blocks[block_id]

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Fill blocks from `payload`, laid out as in `read_blocks`."""
        size = self._block_size * STATE_BYTES
        source = payload.cast("B")
        for index, block_id in enumerate(block_ids):
            self._blocks[block_id][:] = source[index * size : (index + 1) * size]

    def poison_blocks(self, block_ids: Sequence[int]) -> None:
        """Fill blocks with a state that no sequence has."""
        for block_id in block_ids:
            self._blocks[block_id][:] = b"\xff" * (self._block_size * STATE_BYTES)

    def close(self) -> None:
        """Free the blocks."""
        self._blocks, self._states = [], memoryview(b"").cast("Q")
        self.memory = None

    def _compute(self, row: ScheduledSequence) -> Draw:
        """Write the states of the new tokens behind those in the blocks; then draw from all of them."""
        start, end = row.num_computed_tokens, row.num_computed_tokens + row.num_new_tokens
        state = FIRST_STATE if start == 0 else self._read_state(row.block_ids, start - 1)
        states = next_states(state, row.token_ids[start:end])
        self._write_states(row.block_ids, start, states)
        if not row.draws_token:
            return None
        read = checksum(self._read_states(row.block_ids, end))
        if (
            not self._config.poison_freed_blocks
        ):  # else every draw reads every block: one freed too early shows
            block, slot = divmod(end, self._block_size)
            at = row.block_ids[block] * self._block_size + slot if slot else -1
            row.note = _Head(end, states[-1], read, at)
        return self._draw(row, read)

    def _draw(self, row: ScheduledSequence, read: int) -> Draw:
        token_id = draw_token(read, self._vocab_size, row.stopping.stop_token_ids)
        if row.sampling.logprobs is None:
            return token_id
        return DrawnToken(token_id, made_up_logprobs(token_id, row.sampling.logprobs, self._vocab_size))

    def _read_state(self, block_ids: Sequence[int], position: int) -> int:
        block, slot = divmod(position, self._block_size)
        return self._states[block_ids[block] * self._block_size + slot]

    def _write_states(self, block_ids: Sequence[int], position: int, states: Sequence[int]) -> None:
        """Write states from `position` on, block by block."""
        packed = struct.pack(f"{len(states)}Q", *states)
        done = 0
        while done < len(packed):
            block, slot = divmod(position, self._block_size)
            start = slot * STATE_BYTES
            piece = packed[done : done + self._block_size * STATE_BYTES - start]
            self._blocks[block_ids[block]][start : start + len(piece)] = piece
            done += len(piece)
            position += len(piece) // STATE_BYTES

    def _read_states(self, block_ids: Sequence[int], num_tokens: int) -> bytes:
        num_full, rest = divmod(num_tokens, self._block_size)
        parts = [self._blocks[block_id] for block_id in block_ids[:num_full]]
        if rest:
            parts.append(self._blocks[block_ids[num_full]][: rest * STATE_BYTES])
        return b"".join(parts)

    def _step_ms(self, cost: StepCost) -> float:
        config, duration_ms = self._config, 0.0
        if cost.num_prefill_tokens:
            duration_ms += (
                config.sim_prefill_base_ms
                + config.sim_prefill_token_ms * cost.num_prefill_tokens
                + config.sim_prefill_context_ms * cost.prefill_token_context
            )
        if cost.num_decode_sequences:
            duration_ms += (
                config.sim_decode_base_ms
                + config.sim_decode_sequence_ms * cost.num_decode_sequences
                + config.sim_decode_kv_ms * cost.decode_kv_tokens
            )
        return duration_ms


def _read_model_config(path: Path) -> dict[str, Any]:
    """Vocabulary and context length of a Hugging Face model directory; ModelError names what is wrong."""
    try:
        content = json.loads((path / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(
            f"cannot read config.json in the model directory {path} ({error.strerror}); point `model` to a "
            "directory that has one, or leave it empty"
        ) from None
    except ValueError:
        raise ModelError(f"config.json in {path} is not valid JSON; download the model again") from None
    numbers = {}
    for name in ("vocab_size", "max_position_embeddings"):
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"config.json in {path} has no usable {name} ({value!r}); a positive number is needed"
            )
        numbers[name] = value
    return numbers
