"""What the planner knows of one model's traffic, from the heartbeats of its workers.

Heartbeats say which requests a worker accepted, how much is queued and what is running; nothing else is counted, and
no client or router is asked. Every second that was watched becomes one tally, and a minute of them is kept, so memory
is bounded whatever the traffic.

What is known only indirectly: a request counts once, on the side where it is seen first; requests that were
accepted before a worker was first seen do not count; how busy prefill workers are is known from the share of
heartbeats that find prompt tokens queued.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed

from tandem_planner.observations import Traffic

# A request id is repeated for a few heartbeats only.
_REMEMBER_ID_S = 60.0
_MAX_REMEMBERED_IDS = 65_536
# Rises are believed after this, falls after the whole window.
_RISE_S = 10
# Arrivals are counted over groups of seconds, since heartbeats come up to a second late.
_GROUP_S = 5
_MIN_GROUPS = 6
_MAX_ARRIVAL_CV2 = 8.0


@dataclass(slots=True)
class _Second:
    """What was seen within one second."""

    second: int
    num_polls: int = 0
    num_split: int = 0
    num_both: int = 0
    num_prefilled: int = 0
    # Heartbeats of prefill workers, and those with work.
    num_prefill_beats: int = 0
    num_busy_beats: int = 0
    # Sums over polls.
    prefill_workers: int = 0
    decoding_workers: int = 0
    decoding: int = 0
    kv_tokens: int = 0
    queued_tokens: int = 0
    token_rate: float = 0.0
    # Polls with sequences decoding and nobody's speed known.
    num_unknown_speed: int = 0


class TrafficWindow:
    """Tallies of the last `window_s` seconds of one model."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._seconds: deque[_Second] = deque(maxlen=window_s + 1)
        # (request id, accepted by a prefill worker) → when it was last listed.
        self._listed_at: OrderedDict[tuple[str, bool], float] = OrderedDict()
        # Worker → the incarnation and heartbeat seen last.
        self._last_beat: dict[str, tuple[int, int]] = {}

    def observe(self, now_s: float, workers: Mapping[str, RegisteredWorker]) -> None:
        """Take the registry's view of this model's workers at `now_s` (monotonic, not before earlier calls).

        Not to be called with a view that Redis did not confirm lately: a frozen view looks like steady load.
        """
        tally = self._tally_at(now_s)
        tally.num_polls += 1
        for worker in workers.values():
            if worker.beat is not None:
                self._count_beat(tally, worker.card, worker.beat, now_s)
        self._last_beat = {key: value for key, value in self._last_beat.items() if key in workers}
        self._sample(tally, [worker for worker in workers.values() if worker.beat is not None])
        while self._listed_at:
            oldest = next(iter(self._listed_at.values()))
            if len(self._listed_at) <= _MAX_REMEMBERED_IDS and oldest > now_s - _REMEMBER_ID_S:
                break
            self._listed_at.popitem(last=False)

    def traffic(self, now_s: float) -> Traffic:
        """What the window says at `now_s`."""
        seconds = [tally for tally in self._seconds if tally.second > math.floor(now_s) - self._window_s]
        num_polls = sum(tally.num_polls for tally in seconds)
        if not num_polls:
            return Traffic(observed_s=0.0)
        split_rate, both_rate = (
            _rising_rate([tally.num_split for tally in seconds]),
            _rising_rate([tally.num_both for tally in seconds]),
        )
        prefill_beats = sum(tally.num_prefill_beats for tally in seconds)
        busy_beats = sum(tally.num_busy_beats for tally in seconds)
        prefill_workers = sum(tally.prefill_workers for tally in seconds) / num_polls
        decoding = sum(tally.decoding for tally in seconds)
        unknown_speed = sum(tally.num_unknown_speed for tally in seconds)
        known_polls = num_polls - unknown_speed
        return Traffic(
            observed_s=float(len(seconds)),
            split_rate=split_rate,
            both_rate=both_rate,
            mean_rate=fmean(tally.num_split + tally.num_both for tally in seconds),
            arrival_cv2=_dispersion([tally.num_split + tally.num_both for tally in seconds]),
            prefilled_rate=sum(tally.num_prefilled for tally in seconds) / len(seconds),
            num_busy_prefill=prefill_workers * busy_beats / prefill_beats if prefill_beats else 0.0,
            num_busy_samples=busy_beats,
            num_decoding=decoding / num_polls,
            num_decoding_samples=sum(tally.decoding_workers for tally in seconds),
            sequence_tokens=sum(tally.kv_tokens for tally in seconds) / decoding if decoding else 0.0,
            # A window whose larger part lacks the speed says too little.
            token_rate=sum(tally.token_rate for tally in seconds) / known_polls
            if known_polls > unknown_speed
            else None,
            queued_prefill_tokens=sum(tally.queued_tokens for tally in seconds[-_RISE_S:])
            / max(1, sum(tally.num_polls for tally in seconds[-_RISE_S:])),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        assert len(self._listed_at) <= _MAX_REMEMBERED_IDS
        assert len(self._seconds) <= self._window_s + 1
        numbers = [tally.second for tally in self._seconds]
        assert numbers == sorted(set(numbers))
        for tally in self._seconds:
            assert tally.num_polls > 0
            assert 0 <= tally.num_busy_beats <= tally.num_prefill_beats
            assert tally.num_unknown_speed <= tally.num_polls

    def _tally_at(self, now_s: float) -> _Second:
        second = math.floor(now_s)
        if not self._seconds or self._seconds[-1].second < second:
            self._seconds.append(_Second(second))
        return self._seconds[-1]

    def _count_beat(self, tally: _Second, card: pb.WorkerCard, beat: pb.WorkerBeat, now_s: float) -> None:
        """Count what a heartbeat adds to those seen before."""
        previous = self._last_beat.get(card.worker_id)
        current = (beat.epoch, beat.sequence)
        if previous is not None and current <= previous:
            return
        self._last_beat[card.worker_id] = current
        is_prefill = card.role == pb.ROLE_PREFILL
        if is_prefill:
            tally.num_prefill_beats += 1
            tally.num_busy_beats += beat.queued_prefill_tokens > 0
        # What the first heartbeat lists may have been accepted before the window.
        counts = previous is not None
        for request_id in beat.accepted_request_ids:
            is_new = (request_id, True) not in self._listed_at and (request_id, False) not in self._listed_at
            key = (request_id, is_prefill)
            if is_prefill and counts and key not in self._listed_at:
                tally.num_prefilled += 1
            self._listed_at[key] = now_s
            self._listed_at.move_to_end(key)
            if is_new and counts:
                if card.role == pb.ROLE_BOTH:
                    tally.num_both += 1
                else:
                    tally.num_split += 1

    @staticmethod
    def _sample(tally: _Second, workers: Sequence[RegisteredWorker]) -> None:
        """Add what the workers hold at this moment."""
        speeds = {
            worker.card.worker_id: DecodeSpeed.from_proto(worker.beat.decode_speed)
            for worker in workers
            if worker.beat is not None and worker.beat.HasField("decode_speed")
        }
        fallback = next((speed for speed in speeds.values() if speed is not None), None)
        unknown = False
        for worker in workers:
            beat = worker.beat
            if beat is None:
                continue
            tally.prefill_workers += worker.card.role == pb.ROLE_PREFILL
            tally.queued_tokens += beat.queued_prefill_tokens
            if not beat.num_decoding:
                continue
            tally.decoding_workers += 1
            tally.decoding += beat.num_decoding
            tally.kv_tokens += beat.decode_kv_tokens
            speed = speeds.get(worker.card.worker_id) or fallback
            step_ms = speed.step_ms(beat.num_decoding, beat.decode_kv_tokens) if speed else 0.0
            if step_ms > 0.0:
                tally.token_rate += 1000.0 * beat.num_decoding / step_ms
            else:
                unknown = True
        tally.num_unknown_speed += unknown


def _rising_rate(counts: Sequence[int]) -> float:
    """Events per second: the mean, or the mean of the last seconds when that is higher."""
    return max(fmean(counts), fmean(counts[-_RISE_S:]))


def _dispersion(counts: Sequence[int]) -> float:
    """Index of dispersion of counts, which for renewal arrivals is the squared coefficient of variation.

    Never below 1: a few regular seconds are no promise.
    """
    groups = [sum(counts[i : i + _GROUP_S]) for i in range(0, len(counts) - _GROUP_S + 1, _GROUP_S)]
    mean = fmean(groups) if groups else 0.0
    if len(groups) < _MIN_GROUPS or mean <= 0.0:
        return 1.0
    return min(_MAX_ARRIVAL_CV2, max(1.0, pvariance(groups, mean) / mean))
