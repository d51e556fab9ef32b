"""Payloads: memory that lies in several places, copied, summed and cut into pieces as if it were in one.

Everything here runs in threads and gives up the interpreter lock while it works on large memory, so that the event loop
of a worker is never held up by the blocks of one request.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

try:
    from isal.isal_zlib import crc32
except ImportError:  # there are wheels for x86-64 and ARM only; the same sums at a tenth of the speed
    from zlib import crc32

__all__ = ["PIECE_BYTES", "RECORD", "Cursor", "after", "checksum", "crc32", "gather", "scatter"]

# A piece goes over the wire as this (length, CRC-32), and over TCP its bytes.
RECORD = struct.Struct("<II")
# Small enough that all slots of a ring stay in the processors' cache between the two ends, large enough that what
# surrounds a piece costs little and that memmove writes past the cache (from about 1 MiB on), at twice the speed.
PIECE_BYTES = 1 << 20
# Below this, giving up the interpreter lock and getting it back costs more than the copy.
_SMALL_BYTES = 16 << 10


class Cursor:
    """Walks over views as if they were one."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._index = 0
        self._offset = 0
        self.num_left = sum(len(view) for view in views)

    def take(self, num_bytes: int) -> list[memoryview]:
        """The next `num_bytes`, of which there must be so many."""
        if num_bytes > self.num_left:
            raise ValueError(f"{num_bytes} bytes wanted, {self.num_left} left")
        self.num_left -= num_bytes
        parts: list[memoryview] = []
        while num_bytes:
            view = self._views[self._index]
            part = view[self._offset : self._offset + num_bytes]
            parts.append(part)
            num_bytes -= len(part)
            self._offset += len(part)
            if self._offset == len(view):
                self._index, self._offset = self._index + 1, 0
        return parts


def after(parts: list[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of `parts` when the first `num_bytes` are done."""
    index = 0
    while index < len(parts) and num_bytes >= len(parts[index]):
        num_bytes -= len(parts[index])
        index += 1
    return [parts[index][num_bytes:], *parts[index + 1 :]] if num_bytes else parts[index:]


def checksum(parts: Sequence[memoryview]) -> int:
    """CRC-32, as zlib has it, of all parts together."""
    value = 0
    for part in parts:
        value = crc32(part, value)
    return value


def gather(parts: Sequence[memoryview], target: memoryview) -> None:
    """Copy parts, one after another, to the beginning of `target`."""
    start = 0
    for part in parts:
        _copy(part, target[start : start + len(part)])
        start += len(part)


def scatter(source: memoryview, parts: Sequence[memoryview]) -> None:
    """Fill parts, one after another, from the beginning of `source`."""
    start = 0
    for part in parts:
        _copy(source[start : start + len(part)], part)
        start += len(part)


def _copy(source: memoryview, target: memoryview) -> None:
    if len(source) < _SMALL_BYTES or source.readonly:
        target[:] = source
        return
    if len(source) != len(target):
        raise ValueError(f"{len(source)} bytes do not fit into {len(target)}")
    ctypes.memmove(_address(target), _address(source), len(source))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
