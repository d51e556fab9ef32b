"""Turns the registry's view into observations, one per model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed, PrefillSpeed

from tandem_planner.arrivals import TrafficWindow
from tandem_planner.observations import Observations, Workers
from tandem_planner.split import Split


class Observer:
    """Remembers each model's traffic for as long as the model has a registered worker."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._windows: dict[str, TrafficWindow] = {}
        self._workers: dict[str, dict[str, RegisteredWorker]] = {}

    def observe(self, now_s: float, workers: Mapping[str, RegisteredWorker]) -> None:
        """Take the registry's view, confirmed by Redis at `now_s` (monotonic)."""
        by_model: dict[str, dict[str, RegisteredWorker]] = {}
        for worker_id, worker in workers.items():
            by_model.setdefault(worker.card.model, {})[worker_id] = worker
        self._workers = by_model
        self._windows = {
            model: self._windows.get(model) or TrafficWindow(self._window_s) for model in by_model
        }
        for model, window in self._windows.items():
            window.observe(now_s, by_model[model])

    def observations(self, now_s: float) -> list[Observations]:
        """What is known of every model, in order of their names."""
        return [
            Observations(
                model=model,
                workers=_summary(list(self._workers[model].values())),
                traffic=self._windows[model].traffic(now_s),
            )
            for model in sorted(self._windows)
        ]


def _summary(workers: Sequence[RegisteredWorker]) -> Workers:
    serving = [worker for worker in workers if worker.card.status == pb.WORKER_STATUS_SERVING]
    decoders = [worker for worker in serving if worker.card.role != pb.ROLE_PREFILL] or serving
    prefillers = [worker for worker in serving if worker.card.role != pb.ROLE_DECODE] or serving
    return Workers(
        split=Split(
            num_prefill=_count(serving, pb.ROLE_PREFILL),
            num_decode=_count(serving, pb.ROLE_DECODE),
            num_both=_count(serving, pb.ROLE_BOTH),
        ),
        num_draining=len(workers) - len(serving),
        num_silent=sum(worker.beat is None for worker in serving),
        prefill_speed=_mean_prefill(prefillers) or _mean_prefill(serving),
        decode_speed=_mean_decode(decoders) or _mean_decode(serving),
        max_step_tokens=_mean(prefillers, lambda card: card.max_step_tokens),
        max_sequences=_mean(decoders, lambda card: card.max_sequences),
        kv_tokens=_mean(decoders, lambda card: card.num_blocks * card.block_size),
    )


def _count(workers: Iterable[RegisteredWorker], role: pb.Role.ValueType) -> int:
    return sum(worker.card.role == role for worker in workers)


def _mean(workers: Sequence[RegisteredWorker], size: Callable[[pb.WorkerCard], int]) -> int:
    return max(1, int(fmean(size(worker.card) for worker in workers))) if workers else 1


def _mean_prefill(workers: Iterable[RegisteredWorker]) -> PrefillSpeed | None:
    speeds = _known(
        PrefillSpeed.from_proto(worker.beat.prefill_speed)
        for worker in workers
        if worker.beat is not None and worker.beat.HasField("prefill_speed")
    )
    if not speeds:
        return None
    return PrefillSpeed(
        a_ms=fmean(speed.a_ms for speed in speeds),
        b_ms=fmean(speed.b_ms for speed in speeds),
        c_ms=fmean(speed.c_ms for speed in speeds),
        num_samples=sum(speed.num_samples for speed in speeds),
    )


def _mean_decode(workers: Iterable[RegisteredWorker]) -> DecodeSpeed | None:
    speeds = _known(
        DecodeSpeed.from_proto(worker.beat.decode_speed)
        for worker in workers
        if worker.beat is not None and worker.beat.HasField("decode_speed")
    )
    if not speeds:
        return None
    return DecodeSpeed(
        a_ms=fmean(speed.a_ms for speed in speeds),
        b_ms=fmean(speed.b_ms for speed in speeds),
        c_ms=fmean(speed.c_ms for speed in speeds),
        num_samples=sum(speed.num_samples for speed in speeds),
    )


T = TypeVar("T")


def _known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]
