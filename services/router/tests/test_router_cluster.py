from __future__ import annotations

import math

import pytest
from router_fakes import (
    DECODE_SPEED,
    PREFILL_SPEED,
    make_beat,
    make_card,
    make_query,
    registry_of,
)
from tandem.v1 import cluster_pb2 as pb
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.policies import LeastLoaded, Predictive
from tandem_router.query import ROUTE_LIMITS, Query
from tandem_router.view import Link, Place, WorkerLoad, WorkerRole, WorkerView

CARDS = (
    make_card("p0", pb.ROLE_PREFILL),
    make_card("p1", pb.ROLE_PREFILL),
    make_card("d0"),
    make_card("d1"),
)
BEATS = tuple(make_beat(card.worker_id) for card in CARDS)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(Bookings(max_age_s=5.0, max_per_worker=100), empty_grace_s=3.0)


def worker(cluster: Cluster, worker_id: str) -> WorkerView:
    return next(w for pool in cluster.view.pools.values() for w in pool if w.facts.worker_id == worker_id)


def route(cluster: Cluster, query: Query, now_s: float = 0.0) -> tuple[str | None, str]:
    decision = Predictive().choose(query, cluster.view, ROUTE_LIMITS)
    cluster.book(query, decision, now_s)
    chosen = decision.chosen
    return (chosen.prefill.facts.worker_id if chosen.prefill else None, chosen.decode.facts.worker_id)


def test_a_card_and_a_beat_become_a_view(cluster: Cluster) -> None:
    card = make_card(
        "d", labels={"host": "h", "rack": "r", "zone": "z", "hardware": "h100"}, model_revision="x"
    )
    beat = make_beat(
        "d",
        num_running=5,
        num_decoding=3,
        num_waiting=2,
        queued_prefill_tokens=700,
        decode_kv_tokens=900,
        num_used_blocks=70,
        num_awaited_blocks=10,
        links=[pb.LinkSpeed(source_worker_id="p", bytes_per_ms=5e5, latency_ms=0.5)],
    )
    cluster.observe(registry_of(card, beats=[beat]), 0.0)
    view = worker(cluster, "d")
    assert view.facts.place == Place(host="h", rack="r", zone="z")
    assert (view.facts.role, view.facts.hardware, view.facts.address) == (WorkerRole.DECODE, "h100", "d:1")
    assert view.load == WorkerLoad(
        num_sequences=7,
        num_decoding=3,
        decode_kv_tokens=900,
        num_prefilling=4,
        queued_prefill_tokens=700,
        num_used_blocks=80,
    )
    assert (view.prefill_speed, view.decode_speed) == (PREFILL_SPEED, DECODE_SPEED)
    assert view.links.measured == {"p": Link(bytes_per_ms=5e5, latency_ms=0.5)}


def test_a_worker_without_a_beat_is_usable_with_no_load(cluster: Cluster) -> None:
    cluster.observe(registry_of(make_card("d")), 0.0)
    assert worker(cluster, "d").load == WorkerLoad()
    assert route(cluster, make_query(100)) == (None, "d")


@pytest.mark.parametrize(
    "changes",
    [{"role": 0}, {"role": 99}, {"block_size": 0}, {"address": ""}, {"model": ""}, {"max_step_tokens": 0}],
)
def test_a_card_that_nobody_could_be_routed_to_is_left_out(
    cluster: Cluster, changes: dict[str, object]
) -> None:
    broken = make_card("broken")
    for name, value in changes.items():
        setattr(broken, name, value)
    cluster.observe(registry_of(broken, make_card("good")), 0.0)
    assert [w.facts.worker_id for w in cluster.view.pools["tiny"]] == ["good"]


def test_speeds_that_make_no_sense_are_not_believed(cluster: Cluster) -> None:
    beat = make_beat(
        "d",
        prefill_speed=pb.PrefillSpeed(a_ms=math.nan),
        decode_speed=pb.DecodeSpeed(b_ms=-1.0),
        links=[
            pb.LinkSpeed(source_worker_id="zero", bytes_per_ms=0.0),
            pb.LinkSpeed(source_worker_id="infinite", bytes_per_ms=math.inf),
            pb.LinkSpeed(source_worker_id="backwards", bytes_per_ms=1.0, latency_ms=-1.0),
        ],
    )
    cluster.observe(registry_of(make_card("d"), beats=[beat]), 0.0)
    view = worker(cluster, "d")
    assert (view.prefill_speed, view.decode_speed, view.links.measured) == (None, None, {})


def test_a_burst_between_two_beats_is_spread_over_equal_workers(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    routes = [route(cluster, make_query(2000, request_id=f"r{i}")) for i in range(8)]
    prefill, decode = zip(*routes, strict=True)
    assert (decode.count("d0"), decode.count("d1")) == (4, 4)
    assert prefill.count("p0") >= 2
    assert abs(prefill.count("p0") - prefill.count("p1")) <= 1


def test_bookings_load_both_workers_of_a_pair_until_their_beats_report_the_request(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    prefill, decode = route(cluster, make_query(2000, request_id="r1", cached_blocks={"p0": 50}))
    assert prefill == "p0"
    assert worker(cluster, "p0").load.queued_prefill_tokens == 2000 - 50 * 16
    assert worker(cluster, decode).load == WorkerLoad(
        num_sequences=1, decode_kv_tokens=2000, num_used_blocks=125
    )
    reported = [make_beat("p0", sequence=2, accepted_request_ids=["r1"]), *BEATS[1:]]
    cluster.observe(registry_of(*CARDS, beats=reported), 0.1)
    assert worker(cluster, "p0").load == WorkerLoad()
    assert worker(cluster, decode).load.num_sequences == 1


def test_a_request_that_is_routed_again_is_not_counted_twice(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    _, decode = route(cluster, make_query(2000, request_id="r1"))
    route(cluster, make_query(2010, request_id="r1", excluded_worker_ids=frozenset({decode})))
    assert worker(cluster, decode).load == WorkerLoad()
    assert len(cluster.bookings) == 2


def test_bookings_that_nobody_reports_leave_the_view(cluster: Cluster) -> None:
    registry = registry_of(*CARDS, beats=BEATS)
    cluster.observe(registry, 0.0)
    route(cluster, make_query(2000), now_s=1.0)
    cluster.observe(registry, 5.9)
    assert len(cluster.bookings) == 2
    cluster.observe(registry, 6.0)
    assert len(cluster.bookings) == 0
    assert all(w.load == WorkerLoad() for w in cluster.view.pools["tiny"])


def test_a_restarted_worker_starts_without_bookings(cluster: Cluster) -> None:
    cluster.observe(registry_of(make_card("d"), beats=[make_beat("d")]), 0.0)
    route(cluster, make_query(100))
    assert worker(cluster, "d").load.num_sequences == 1
    restarted = make_card("d", epoch=2)
    cluster.observe(registry_of(restarted, beats=[make_beat("d", epoch=2)]), 0.1)
    assert worker(cluster, "d").load == WorkerLoad()
    assert worker(cluster, "d").facts.epoch == 2


def test_a_view_never_changes_afterwards(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    before = cluster.view
    pools = dict(before.pools)
    route(cluster, make_query(2000))
    assert before.pools == pools
    assert cluster.view.pools != pools


def test_a_registry_that_is_suddenly_empty_is_bridged_for_a_while(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    cluster.observe({}, 10.0)
    assert len(cluster.view.pools["tiny"]) == 4
    # The workers come back one after the other.
    back = make_card("d0", address="d0:2")
    cluster.observe(registry_of(back), 11.0)
    assert len(cluster.view.pools["tiny"]) == 4
    assert worker(cluster, "d0").facts.address == "d0:2"
    cluster.observe(registry_of(back), 13.0)
    assert [w.facts.worker_id for w in cluster.view.pools["tiny"]] == ["d0"]
    cluster.observe({}, 20.0)
    cluster.observe({}, 24.0)
    assert cluster.view.pools == {}


def test_one_worker_that_leaves_is_gone_at_once(cluster: Cluster) -> None:
    cluster.observe(registry_of(*CARDS, beats=BEATS), 0.0)
    cluster.observe(registry_of(*CARDS[1:], beats=BEATS[1:]), 0.1)
    assert [w.facts.worker_id for w in cluster.view.pools["tiny"]] == ["d0", "d1", "p1"]


def test_workers_that_never_measured_borrow_speeds(cluster: Cluster) -> None:
    unmeasured = pb.WorkerBeat(worker_id="d0", epoch=1, sequence=1)
    cluster.observe(registry_of(*CARDS[:3], beats=[BEATS[0], unmeasured]), 0.0)
    assert worker(cluster, "d0").prefill_speed is not None
    assert worker(cluster, "p1").decode_speed is not None


def test_bookings_of_a_local_prefill_hold_the_prompt_once(cluster: Cluster) -> None:
    cluster.observe(registry_of(make_card("d"), beats=[make_beat("d")]), 0.0)
    query = make_query(160)
    cluster.book(query, LeastLoaded().choose(query, cluster.view, ROUTE_LIMITS), 0.0)
    assert worker(cluster, "d").load == WorkerLoad(
        num_sequences=1,
        num_prefilling=1,
        queued_prefill_tokens=160,
        booked_prefill_tokens=160,
        num_used_blocks=10,
    )


def test_a_view_tells_when_the_last_beat_came_not_when_it_was_looked_at(cluster: Cluster) -> None:
    first, second = make_beat("d", sequence=1), make_beat("d", sequence=2)
    for now_s, beat in ((1.0, first), (2.0, first), (3.0, second)):
        cluster.observe(registry_of(make_card("d"), beats=[beat]), now_s)
        assert worker(cluster, "d").seen_ms == (3000.0 if beat is second else 1000.0)
