"""Payloads through a ring of slots in shared memory, one piece each, taken in turn from the first.

The ring is small, so that it stays in the processors' cache: what a sender writes there, the receiver need not fetch
from memory. Behind the slots lies a record of each, the length and checksum of its piece. Two counters (eventfd) say
how many pieces were put in, and how many slots are free again. Counters, and not bytes over the socket: a socket wakes
its reader on the writer's own processor, where the two would take turns instead of working at the same time.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
from collections.abc import Sequence

from tandem_worker.transports.framing import FramingError
from tandem_worker.transports.incoming import ASK_INTERVAL_MS, IncomingPayload
from tandem_worker.transports.payload import PIECE_BYTES, RECORD, Cursor, crc32, gather, scatter

NUM_SLOTS = 4
_RECORDS_AT = NUM_SLOTS * PIECE_BYTES
SEGMENT_BYTES = _RECORDS_AT + mmap.PAGESIZE
# Present from the start: a page that must be made costs more than copying it.
_MAP_FLAGS = mmap.MAP_SHARED | mmap.MAP_POPULATE


class Ring:
    """The mapped segment and its two counters; one end fills, the other empties."""

    def __init__(self, segment: int, filled: int, freed: int) -> None:
        """Maps the segment; keeps descriptors of its own."""
        self.memory = memoryview(mmap.mmap(segment, SEGMENT_BYTES, _MAP_FLAGS))
        self.filled, self.freed = os.dup(filled), os.dup(freed)
        for descriptor in (self.filled, self.freed):
            os.set_blocking(descriptor, False)

    def slot(self, index: int, length: int) -> memoryview:
        """Where piece `index` of a payload lies."""
        start = index % NUM_SLOTS * PIECE_BYTES
        return self.memory[start : start + length]

    def send(self, sock: socket.socket, header: bytes, views: Sequence[memoryview]) -> None:
        """Send a header, and put its payload in, as slots become free.

        The answer to the chunk says that all are free again.
        """
        cursor, counter = Cursor(views), _Counter(sock, self.freed)
        counter.take()  # what came back after the last payload's last piece
        num_sent = num_free = 0
        while cursor.num_left:
            length = min(PIECE_BYTES, cursor.num_left)
            while num_sent - num_free == NUM_SLOTS:
                num_free += counter.wait()
            slot = self.slot(num_sent, length)
            gather(cursor.take(length), slot)
            RECORD.pack_into(self.memory, _record_at(num_sent), length, crc32(slot))
            os.eventfd_write(self.filled, 1)
            num_sent += 1
            if num_sent == 1:
                # Not before: it wakes the receiver on this very processor, to wait for the first piece.
                sock.sendall(header)
        if not num_sent:
            sock.sendall(header)

    def record(self, index: int) -> tuple[int, int]:
        """Length and checksum of piece `index`, as its sender says."""
        length, checksum = RECORD.unpack_from(self.memory, _record_at(index))
        return length, checksum

    def close(self) -> None:
        """Close the counters; the mapping ends with the last view of it."""
        os.close(self.filled)
        os.close(self.freed)


class ShmPayload(IncomingPayload):
    """Copies from the sender's ring, mapped here, into the pool."""

    def __init__(self, sock: socket.socket, ring: Ring) -> None:
        super().__init__(sock)
        self._ring = ring
        self._counter = _Counter(sock, ring.filled)
        self._num_filled = 0
        self._num_taken = 0

    def begin(self, num_bytes: int) -> None:
        """A header was read: a payload begins in the first slot."""
        super().begin(num_bytes)
        self._num_filled = self._num_taken = 0

    def close(self) -> None:
        """Unmap the ring."""
        self._ring.close()
        del self._ring

    def _next_record(self) -> tuple[int, int]:
        while self._num_taken == self._num_filled:
            self._num_filled += self._counter.wait()
            self._check_wanted()
        return self._ring.record(self._num_taken)

    def _take(self, parts: list[memoryview]) -> int:
        slot = self._ring.slot(self._num_taken, self._piece_left)
        found = crc32(slot)
        scatter(slot, parts)
        self._drop()
        return found

    def _drop(self) -> None:
        self._piece_left = 0
        self._num_taken += 1
        os.eventfd_write(self._ring.freed, 1)


class _Counter:
    """Waits for the other end to count up."""

    def __init__(self, sock: socket.socket, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        # While one end waits for the other's count, the socket says nothing but that the other is gone.
        self._poll.register(sock, select.POLLIN)

    def take(self) -> int:
        """What was counted since the last call."""
        try:
            return os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return 0

    def wait(self) -> int:
        """Like `take`, but waits; 0 when nothing came for a while. ConnectionError when the other end is gone."""
        ready = dict(self._poll.poll(ASK_INTERVAL_MS))
        if ready and self._descriptor not in ready:
            raise FramingError("the connection ended in the middle of a payload")
        return self.take()


def _record_at(index: int) -> int:
    return _RECORDS_AT + index % NUM_SLOTS * RECORD.size
