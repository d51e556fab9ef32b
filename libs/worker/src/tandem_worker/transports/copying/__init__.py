"""Copying memory and summing it in one pass: by a kernel in C that is compiled at first use, or piece by piece."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tandem_common.logs import get_logger
from tandem_engine.kernel_build import compiled_library

from tandem_worker.transports.payload import checksum

_log = get_logger("transports")

# Small enough to be summed out of the processor's cache; from this size on, memmove writes past it, at twice the speed.
_PIECE_BYTES = 1 << 20

# (target address, source address, number of bytes, CRC-32 of what was before) -> CRC-32 of all.
CopySum = Callable[[int, int, int, int], int]


@cache
def copy_sum() -> CopySum:
    """The fastest way that there is here; the first call may compile. It gives up the interpreter lock."""
    try:
        function = ctypes.CDLL(str(compiled_library(Path(__file__).parent))).copy_sum
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("blocks are copied and summed in two passes", reason=type(error).__name__)
        return copy_then_sum
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
    function.restype = ctypes.c_uint32
    return function


def copy_then_sum(target: int, source: int, num_bytes: int, before: int) -> int:
    """The same in plain Python; sums what it copied from, right after, so that a change meanwhile shows."""
    total = before
    for start in range(0, num_bytes, _PIECE_BYTES):
        length = min(_PIECE_BYTES, num_bytes - start)
        ctypes.memmove(target + start, source + start, length)
        total = checksum([memoryview((ctypes.c_char * length).from_address(source + start))], total)
    return total
