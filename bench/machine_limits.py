"""What this machine can do at best: the rate of large bfloat16 products, and of reading memory."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """Best of several tries each."""

    product_flops: float  # per second
    read_bytes: float  # per second, all cores together

    def least_seconds(self, flops: float, num_bytes: float) -> float:
        """How long a pass takes that reaches the limit that applies to it."""
        return max(flops / self.product_flops, num_bytes / self.read_bytes)


def measure_limits(tries: int = 7) -> MachineLimits:
    """Takes a few seconds and half a GiB."""
    size = 4096
    factors = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    with torch.inference_mode():
        seconds = min(_seconds(lambda: torch.mm(*factors)) for _ in range(tries))
    return MachineLimits(product_flops=2.0 * size**3 / seconds, read_bytes=_read_rate(tries))


def _read_rate(tries: int) -> float:
    """C's memchr over zeros, looking for a one: a plain read loop, and ctypes lets all cores do it at once."""
    cores = len(os.sched_getaffinity(0))
    part = (512 << 20) // cores
    buffers = [ctypes.create_string_buffer(part) for _ in range(cores)]
    for buffer in buffers:
        ctypes.memset(buffer, 2, part)
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p

    def read_all() -> None:
        threads = [threading.Thread(target=memchr, args=(buffer, 1, part)) for buffer in buffers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return part * cores / min(_seconds(read_all) for _ in range(tries))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
