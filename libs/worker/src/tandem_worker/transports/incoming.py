"""The receiver's end of payloads: read piece by piece, in a thread, straight to where they belong."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod

from tandem_common.errors import InvalidRequest, PermissionDenied

from tandem_worker.transports.api import Room
from tandem_worker.transports.framing import FramingError
from tandem_worker.transports.payload import PIECE_BYTES, Cursor

# How often a reader that waits for its peer asks whether the payload is still wanted.
ASK_INTERVAL_MS = 250


class IncomingPayload(ABC):
    """The payloads of one connection, one after another. Methods are for a thread, on a socket that blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._room: Room | None = None
        self._num_left = 0  # beyond the present piece
        self._piece_left = 0

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
                expected = self._begin_piece()
                if self._take(cursor.take(self._piece_left)) != expected:
                    raise InvalidRequest("the checksum of the blocks is wrong")
        finally:
            self._room = None

    def skip(self) -> None:
        """Get past whatever was not read."""
        while self.num_left:
            if not self._piece_left:
                self._begin_piece()
            self._drop()

    @abstractmethod
    def close(self) -> None:
        """Give back what is held beyond the connection."""

    @abstractmethod
    def _next_record(self) -> tuple[int, int]:
        """Wait for the next piece: its length and the checksum that it should have."""

    @abstractmethod
    def _take(self, parts: list[memoryview]) -> int:
        """Read the present piece to where it belongs; its checksum."""

    @abstractmethod
    def _drop(self) -> None:
        """Get past the rest of the present piece."""

    def _check_wanted(self) -> None:
        """To be asked now and then while waiting."""
        if self._room is not None and not self._room.is_wanted():
            raise PermissionDenied("the handoff has ended")

    def _begin_piece(self) -> int:
        length, expected = self._next_record()
        if not 0 < length <= min(self._num_left, PIECE_BYTES):
            raise FramingError(f"a piece of {length} bytes, and {self._num_left} are left")
        self._num_left -= length
        self._piece_left = length
        return expected
