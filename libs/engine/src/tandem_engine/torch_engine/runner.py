"""The model runner of the torch engine: loads a model, owns its blocks, computes steps."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from tandem_common.logs import get_logger
from tandem_common.model_source import model_revision
from torch import Tensor

from tandem_engine.api import EngineInfo, ModelError
from tandem_engine.batch import Batch, Draw, ScheduledSequence
from tandem_engine.config import EngineConfig
from tandem_engine.pool_memory import PoolMemory
from tandem_engine.torch_engine.decode_graphs import CudaCapture, DecodeGraphs, capture_steps, likeliest
from tandem_engine.torch_engine.decode_step import DecodeStep
from tandem_engine.torch_engine.device_copies import as_tensor, finish, host_memory, page_lock
from tandem_engine.torch_engine.kernels import Kernels, load_kernels
from tandem_engine.torch_engine.kv_cache import KVCache, block_shape
from tandem_engine.torch_engine.linear import has_tiles, packs
from tandem_engine.torch_engine.memory import MIB, available_bytes, check_memory
from tandem_engine.torch_engine.model import Transformer
from tandem_engine.torch_engine.model_config import ModelConfig, load_model_config
from tandem_engine.torch_engine.paged_rows import PagedAttention
from tandem_engine.torch_engine.rope import LayerRotations
from tandem_engine.torch_engine.sampler import draw_tokens, draws_likeliest
from tandem_engine.torch_engine.short_step import ShortStep
from tandem_engine.torch_engine.step_inputs import make_step_inputs
from tandem_engine.torch_engine.weights import Weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


_log = get_logger("torch-engine")


class TorchRunner:
    """`Runner` of tandem_engine.batch for models in Hugging Face format, on CPU or CUDA.

    Call what computes from one thread: torch keeps its number of threads per calling thread.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._model: Transformer | None = None
        self._cache: KVCache | None = None
        # After `load`: what computes a whole step at once, where there is one that fits the model and the device.
        self.short_step: ShortStep | None = None
        self.decode_graphs: DecodeGraphs | None = None
        self._windows: frozenset[int] = frozenset()
        self._dtype = torch.float32

    @torch.inference_mode()
    def load(self) -> EngineInfo:
        """Read the model and allocate the pool; ModelError says what is wrong and how to mend it."""
        config, path = self._config, Path(self._config.model)
        if config.threads:
            torch.set_num_threads(config.threads)
        model_config = load_model_config(path)
        device = _device(config.device)
        self._dtype = dtype = _dtype(config.dtype, device, model_config)
        num_blocks = _num_blocks(config, model_config, dtype)
        max_context_tokens = _max_context_tokens(config, model_config, num_blocks)
        shape = block_shape(model_config, config.block_size)
        paged = _paged_attention(device)
        has_graphs = paged is not None and config.cuda_graphs
        with Weights(path, dtype=dtype, device=device) as weights:
            check_memory(
                weight_bytes=weights.num_bytes() + _num_packed_copy_bytes(model_config, dtype, device),
                kv_bytes=(num_blocks + has_graphs) * _num_bytes(shape, dtype),
                available=available_bytes(device),
                device=device,
            )
            rotations = LayerRotations(model_config, max_context_tokens, dtype, device)
            self._model = Transformer(model_config, weights, rotations)
        self._cache = KVCache(
            model_config,
            num_blocks=num_blocks + has_graphs,  # one more than the scheduler knows of, for rows of padding
            block_size=config.block_size,
            dtype=dtype,
            device=device,
            kernels=_kernels(model_config, dtype, device),
            paged=paged,
            shared=config.shares_pool,
        )
        if ShortStep.fits(self._model, model_config, self._cache):
            self.short_step = ShortStep(self._model, model_config, self._cache)
        self._windows = frozenset(model_config.windows)
        if has_graphs and self._model.is_static:
            self.decode_graphs = capture_steps(
                DecodeStep(self._model, self._cache, windows=self._windows, scratch_block=num_blocks),
                max_sequences=config.max_sequences,
                max_context_tokens=max_context_tokens,
                make_capture=CudaCapture,
            )
        name = str(dtype).removeprefix("torch.")
        # Keys that were turned by other angles mean something else.
        revision = model_revision(path) + (" long" if rotations.is_long else "")
        return EngineInfo(
            name="torch",
            vocab_size=model_config.vocab_size,
            max_context_tokens=max_context_tokens,
            block_size=config.block_size,
            num_blocks=num_blocks,
            max_step_tokens=config.max_step_tokens,
            max_sequences=config.max_sequences,
            dtype=name,
            block_shape=shape,
            block_bytes=self._cache.block_bytes,
            layout_digest=_layout_digest(name, shape, revision),
        )

    def execute(self, batch: Batch) -> list[Draw]:
        """Compute one step and draw a token for each row that asks for one."""
        drawing = [row for row in batch.sequences if row.draws_token]
        short = self.short_step
        if short is not None and short.takes(batch) and all(map(draws_likeliest, drawing)):
            drawn: list[Draw] = [*short.likeliest(batch, len(drawing))]
        elif self.decode_graphs is not None and self.decode_graphs.takes(batch):
            drawn = self._replay(self.decode_graphs, batch, drawing)
        else:
            with torch.inference_mode():
                logits = self._logits(batch)
                drawn = draw_tokens(logits, drawing) if drawing else []
        if not drawn:
            # Nothing was read back: a step has ended, and its blocks may be lent, when the device has computed it.
            finish(self.cache.device)
        if len(drawn) == len(batch.sequences):
            return drawn
        tokens = iter(drawn)
        return [next(tokens) if row.draws_token else None for row in batch.sequences]

    @torch.inference_mode()
    def compute_logits(self, batch: Batch) -> list[Tensor | None]:
        """Like `execute`, but gives the model's own logits (vocab_size,) instead of tokens drawn from them."""
        logits = iter(self._logits(batch))
        return [next(logits) if row.draws_token else None for row in batch.sequences]

    @property
    def memory(self) -> PoolMemory | None:
        """The pool's, if it lies in such."""
        return self.cache.memory

    def view_blocks(self, block_ids: Sequence[int]) -> list[memoryview] | None:
        """The blocks' memory itself; None on CUDA."""
        return self.cache.views(block_ids)

    @torch.inference_mode()
    def read_blocks(self, block_ids: Sequence[int], out: memoryview) -> None:
        """Copy blocks into `out`."""
        self.cache.read(block_ids, out)

    @torch.inference_mode()
    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Fill blocks from `payload`."""
        self.cache.write(block_ids, payload)

    @torch.inference_mode()
    def poison_blocks(self, block_ids: Sequence[int]) -> None:
        """Fill blocks with NaN."""
        self.cache.poison(block_ids)
        finish(self.cache.device)  # before anyone writes to them from another thread

    def host_memory(self, num_bytes: int) -> memoryview:
        """Page-locked where the blocks are on a GPU."""
        return host_memory(num_bytes, self.cache.device)

    def page_lock(self, memory: memoryview) -> None:
        """Where the blocks are on a GPU."""
        page_lock(memory, self.cache.device)

    def close(self) -> None:
        """Drop the model and the pool."""
        self.short_step = None
        self.decode_graphs = None
        self._model = None
        self._cache = None

    @property
    def cache(self) -> KVCache:
        """The pool; RuntimeError before `load`."""
        if self._cache is None:
            raise RuntimeError("the runner is not loaded")
        return self._cache

    @torch.inference_mode()
    def _replay(self, graphs: DecodeGraphs, batch: Batch, drawing: list[ScheduledSequence]) -> list[Draw]:
        """One token per drawing row of a batch that the graphs take."""
        result = graphs.run(batch)
        if all(map(draws_likeliest, drawing)):
            tokens = likeliest(result.tokens)
            return [token for token, row in zip(tokens, batch.sequences, strict=True) if row.draws_token]
        if len(drawing) == len(batch.sequences):
            return draw_tokens(result.logits, drawing)
        at = array("q", [index for index, row in enumerate(batch.sequences) if row.draws_token])
        return draw_tokens(result.logits.index_select(0, as_tensor(at, self.cache.device)), drawing)

    def _logits(self, batch: Batch) -> Tensor:
        """Logits (drawing rows, vocab_size), in the order of the batch, of a step that is computed."""
        if self.short_step is not None and self.short_step.takes(batch):
            return self.short_step.logits(batch)
        if self._model is None:
            raise RuntimeError("the runner is not loaded")
        cache = self.cache
        inputs = make_step_inputs(batch, cache, self._windows, self._dtype)
        cache.clear(inputs.begun_blocks)
        in_order = array("q", sorted(range(len(inputs.drawing)), key=inputs.drawing.__getitem__))
        return self._model(inputs, cache).index_select(0, as_tensor(in_order, cache.device))


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device is cuda, but torch sees no CUDA device; install a CUDA build of torch and the driver, or set "
            "device to cpu"
        )
    return wanted


def _dtype(wanted: str, device: str, model_config: ModelConfig) -> torch.dtype:
    if wanted == "auto":
        # A CPU computes float32 exactly and everywhere; a GPU is there for the model's own.
        wanted = "float32" if device == "cpu" or model_config.dtype == "float32" else "bfloat16"
    return _DTYPES[wanted]


def _num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _kernels(config: ModelConfig, dtype: torch.dtype, device: str) -> Kernels | None:
    """Those that decode; families that cap their scores have an attention of their own."""
    if device != "cpu" or config.attention_softcap:
        return None
    return load_kernels(dtype)


def _paged_attention(device: str) -> PagedAttention | None:
    """Decode attention on a GPU; None where Triton, which comes with torch for CUDA, is not installed."""
    if device != "cuda":
        return None
    try:
        from tandem_engine.torch_engine.triton_attention import TritonAttention
    except ImportError as error:
        _log.warning("triton is not installed: decoding on the GPU is slower", reason=str(error))
        return None
    return TritonAttention(torch.cuda.get_device_properties(device).multi_processor_count)


def _num_packed_copy_bytes(config: ModelConfig, dtype: torch.dtype, device: str) -> int:
    """Embeddings that are the output's weight too lie in memory twice when they are not found in the packed one."""
    if not (config.tied_embeddings and packs(dtype, device)) or has_tiles(dtype, device):
        return 0
    return _num_bytes((config.vocab_size, config.hidden_size), dtype)


def _num_blocks(config: EngineConfig, model_config: ModelConfig, dtype: torch.dtype) -> int:
    if config.num_blocks:
        return config.num_blocks
    block_bytes = _num_bytes(block_shape(model_config, config.block_size), dtype)
    num_blocks = config.kv_cache_mib * MIB // block_bytes
    if num_blocks < 1:
        raise ModelError(
            f"kv_cache_mib is {config.kv_cache_mib}, but one block of this model takes {block_bytes / MIB:.1f} MiB; "
            "raise kv_cache_mib or lower block_size"
        )
    return num_blocks


def _max_context_tokens(config: EngineConfig, model_config: ModelConfig, num_blocks: int) -> int:
    """The model's context, or less when the configuration or the pool allows less."""
    if config.max_context_tokens > model_config.max_context_tokens:
        raise ModelError(
            f"max_context_tokens is {config.max_context_tokens}, but the model was made for at most "
            f"{model_config.max_context_tokens}; lower it"
        )
    wanted = config.max_context_tokens or model_config.max_context_tokens
    room = num_blocks * config.block_size
    if room < wanted:
        _log.warning(
            "the KV cache is smaller than the context: raise kv_cache_mib", context=wanted, served=room
        )
    return min(wanted, room)


def _layout_digest(dtype: str, shape: Sequence[int], revision: str) -> bytes:
    """Digest (16 bytes) of everything that must be equal for blocks to mean the same to two engines."""
    layout = "\0".join(("torch v1", dtype, *map(str, shape), revision))
    return blake2b(layout.encode(), digest_size=16, key=b"tandem layout v1").digest()
