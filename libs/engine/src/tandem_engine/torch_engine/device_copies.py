"""Numbers to and from the device. From and to page-locked memory they travel without the host waiting for them.

torch keeps page-locked memory for the next time, and knows which of it a copy still reads.
"""

from __future__ import annotations

from array import array

import torch
from torch import Tensor


def as_tensor(values: array[int], device: torch.device) -> Tensor:
    """The same integers (n,), int64, on the device."""
    if not values:
        return torch.empty(0, dtype=torch.int64, device=device)
    return to_device(torch.frombuffer(values, dtype=torch.int64), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device; itself where that is the host."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def host_memory(num_bytes: int, device: torch.device) -> memoryview:
    """Uninitialised memory of the host, page-locked where `device` can then copy from and to it by itself."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda").numpy().data


def finish(device: torch.device) -> None:
    """Wait until the device has done all that this thread has asked of it so far."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
