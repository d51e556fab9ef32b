from __future__ import annotations

from router_fakes import decode_worker, prefill_worker
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router.speeds import with_borrowed_speeds


def prefill(b_ms: float) -> PrefillSpeed:
    return PrefillSpeed(a_ms=1.0, b_ms=b_ms, c_ms=0.0, num_samples=50)


DECODE = DecodeSpeed(a_ms=1.0, b_ms=2.0, c_ms=3.0, num_samples=50)
NONE = {"prefill_speed": None, "decode_speed": None}


def test_a_worker_without_a_fit_borrows_the_median_of_its_hardware() -> None:
    workers = [
        prefill_worker("a", prefill_speed=prefill(1.0), hardware="h100"),
        prefill_worker("b", prefill_speed=prefill(2.0), hardware="h100"),
        prefill_worker("c", prefill_speed=prefill(9.0), hardware="h100"),
        prefill_worker("d", prefill_speed=prefill(50.0), hardware="l40s"),
        decode_worker("e", hardware="h100", **NONE),
    ]
    borrowed = with_borrowed_speeds(workers)[4]
    assert borrowed.prefill_speed == PrefillSpeed(a_ms=1.0, b_ms=2.0, c_ms=0.0, num_samples=0)


def test_new_hardware_borrows_from_all_of_the_model() -> None:
    workers = [
        prefill_worker("a", prefill_speed=prefill(1.0), decode_speed=DECODE, hardware="h100"),
        decode_worker("b", hardware="new", **NONE),
    ]
    borrowed = with_borrowed_speeds(workers)[1]
    assert borrowed.prefill_speed is not None
    assert borrowed.prefill_speed.b_ms == 1.0
    assert borrowed.decode_speed is not None
    assert borrowed.decode_speed.c_ms == 3.0


def test_own_fits_are_kept() -> None:
    workers = [
        prefill_worker("a", prefill_speed=prefill(1.0), decode_speed=None),
        prefill_worker("b", prefill_speed=prefill(5.0), decode_speed=DECODE),
    ]
    lent = with_borrowed_speeds(workers)
    assert lent[0].prefill_speed == prefill(1.0)
    assert lent[1] is workers[1]


def test_nobody_has_a_speed_while_nobody_measured_one() -> None:
    workers = [prefill_worker("a", **NONE), decode_worker("b", **NONE)]
    assert [worker.prefill_speed for worker in with_borrowed_speeds(workers)] == [None, None]
