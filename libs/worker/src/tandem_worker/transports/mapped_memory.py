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
        status = os.fstat(descriptor)
        self.num_bytes = status.st_size
        self.file = (status.st_dev, status.st_ino)  # no other's as long as it is mapped
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


class Mappings:
    """What one receiver has mapped: all connections that bring the same memory share one mapping.

    What is read through a mapping for the first time costs twice as much as later, as each page has to be found.
    """

    def __init__(self) -> None:
        self._by_file: dict[tuple[int, int], tuple[MappedMemory, int]] = {}  # and how many have it open

    def open(self, descriptor: int) -> MappedMemory:
        """The memory, to be closed here; raises what `MappedMemory` raises."""
        status = os.fstat(descriptor)
        memory, num_users = self._by_file.get((status.st_dev, status.st_ino)) or (MappedMemory(descriptor), 0)
        self._by_file[memory.file] = (memory, num_users + 1)
        return memory

    def close(self, memory: MappedMemory) -> None:
        """One who had it open reads no more."""
        _, num_users = self._by_file.pop(memory.file)
        if num_users == 1:
            memory.close()
        else:
            self._by_file[memory.file] = (memory, num_users - 1)
