"""Server-sent events out of bytes that may be cut anywhere."""

from __future__ import annotations

_MAX_EVENT_BYTES = 8 << 20


class MalformedStream(ValueError):
    """What a server sent is not what it should be; the message says what, without content."""


class EventReader:
    """The `data` of each event, in order; comments, which keep connections alive, and other fields are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_between_events(self) -> bool:
        """Whether all that came was whole events."""
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises MalformedStream when one does not end."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # A line may end with CR LF, and these two may come apart.
            end = len(data) - data.endswith(b"\r")
            data = data[:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + data[end:]
        *blocks, self._rest = data.split(b"\n\n")
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise MalformedStream(f"an event is longer than {_MAX_EVENT_BYTES} bytes")
        return [payload for block in blocks if (payload := _data(block)) is not None]


def _data(block: bytes) -> bytes | None:
    """The lines of data of an event; None when it has none."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
