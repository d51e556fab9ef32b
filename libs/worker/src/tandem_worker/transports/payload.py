"""Payloads: memory that lies in several places, summed and cut into pieces as if it were in one.

What is done here to large memory is done without the interpreter lock, so that the event loop of a worker is never
held up by the blocks of one request.
"""

from __future__ import annotations

from collections.abc import Sequence

try:
    from isal.isal_zlib import crc32
except ImportError:  # there are wheels for x86-64 and ARM only; the same sums at a tenth of the speed
    from zlib import crc32

# What is sent at a time, behind its checksum: still in the processor's cache from summing.
PIECE_BYTES = 1 << 20


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


def checksum(parts: Sequence[memoryview], before: int = 0) -> int:
    """CRC-32, as zlib has it, of all parts together, behind bytes whose sum is `before`."""
    value = before
    for part in parts:
        value = crc32(part, value)
    return value
