"""Load that routing decisions put on workers and that the workers have not reported themselves yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class BookedLoad:
    """What one or more requests add to a worker."""

    num_sequences: int = 0
    num_prefilling: int = 0
    queued_prefill_tokens: int = 0
    queued_prefill_context: int = 0  # see WorkerLoad
    decode_kv_tokens: int = 0
    num_blocks: int = 0

    def times(self, count: int) -> BookedLoad:
        """So many of the same."""
        return BookedLoad(
            num_sequences=count * self.num_sequences,
            num_prefilling=count * self.num_prefilling,
            queued_prefill_tokens=count * self.queued_prefill_tokens,
            queued_prefill_context=count * self.queued_prefill_context,
            decode_kv_tokens=count * self.decode_kv_tokens,
            num_blocks=count * self.num_blocks,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Booking:
    """One request's load on one incarnation of a worker; `time_s` is monotonic."""

    worker_id: str
    epoch: int
    load: BookedLoad
    time_s: float


# A request that one of its workers reported, and for so long after it the other did not, waits for room on the first.
# It is ahead of nobody on the other, which reports it when it is.
_HELD_UP_S = 1.0
_NOTHING = BookedLoad()


@dataclass(slots=True)
class _WorkerBookings:
    """In the order in which they were made, and their sums, which are brought up to date with each."""

    by_request: dict[str, Booking] = field(default_factory=dict)
    num_sequences: int = 0
    num_prefilling: int = 0
    queued_prefill_tokens: int = 0
    queued_prefill_context: int = 0
    decode_kv_tokens: int = 0
    num_blocks: int = 0

    def count(self, load: BookedLoad, times: int) -> None:
        """Add a load, or take it away again: `times` is 1 or -1."""
        self.num_sequences += times * load.num_sequences
        self.num_prefilling += times * load.num_prefilling
        self.queued_prefill_tokens += times * load.queued_prefill_tokens
        self.queued_prefill_context += times * load.queued_prefill_context
        self.decode_kv_tokens += times * load.decode_kv_tokens
        self.num_blocks += times * load.num_blocks

    def total(self) -> BookedLoad:
        """The sums."""
        return BookedLoad(
            num_sequences=self.num_sequences,
            num_prefilling=self.num_prefilling,
            queued_prefill_tokens=self.queued_prefill_tokens,
            queued_prefill_context=self.queued_prefill_context,
            decode_kv_tokens=self.decode_kv_tokens,
            num_blocks=self.num_blocks,
        )


class Bookings:
    """Bookings by worker and request, until the worker reports the request, is another incarnation, or they are old.

    The methods that drop bookings return the ids of the workers whose totals changed. Time never runs backwards.
    """

    def __init__(self, *, max_age_s: float, max_per_worker: int) -> None:
        """A worker's oldest booking makes room for a new one beyond `max_per_worker`."""
        self._max_age_s = max_age_s
        self._max_per_worker = max_per_worker
        self._workers: dict[str, _WorkerBookings] = {}
        self._booked_on: dict[str, list[str]] = {}  # ids of workers, by request
        self._held_up: dict[
            str, float
        ] = {}  # requests that one of several workers reported, and until when they count

    def add(self, request_id: str, bookings: Iterable[Booking]) -> None:
        """Book a request; a later booking of the same request on the same worker replaces the earlier one."""
        self._held_up.pop(request_id, None)
        for booking in bookings:
            worker = self._workers.setdefault(booking.worker_id, _WorkerBookings())
            replaced = worker.by_request.pop(request_id, None)
            if replaced is None:
                self._booked_on.setdefault(request_id, []).append(booking.worker_id)
            else:
                worker.count(replaced.load, -1)
            worker.by_request[request_id] = booking
            worker.count(booking.load, 1)
            if len(worker.by_request) > self._max_per_worker:
                self._drop(booking.worker_id, next(iter(worker.by_request)))

    def observe(self, worker_id: str, epoch: int, reported: Iterable[str], now_s: float) -> bool:
        """A beat came: drop what it reports and what was meant for an earlier incarnation; whether that changed any."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return False
        before = len(worker.by_request)
        for request_id in reported:
            if request_id in worker.by_request:
                self._drop(worker_id, request_id)
                if request_id in self._booked_on:
                    self._held_up.setdefault(request_id, now_s + _HELD_UP_S)
        fenced = [request_id for request_id, booking in worker.by_request.items() if booking.epoch != epoch]
        for request_id in fenced:
            self._drop(worker_id, request_id)
        return len(worker.by_request) < before

    def expire(self, now_s: float) -> set[str]:
        """Drop what is older than the age limit, since it was never sent or its report was missed, or is held up."""
        changed = set()
        while self._held_up:
            request_id, until_s = next(iter(self._held_up.items()))
            if now_s < until_s:
                break
            changed |= self.withdraw(request_id)
        for worker_id, worker in list(self._workers.items()):
            while worker.by_request:
                request_id, oldest = next(iter(worker.by_request.items()))
                if now_s - oldest.time_s < self._max_age_s:
                    break
                self._drop(worker_id, request_id)
                changed.add(worker_id)
        return changed

    def withdraw(self, request_id: str) -> set[str]:
        """Drop a request everywhere: it is being routed again."""
        changed = set(self._booked_on.get(request_id, ()))
        for worker_id in changed:
            self._drop(worker_id, request_id)
        return changed

    def has(self, request_id: str) -> bool:
        """Whether the request is booked anywhere."""
        return request_id in self._booked_on

    def retain(self, worker_ids: Mapping[str, object]) -> None:
        """Forget all workers but these."""
        for worker_id in [known for known in self._workers if known not in worker_ids]:
            for request_id in list(self._workers[worker_id].by_request):
                self._drop(worker_id, request_id)

    def total(self, worker_id: str) -> BookedLoad:
        """All that is booked on a worker."""
        worker = self._workers.get(worker_id)
        return worker.total() if worker is not None else _NOTHING

    def count(self, worker_id: str) -> int:
        """Requests booked on a worker."""
        worker = self._workers.get(worker_id)
        return len(worker.by_request) if worker else 0

    def __len__(self) -> int:
        """Bookings on all workers together."""
        return sum(len(worker.by_request) for worker in self._workers.values())

    def check_integrity(self) -> None:
        """Assert that totals are sums, that nothing exceeds its bound, and that order is by time."""
        booked_on: dict[str, set[str]] = {}
        for worker_id, worker in self._workers.items():
            assert worker.by_request, "a worker without bookings is not kept"
            assert len(worker.by_request) <= self._max_per_worker
            summed = _WorkerBookings()
            for booking in worker.by_request.values():
                summed.count(booking.load, 1)
            assert worker.total() == summed.total()
            assert all(booking.worker_id == worker_id for booking in worker.by_request.values())
            times = [booking.time_s for booking in worker.by_request.values()]
            assert times == sorted(times)
            for request_id in worker.by_request:
                booked_on.setdefault(request_id, set()).add(worker_id)
        assert {request_id: set(ids) for request_id, ids in self._booked_on.items()} == booked_on
        assert all(len(ids) == len(set(ids)) for ids in self._booked_on.values())
        assert self._held_up.keys() <= booked_on.keys()
        assert list(self._held_up.values()) == sorted(self._held_up.values())

    def _drop(self, worker_id: str, request_id: str) -> None:
        worker = self._workers[worker_id]
        worker.count(worker.by_request.pop(request_id).load, -1)
        if not worker.by_request:
            del self._workers[worker_id]
        elsewhere = self._booked_on[request_id]
        elsewhere.remove(worker_id)
        if not elsewhere:
            del self._booked_on[request_id]
            self._held_up.pop(request_id, None)
