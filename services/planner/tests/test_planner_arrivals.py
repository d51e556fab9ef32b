from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed
from tandem_planner.arrivals import TrafficWindow

SPEED = DecodeSpeed(a_ms=8.0, b_ms=1.0, c_ms=0.0, num_samples=100)


def worker(
    worker_id: str,
    role: pb.Role.ValueType,
    sequence: int,
    accepted: tuple[str, ...] = (),
    *,
    epoch: int = 1,
    queued: int = 0,
    decoding: int = 0,
    kv_tokens: int = 0,
    speed: DecodeSpeed | None = SPEED,
) -> RegisteredWorker:
    beat = pb.WorkerBeat(
        worker_id=worker_id,
        epoch=epoch,
        sequence=sequence,
        queued_prefill_tokens=queued,
        num_decoding=decoding,
        decode_kv_tokens=kv_tokens,
        decode_speed=speed.to_proto() if speed else None,
        accepted_request_ids=accepted,
    )
    card = pb.WorkerCard(worker_id=worker_id, epoch=epoch, role=role, status=pb.WORKER_STATUS_SERVING)
    return RegisteredWorker(card, beat)


def view(*workers: RegisteredWorker) -> Mapping[str, RegisteredWorker]:
    return {worker.card.worker_id: worker for worker in workers}


def test_nothing_is_known_before_the_first_look() -> None:
    assert TrafficWindow(60).traffic(100.0).observed_s == 0.0


def test_a_request_seen_by_two_workers_in_many_heartbeats_arrives_once() -> None:
    window = TrafficWindow(60)
    for second in range(20):
        ids = ("r1",) if 5 <= second < 10 else ()
        window.observe(
            100.0 + second,
            view(worker("p", pb.ROLE_PREFILL, second, ids), worker("d", pb.ROLE_DECODE, second, ids)),
        )
    traffic = window.traffic(119.0)
    assert traffic.observed_s == 20.0
    assert traffic.mean_rate == pytest.approx(1 / 20)
    assert traffic.prefilled_rate == pytest.approx(1 / 20)
    assert traffic.both_rate == 0.0


def test_requests_accepted_before_the_window_do_not_count() -> None:
    window = TrafficWindow(60)
    for second in range(10):
        window.observe(100.0 + second, view(worker("d", pb.ROLE_DECODE, 7 + second, ("old1", "old2"))))
    assert window.traffic(109.0).rate == 0.0


def test_a_heartbeat_read_twice_counts_once() -> None:
    window = TrafficWindow(60)
    window.observe(100.0, view(worker("p", pb.ROLE_PREFILL, 1)))
    for tenth in range(10):
        window.observe(101.0 + tenth / 10, view(worker("p", pb.ROLE_PREFILL, 2, ("r1",), queued=50)))
    traffic = window.traffic(102.0)
    assert traffic.num_busy_samples == 1
    assert traffic.num_busy_prefill == pytest.approx(0.5)


def test_heartbeats_of_an_earlier_incarnation_are_ignored() -> None:
    window = TrafficWindow(60)
    window.observe(100.0, view(worker("d", pb.ROLE_DECODE, 1, epoch=2)))
    window.observe(101.0, view(worker("d", pb.ROLE_DECODE, 9, ("r1",), epoch=1)))
    assert window.traffic(101.0).rate == 0.0
    window.observe(102.0, view(worker("d", pb.ROLE_DECODE, 1, ("r2",), epoch=3)))
    assert window.traffic(102.0).mean_rate == pytest.approx(1 / 3)


def test_workers_of_role_both_are_a_side_of_their_own() -> None:
    window = TrafficWindow(60)
    for second in range(10):
        window.observe(
            100.0 + second,
            view(
                worker("b", pb.ROLE_BOTH, second, (f"b{second}", f"c{second}")),
                worker("d", pb.ROLE_DECODE, second, (f"d{second}",)),
            ),
        )
    traffic = window.traffic(109.0)
    assert traffic.both_rate == pytest.approx(1.8)
    assert traffic.split_rate == pytest.approx(0.9)


def test_a_rise_is_believed_at_once_and_a_fall_after_the_window() -> None:
    window, count = TrafficWindow(60), 0
    rates = []
    for second in range(180):
        per_second = 10 if 60 <= second < 70 else 1
        ids = tuple(f"r{count + i}" for i in range(per_second))
        count += per_second
        window.observe(1000.0 + second, view(worker("d", pb.ROLE_DECODE, second, ids)))
        rates.append(window.traffic(1000.0 + second).rate)
    assert rates[59] == pytest.approx(1.0, abs=0.05)
    assert rates[69] == pytest.approx(10.0)
    assert 2.0 < rates[100] < 4.0
    assert rates[140] == pytest.approx(1.0)


def test_seconds_that_were_not_watched_are_not_taken_for_quiet_ones() -> None:
    window = TrafficWindow(60)
    for second in [*range(10), *range(40, 50)]:
        window.observe(100.0 + second, view(worker("d", pb.ROLE_DECODE, 1 + second, (f"r{second}",))))
    traffic = window.traffic(149.0)
    assert traffic.observed_s == 20.0
    assert traffic.mean_rate == pytest.approx(19 / 20)


def test_tokens_per_second_come_from_batch_and_step_time() -> None:
    window = TrafficWindow(60)
    for second in range(10):
        window.observe(
            100.0 + second,
            view(
                worker("d1", pb.ROLE_DECODE, second, decoding=2, kv_tokens=600),
                worker("d2", pb.ROLE_DECODE, second, decoding=12, kv_tokens=1200, speed=None),
            ),
        )
    traffic = window.traffic(109.0)
    # 2 sequences in 10 ms, and 12 in 20 ms with the other worker's speed.
    assert traffic.token_rate == pytest.approx(200.0 + 600.0)
    assert traffic.num_decoding == 14.0
    assert traffic.sequence_tokens == pytest.approx(1800 / 14)


def test_tokens_per_second_are_unknown_while_nobody_knows_a_speed() -> None:
    window = TrafficWindow(60)
    for second in range(10):
        window.observe(100.0 + second, view(worker("d", pb.ROLE_DECODE, second, decoding=2, speed=None)))
    assert window.traffic(109.0).token_rate is None


def test_bursts_show_in_the_variation_and_regular_arrivals_are_not_trusted() -> None:
    bursty, regular, count = TrafficWindow(60), TrafficWindow(60), 0
    for second in range(60):
        burst = tuple(f"r{count + i}" for i in range(30)) if second % 10 == 0 else ()
        count += len(burst)
        bursty.observe(100.0 + second, view(worker("d", pb.ROLE_DECODE, 1 + second, burst)))
        regular.observe(100.0 + second, view(worker("d", pb.ROLE_DECODE, 1 + second, (f"s{second}",))))
    assert bursty.traffic(159.0).arrival_cv2 > 4.0
    assert regular.traffic(159.0).arrival_cv2 == 1.0


@settings(max_examples=50, deadline=None)
@given(
    looks=st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.lists(
                st.tuples(
                    st.sampled_from(["a", "b", "c"]),
                    st.sampled_from([pb.ROLE_PREFILL, pb.ROLE_DECODE, pb.ROLE_BOTH, pb.ROLE_UNSPECIFIED]),
                    st.integers(0, 5),
                    st.integers(0, 2),
                    st.lists(st.sampled_from(["r1", "r2", "r3", "r4"]), max_size=4),
                    st.integers(0, 100),
                ),
                max_size=3,
            ),
        ),
        max_size=40,
    )
)
def test_whatever_heartbeats_come_the_tallies_stay_whole(
    looks: list[tuple[float, list[tuple[str, pb.Role.ValueType, int, int, list[str], int]]]],
) -> None:
    window, now = TrafficWindow(10), 1000.0
    for elapsed, beats in looks:
        now += elapsed
        window.observe(
            now,
            view(
                *(
                    worker(name, role, sequence, tuple(ids), epoch=epoch, queued=load, decoding=load)
                    for name, role, sequence, epoch, ids, load in beats
                )
            ),
        )
        window.check_integrity()
        traffic = window.traffic(now)
        assert 0.0 < traffic.observed_s <= 10.0
        assert 0.0 <= traffic.mean_rate <= traffic.rate + 1e-9
        assert traffic.num_busy_prefill >= 0.0
