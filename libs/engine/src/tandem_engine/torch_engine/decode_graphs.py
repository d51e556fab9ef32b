"""Decode steps as CUDA graphs: launching a step's hundreds of kernels one by one takes longer than computing them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from tandem_common.logs import get_logger
from torch import Tensor

from tandem_engine.batch import Batch
from tandem_engine.torch_engine.decode_step import DecodeResult, DecodeStep, decode_sizes
from tandem_engine.torch_engine.device_copies import host_memory
from tandem_engine.torch_engine.flat_batch import FlatBatch, flatten

Compute = Callable[[], None]
# Makes of a function that computes from tensors to tensors, in place, one that does the same when it is called again.
Capture = Callable[[Compute], Compute]

# As often as a step runs before it is captured: kernels are compiled and libraries take their memory.
_WARM_UPS = 2

_log = get_logger(__name__)


class DecodeGraphs:
    """A captured step for each of a few numbers of rows. Use it from the thread that made it, in inference mode."""

    def __init__(
        self, step: DecodeStep, *, max_sequences: int, max_context_tokens: int, capture: Capture
    ) -> None:
        """Captures all, the largest first, so that smaller ones find memory to share; raises what goes wrong."""
        self._step = step
        self._sizes = decode_sizes(max_sequences)
        device = step.cache.device
        num_integers = step.num_integers(max_sequences, max_context_tokens)
        # int64: written by the host, and the same on the device. The host waits for the end of each step, so that it
        # never writes what is still to be copied.
        self._host = torch.frombuffer(host_memory(8 * num_integers, device), dtype=torch.int64)
        self._integers = torch.zeros(num_integers, dtype=torch.int64, device=device)
        # One for all sizes, since each has its last rows' worth of vocabularies.
        self._tokens = torch.zeros(max_sequences, dtype=torch.int64, device=device)
        self._logits = torch.zeros(max_sequences, step.vocab_size, device=device)
        nothing = flatten(Batch([]), block_size=1, stretch_tokens=1)
        self._replays: dict[int, Compute] = {}
        for size in reversed(self._sizes):
            self._send(nothing, size)
            self._replays[size] = capture(self._compute(size))

    def takes(self, batch: Batch) -> bool:
        """Whether all rows decode and there is a step for so many of them."""
        rows = batch.sequences
        return len(rows) <= self._sizes[-1] and all(row.num_new_tokens == 1 for row in rows)

    def run(self, batch: Batch) -> DecodeResult:
        """Compute a batch; its rows' results are to be used before the next run."""
        cache, num_rows = self._step.cache, len(batch.sequences)
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        flat = flatten(batch, block_size=cache.block_size, stretch_tokens=1)
        cache.clear(flat.begun_blocks)
        self._send(flat, size)
        self._replays[size]()
        return DecodeResult(tokens=self._tokens[:num_rows], logits=self._logits[:num_rows])

    def _send(self, flat: FlatBatch, size: int) -> None:
        packed = self._step.pack(flat, size)
        host, device = self._host[: len(packed)], self._integers[: len(packed)]
        host.copy_(torch.frombuffer(packed, dtype=torch.int64))
        device.copy_(host, non_blocking=True)

    def _compute(self, size: int) -> Compute:
        def compute() -> None:
            result = self._step.compute(self._integers, size)
            self._tokens[:size].copy_(result.tokens)
            self._logits[:size].copy_(result.logits)

        return compute


class CudaCapture:
    """Captures steps in CUDA graphs that share the memory between their inputs and results: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Run it a few times, capture it, and return what replays it."""
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(beside)
        torch.cuda.synchronize()  # the host's memory is about to be written again
        graph = torch.cuda.CUDAGraph()
        # Other threads may move blocks meanwhile: their calls are none of the capture's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        return graph.replay


def capture_steps(
    step: DecodeStep, *, max_sequences: int, max_context_tokens: int, make_capture: Callable[[], Capture]
) -> DecodeGraphs | None:
    """All graphs, or None and a warning when the device or a library cannot do it."""
    try:
        return DecodeGraphs(
            step,
            max_sequences=max_sequences,
            max_context_tokens=max_context_tokens,
            capture=make_capture(),
        )
    except Exception as error:  # noqa: BLE001 - CUDA, cuBLAS and Triton each have their own
        _log.warning(
            "decode steps cannot be captured in CUDA graphs and are slower: cuda_graphs = false goes without them",
            reason=f"{type(error).__name__}: {error}",
        )
        return None


def likeliest(tokens: Tensor) -> list[int]:
    """Tokens (rows,) on the host: the only wait of a step in which nothing else is drawn."""
    if tokens.is_cuda:
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        done.synchronize()
        tokens = host
    drawn: list[int] = tokens.tolist()
    return drawn
