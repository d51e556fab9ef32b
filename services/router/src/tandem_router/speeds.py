"""Speeds for workers that have not measured their own yet.

A worker learns its speeds from its own steps, so one that was never chosen would never have any: a decode worker may
never have computed a prompt. It borrows the median fit of the model's workers on the same hardware, or of all of
them; so predictions in milliseconds start as soon as one worker knows how long its steps take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import TypeVar

from tandem_common.speed import DecodeSpeed, PrefillSpeed

from tandem_router.view import WorkerView

S = TypeVar("S", PrefillSpeed, DecodeSpeed)


def with_borrowed_speeds(workers: Sequence[WorkerView]) -> list[WorkerView]:
    """The workers of one model, each with speeds as long as any of them has a fit."""
    prefill = _lender(workers, lambda worker: worker.prefill_speed)
    decode = _lender(workers, lambda worker: worker.decode_speed)
    return [
        worker
        if worker.prefill_speed and worker.decode_speed
        else replace(
            worker,
            prefill_speed=worker.prefill_speed or prefill(worker.facts.hardware),
            decode_speed=worker.decode_speed or decode(worker.facts.hardware),
        )
        for worker in workers
    ]


def _lender(
    workers: Iterable[WorkerView], speed_of: Callable[[WorkerView], S | None]
) -> Callable[[str], S | None]:
    """A function from hardware to the median fit on it, or of all."""
    everywhere: list[S] = []
    by_hardware: dict[str, list[S]] = {}
    for worker in workers:
        speed = speed_of(worker)
        if speed is not None:
            everywhere.append(speed)
            by_hardware.setdefault(worker.facts.hardware, []).append(speed)

    def lend(hardware: str) -> S | None:
        lenders = by_hardware.get(hardware, everywhere)
        return _median(lenders) if lenders else None

    return lend


def _median(speeds: Sequence[S]) -> S:
    """Coefficient by coefficient; it rests on no sample of the borrower."""
    return type(speeds[0])(
        a_ms=median(speed.a_ms for speed in speeds),
        b_ms=median(speed.b_ms for speed in speeds),
        c_ms=median(speed.c_ms for speed in speeds),
        num_samples=0,
    )
