"""How honest a refusal is: when all that was there before it had really been started."""

from __future__ import annotations

from collections import deque

from tandem_sim.measurement import RequestRecord


class DrainWatch:
    """Writes into the record of each refused request how long those that came before it took to get their first tokens.

    That is the drain time which a Retry-After predicts. Requests come in the order of their numbers; time is an
    argument.
    """

    def __init__(self) -> None:
        self._pending: dict[int, None] = {}  # in order of arrival
        self._refused: deque[tuple[int, float, RequestRecord]] = deque()
        self._num_arrived = 0

    def arrived(self) -> int:
        """A request came; returns its number."""
        self._num_arrived += 1
        self._pending[self._num_arrived] = None
        return self._num_arrived

    def refused(self, number: int, record: RequestRecord, now_s: float) -> None:
        """It was sent away."""
        self._refused.append((number, now_s, record))
        self.settled(number, now_s)

    def settled(self, number: int, now_s: float) -> None:
        """It got its first token, or nobody waits for that any more; a second time is fine."""
        self._pending.pop(number, None)
        oldest = next(iter(self._pending), self._num_arrived + 1)
        while self._refused and self._refused[0][0] < oldest:
            _, refused_s, record = self._refused.popleft()
            record.drained_after_s = now_s - refused_s
