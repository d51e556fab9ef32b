"""What this machine can do at best: the rate of large bfloat16 products, and of reading memory."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PRODUCT_SIZES = {"cpu": (2048, 4096), "cuda": (4096, 8192)}


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """Best of several tries each."""

    product_flops: float  # per second
    read_bytes: float  # per second, all cores together

    def best_rate(self, num_tokens: int, flops: float, num_bytes: float) -> tuple[float, str]:
        """Tokens per second of a pass that reaches the limit that applies to it, and which limit that is."""
        products, reads = flops / self.product_flops, num_bytes / self.read_bytes
        return num_tokens / max(products, reads), "products" if products >= reads else "reads"


def measure_limits(device: str = "cpu", tries: int = 7) -> MachineLimits:
    """Takes a few seconds and half a GiB."""
    products = max(_product_rate(size, device, tries) for size in PRODUCT_SIZES[device])
    reads = _read_rate(tries) if device == "cpu" else _device_read_rate(device, tries)
    return MachineLimits(product_flops=products, read_bytes=reads)


@torch.inference_mode()
def _product_rate(size: int, device: str, tries: int) -> float:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2.0 * size**3 / _best_s(lambda: torch.mm(a, b), device, tries)


def _read_rate(tries: int) -> float:
    """C's memchr over memory that lacks the byte: a plain read loop, and ctypes lets all cores do it at once."""
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

    return part * cores / _best_s(read_all, "cpu", tries)


def _device_read_rate(device: str, tries: int) -> float:
    """A sum over 2 GiB."""
    numbers = torch.ones(1 << 29, device=device)
    return numbers.nbytes / _best_s(numbers.sum, device, tries)


def _best_s(action: Callable[[], object], device: str, tries: int) -> float:
    """Seconds of the fastest of several tries, after one that warms up."""
    seconds = []
    for _ in range(tries + 1):
        start = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
