"""Another worker's pool, mapped to be read."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

_MAP_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class MappedMemory:
    """Maps all of an anonymous file, read-only. Python's own mmap tells nobody where such memory lies."""

    def __init__(self, descriptor: int) -> None:
        """Keeps no descriptor. OSError when it cannot be mapped, ValueError when it could shrink.

        Whoever reads beyond a file that was shrunk is killed (SIGBUS).
        """
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise ValueError("the peer's memory is not sealed")
        self.num_bytes = os.fstat(descriptor).st_size
        self._address = _libc.mmap(None, self.num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if self._address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "the peer's memory cannot be mapped")

    def address(self, offset: int, num_bytes: int) -> int:
        """Where so many bytes from an offset on lie; ValueError when they are not all there."""
        if not 0 <= offset <= offset + num_bytes <= self.num_bytes:
            raise ValueError("beyond the peer's memory")
        return int(self._address) + offset

    def close(self) -> None:
        """Unmap; nobody may be reading. Idempotent."""
        if self.num_bytes:
            _libc.munmap(self._address, self.num_bytes)
            self.num_bytes = 0
