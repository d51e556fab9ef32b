"""The receiver's end of payloads: read piece by piece, in a thread, straight to where they belong."""

from __future__ import annotations

import socket
import struct
from abc import ABC, abstractmethod

from tandem_common.errors import InvalidRequest, PermissionDenied

from tandem_worker.transports.api import Room
from tandem_worker.transports.framing import FramingError
from tandem_worker.transports.payload import RECORD, Cursor

# How often a reader that waits for its peer asks whether the payload is still wanted.
_ASK_INTERVAL = struct.pack("ll", 0, 250_000)


class IncomingPayload(ABC):
    """The payloads of one connection, one after another. Methods are for a thread, on a socket that blocks."""

    def __init__(self, sock: socket.socket, max_piece_bytes: int) -> None:
        self._sock = sock
        self._max_piece_bytes = max_piece_bytes
        self._room: Room | None = None
        self._num_left = 0  # beyond the present piece
        self._piece_left = 0
        self._record = memoryview(bytearray(RECORD.size))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ASK_INTERVAL)

    @property
    def num_left(self) -> int:
        """Bytes of the payload that were not read yet."""
        return self._num_left + self._piece_left

    def begin(self, num_bytes: int) -> None:
        """A header was read: so many bytes follow."""
        self._num_left = num_bytes

    def fill(self, room: Room) -> None:
        """Read everything into the room.

        InvalidRequest when a checksum is wrong, PermissionDenied when nobody wants it any more, FramingError or OSError
        when the connection is of no use.
        """
        cursor = Cursor(room.views)
        if cursor.num_left != self._num_left:
            raise ValueError(f"there is room for {cursor.num_left} bytes, and {self._num_left} come")
        self._room = room
        try:
            while self._num_left:
                self._check_wanted()
                expected = self._next_record()
                if self._take(cursor.take(self._piece_left)) != expected:
                    raise InvalidRequest("the checksum of the blocks is wrong")
        finally:
            self._room = None

    def skip(self) -> None:
        """Get past whatever was not read."""
        while self.num_left:
            if not self._piece_left:
                self._next_record()
            self._drop()

    @abstractmethod
    def close(self) -> None:
        """Give back what is held beyond the connection."""

    @abstractmethod
    def _take(self, parts: list[memoryview]) -> int:
        """Read the present piece to where it belongs; its checksum."""

    @abstractmethod
    def _drop(self) -> None:
        """Get past the rest of the present piece."""

    def _receive(self, parts: list[memoryview]) -> int:
        """Wait for some bytes, at best all; how many came."""
        while True:
            try:
                count, _, _, _ = self._sock.recvmsg_into(parts, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                self._check_wanted()
                continue
            if count == 0:
                raise FramingError("the connection ended in the middle of a payload")
            return count

    def _check_wanted(self) -> None:
        if self._room is not None and not self._room.is_wanted():
            raise PermissionDenied("the handoff has ended")

    def _next_record(self) -> int:
        """Begin the next piece; the checksum that it should have."""
        count = self._receive([self._record])
        if count < RECORD.size:
            # Half a record must not be left behind, wanted or not.
            room, self._room = self._room, None
            while count < RECORD.size:
                count += self._receive([self._record[count:]])
            self._room = room
        length, expected = RECORD.unpack(self._record)
        if not 0 < length <= min(self._num_left, self._max_piece_bytes):
            raise FramingError(f"a piece of {length} bytes, and {self._num_left} are left")
        self._num_left -= length
        self._piece_left = length
        return int(expected)
