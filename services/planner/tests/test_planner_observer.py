from __future__ import annotations

import pytest
from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_planner.observer import Observer
from tandem_planner.split import Split


def worker(
    worker_id: str,
    role: pb.Role.ValueType,
    *,
    model: str = "m",
    status: pb.WorkerStatus.ValueType = pb.WORKER_STATUS_SERVING,
    beat: pb.WorkerBeat | None = None,
    num_blocks: int = 100,
) -> RegisteredWorker:
    card = pb.WorkerCard(
        worker_id=worker_id,
        epoch=1,
        model=model,
        role=role,
        status=status,
        block_size=16,
        num_blocks=num_blocks,
        max_step_tokens=512,
        max_sequences=32,
    )
    return RegisteredWorker(card, beat)


def speeds(prefill_a_ms: float | None, decode_a_ms: float | None) -> pb.WorkerBeat:
    beat = pb.WorkerBeat(epoch=1, sequence=1)
    if prefill_a_ms is not None:
        beat.prefill_speed.CopyFrom(pb.PrefillSpeed(a_ms=prefill_a_ms, b_ms=1.0, num_samples=10))
    if decode_a_ms is not None:
        beat.decode_speed.CopyFrom(pb.DecodeSpeed(a_ms=decode_a_ms, b_ms=1.0, num_samples=10))
    return beat


def observed(*workers: RegisteredWorker) -> Observer:
    observer = Observer(60)
    observer.observe(100.0, {one.card.worker_id: one for one in workers})
    return observer


def test_serving_workers_are_counted_by_role_and_the_others_apart() -> None:
    observer = observed(
        worker("p1", pb.ROLE_PREFILL, beat=speeds(None, None)),
        worker("p2", pb.ROLE_PREFILL),
        worker("d1", pb.ROLE_DECODE, beat=speeds(None, None)),
        worker("b1", pb.ROLE_BOTH, beat=speeds(None, None)),
        worker("d2", pb.ROLE_DECODE, status=pb.WORKER_STATUS_DRAINING),
    )
    (seen,) = observer.observations(100.0)
    assert seen.workers.split == Split(num_prefill=2, num_decode=1, num_both=1)
    assert seen.workers.num_draining == 1
    assert seen.workers.num_silent == 1


def test_each_model_has_its_own_observations_which_go_with_its_last_worker() -> None:
    observer = observed(worker("a", pb.ROLE_BOTH, model="x"), worker("b", pb.ROLE_BOTH, model="y"))
    assert [seen.model for seen in observer.observations(100.0)] == ["x", "y"]
    observer.observe(101.0, {"b": worker("b", pb.ROLE_BOTH, model="y")})
    assert [seen.model for seen in observer.observations(101.0)] == ["y"]


def test_speeds_are_means_of_those_who_do_the_work() -> None:
    (seen,) = observed(
        worker("p1", pb.ROLE_PREFILL, beat=speeds(10.0, 99.0)),
        worker("p2", pb.ROLE_PREFILL, beat=speeds(20.0, None)),
        worker("d1", pb.ROLE_DECODE, beat=speeds(99.0, 4.0), num_blocks=300),
    ).observations(100.0)
    assert seen.workers.prefill_speed == PrefillSpeed(a_ms=15.0, b_ms=1.0, c_ms=0.0, num_samples=20)
    assert seen.workers.decode_speed == DecodeSpeed(a_ms=4.0, b_ms=1.0, c_ms=0.0, num_samples=10)
    assert seen.workers.kv_tokens == 4800


def test_a_speed_that_only_another_role_knows_is_better_than_none() -> None:
    (seen,) = observed(
        worker("p1", pb.ROLE_PREFILL, beat=speeds(None, None)),
        worker("d1", pb.ROLE_DECODE, beat=speeds(7.0, None)),
    ).observations(100.0)
    assert seen.workers.prefill_speed is not None
    assert seen.workers.prefill_speed.a_ms == pytest.approx(7.0)
    assert seen.workers.decode_speed is None


def test_a_speed_that_cannot_be_is_left_out() -> None:
    (seen,) = observed(
        worker("p1", pb.ROLE_PREFILL, beat=speeds(float("nan"), None)),
        worker("p2", pb.ROLE_PREFILL, beat=speeds(5.0, -1.0)),
    ).observations(100.0)
    assert seen.workers.prefill_speed is not None
    assert seen.workers.prefill_speed.a_ms == 5.0
    assert seen.workers.decode_speed is None
