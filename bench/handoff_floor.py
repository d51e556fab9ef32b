"""What no handoff between two processes can be quicker than: waking the other one, one copy, and being woken.

Run by `bench/handoff.py` with three descriptors (of a pool's memory and of two counters) and the core to run on. Each
count on the first counter is the MiB to copy out of the pool; then it counts on the second. Nothing is checked.
"""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np
from tandem_worker.transports.mapped_memory import MappedMemory

MIB = 1 << 20


def main(memory: int, asked: int, done: int, core: int) -> None:
    """Copy as asked, until killed."""
    if core >= 0:
        os.sched_setaffinity(0, {core})
    pool = MappedMemory(memory)
    array = np.ones(pool.num_bytes, dtype=np.uint8)
    target = array.ctypes.data
    ctypes.memmove(
        target, pool.address(0, pool.num_bytes), pool.num_bytes
    )  # so that no page is met for the first time
    start = 0
    while num_bytes := os.eventfd_read(asked) * MIB:
        start = start if start + num_bytes <= pool.num_bytes else 0
        ctypes.memmove(target + start, pool.address(start, num_bytes), num_bytes)
        start += num_bytes
        os.eventfd_write(done, 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
