"""Stop strings across token borders: text in, text that is certainly not part of a stop string out."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Looks for stop strings in a text that arrives in pieces; the result does not depend on the pieces.

    The stop string that is complete first wins, among several complete at once the longest. Text from its
    start on is never released.
    """

    __slots__ = ("_first_characters", "_held", "_longest", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are non-empty strings."""
        self._stops = tuple(stops)
        self._first_characters = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str) -> str:
        """Text that may be shown now; sets `matched`, after which nothing more is released."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # Earliest end first, then earliest start, which is the longest.
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            _, start, self.matched = min(ends)
            self._held = ""
            return text[:start]
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        """Index from which on `text` could be the beginning of a stop string; its length if nowhere."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
