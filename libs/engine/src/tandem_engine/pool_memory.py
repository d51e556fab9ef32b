"""Memory of a pool of blocks, which other processes can be let to read, or not.

If they can, it is an anonymous file (memfd): it has no name that could be left behind. Whoever gets the descriptor can
map it and read; the seals see to it that nobody but its maker ever writes, and that it never shrinks under a reader.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

_HUGE_BYTES = 2 << 20
# Not yet in Python's fcntl.
_F_SEAL_FUTURE_WRITE = 0x0010


class PoolMemory:
    """So many bytes of zeros, page by page taken when first used. OSError on systems that have no such files."""

    def __init__(self, num_bytes: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("there are no anonymous files here")
        self.descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, num_bytes)
        self.view = memoryview(mmap.mmap(self.descriptor, num_bytes))
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._address = address_of(self.view)
        prefer_huge_pages(self._address, num_bytes)

    def offset_of(self, view: memoryview) -> int:
        """Where a view lies in this memory; ValueError when it does not."""
        offset = address_of(view) - self._address if view else 0
        if not 0 <= offset <= len(self.view) - len(view):
            raise ValueError("this is another memory's view")
        return offset


def shareable_memory(num_bytes: int) -> PoolMemory | None:
    """A PoolMemory, where the system has such."""
    try:
        return PoolMemory(num_bytes)
    except OSError:
        return None


def prefer_huge_pages(address: int, num_bytes: int) -> None:
    """Let memory that nobody has used yet be taken in pages of 2 MiB, where the system offers them.

    Attention reads from all over a pool: with small pages it waits for the translation of addresses, too.
    """
    start, end = -(-address // _HUGE_BYTES) * _HUGE_BYTES, (address + num_bytes) // _HUGE_BYTES * _HUGE_BYTES
    if start < end and hasattr(mmap, "MADV_HUGEPAGE"):
        madvise = ctypes.CDLL(None).madvise  # which fails, and changes nothing, where there are none
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)


def address_of(view: memoryview) -> int:
    """Of its first byte; it must be writable, and not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
