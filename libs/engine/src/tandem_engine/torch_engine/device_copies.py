"""Numbers to and from the device. From and to page-locked memory they travel without the host waiting for them.

torch keeps page-locked memory for the next time, and knows which of it a copy still reads.
"""

from __future__ import annotations

from array import array

import torch
from tandem_common.logs import get_logger
from torch import Tensor

from tandem_engine.pool_memory import address_of

_log = get_logger("torch-engine")

# Never unmapped: the device would go on using its pages for whatever is mapped there next.
_locked: list[memoryview] = []


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


def page_lock(memory: memoryview, device: torch.device) -> None:
    """Make memory that is there already as quick for `device` as `host_memory` is, if that can be."""
    if device.type == "cuda":
        _locked.append(memory)
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = runtime.cudaHostRegister(address_of(memory), len(memory), 0)
        if int(error):
            _log.warning("blocks are copied through memory that is not page-locked", error=int(error))


def finish(device: torch.device) -> None:
    """Wait until the device has done all that this thread has asked of it so far."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
