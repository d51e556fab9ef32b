"""The quick search against its slow reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_fakes import busy, decode_worker, make_query, make_worker, prefill_worker, queued, view_of
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router.choose import candidate_of, weigh
from tandem_router.eligible import eligible_workers
from tandem_router.policies import Predictive
from tandem_router.pricing import MillisecondPricing
from tandem_router.query import EXPLAIN_LIMITS, ROUTE_LIMITS, Query
from tandem_router.quick import find
from tandem_router.table import PoolTable
from tandem_router.view import ClusterView, Link, Links, Passable, Place, WorkerLoad, WorkerRole

PRICING = MillisecondPricing(expected_new_tokens=256, crowding_per_ms=0.002)


PASSABLE = st.lists(
    st.builds(
        Passable,
        below_tokens=st.sampled_from([100, 2000, 50_000]),
        tokens=st.integers(1, 4000),
        context=st.integers(0, 10**6),
    ),
    max_size=3,
).map(tuple)


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    count = draw(st.integers(1, 24))
    name = st.sampled_from(["", "a", "b", "c"])
    workers = []
    for number in range(count):
        role = WorkerRole.DECODE if number == 0 else draw(st.sampled_from(list(WorkerRole)))
        num_decoding = 0 if role is WorkerRole.PREFILL else draw(st.integers(0, 70))
        workers.append(
            make_worker(
                f"w{number}",
                role,
                load=WorkerLoad(
                    num_sequences=num_decoding + draw(st.integers(0, 4)),
                    num_decoding=num_decoding,
                    decode_kv_tokens=num_decoding * draw(st.integers(0, 500)),
                    num_prefilling=draw(st.integers(0, 4)),
                    queued_prefill_tokens=draw(st.integers(0, 9000)),
                    queued_prefill_context=draw(st.integers(0, 10**7)),
                    passable=draw(PASSABLE),
                    booked_prefill_tokens=draw(st.integers(0, 4000)),
                    num_used_blocks=draw(st.integers(0, 1000)),
                ),
                prefill_speed=PrefillSpeed(
                    a_ms=draw(st.floats(0, 5)), b_ms=draw(st.floats(0, 0.5)), c_ms=1e-5, num_samples=9
                ),
                decode_speed=DecodeSpeed(
                    a_ms=draw(st.floats(0, 9)), b_ms=draw(st.floats(0, 0.5)), c_ms=1e-4, num_samples=9
                ),
                place=Place(draw(name), draw(name), draw(name), draw(name)),
                links=draw(
                    st.dictionaries(
                        st.sampled_from(["w1", "w2"]),
                        st.builds(
                            Link,
                            bytes_per_ms=st.floats(1e4, 1e7),
                            latency_ms=st.floats(0, 50),
                        ),
                    )
                ),
                max_step_tokens=draw(st.sampled_from([64, 512])),
                seen_ms=draw(st.sampled_from([0.0, 900.0])),
            )
        )
    return view_of(*workers)


QUERIES = st.builds(
    make_query,
    st.sampled_from([1, 17, 500, 4000]),
    max_tokens=st.sampled_from([1, 100]),
    tie_break=st.integers(0, 100),
    now_ms=st.sampled_from([900.0, 1000.0]),
    demand=st.sampled_from([0.0, 3.0, 100.0]),
    cached_blocks=st.dictionaries(st.sampled_from([f"w{i}" for i in range(20)]), st.integers(1, 250)),
)


def table_of(view: ClusterView, before: PoolTable | None = None) -> PoolTable:
    table = PoolTable.of(view.pools["tiny"], before)
    assert table is not None
    return table


def cost_found(query: Query, table: PoolTable) -> float:
    found = find(query, table, PRICING, ROUTE_LIMITS.max_per_side)
    return candidate_of(query, PRICING, found.prefill, found.decode).cost


@settings(max_examples=150, deadline=None)
@given(views(), QUERIES)
def test_it_finds_as_cheap_a_candidate_as_the_reference(view: ClusterView, query: Query) -> None:
    (reference,) = weigh(query, eligible_workers(query, view), PRICING, ROUTE_LIMITS).candidates
    found = cost_found(query, table_of(view))
    if len(view.pools["tiny"]) <= ROUTE_LIMITS.max_per_side:
        assert found == pytest.approx(reference.cost)
    else:
        # Both bound the pairs; the tighter floors of the quick search may pick others, never by more than shipping.
        full = weigh(query, eligible_workers(query, view), PRICING, EXPLAIN_LIMITS).candidates
        dearest_ship = max((candidate.terms.get("ship", 0.0) for candidate in full), default=0.0)
        assert full[0].cost - 1e-6 <= found <= full[0].cost + dearest_ship + 1e-6


@settings(max_examples=50, deadline=None)
@given(views(), QUERIES, st.data())
def test_a_table_brought_up_to_date_is_the_same_as_a_new_one(
    view: ClusterView, query: Query, data: st.DataObject
) -> None:
    names = [worker.facts.worker_id for worker in view.pools["tiny"]]
    loads = {
        name: WorkerLoad(num_sequences=3, num_prefilling=1, queued_prefill_tokens=777)
        for name in data.draw(st.sets(st.sampled_from(names)))
    }
    later = view.with_loads("tiny", loads)
    updated = table_of(later, table_of(view))
    fresh = table_of(later)
    assert (updated.prefill_rows, updated.local_rows, updated.decode_rows) == (
        fresh.prefill_rows,
        fresh.local_rows,
        fresh.decode_rows,
    )
    assert (updated.prefill_columns, updated.decode_columns) == (fresh.prefill_columns, fresh.decode_columns)
    assert updated.not_plain >= fresh.not_plain
    assert find(query, updated, PRICING, 8) == find(query, fresh, PRICING, 8)


def test_a_link_measured_anew_is_heeded_by_a_table_brought_up_to_date() -> None:
    prefill = prefill_worker("p", load=queued(100, 1))
    slow = decode_worker("d", load=busy(3), links={"p": Link(bytes_per_ms=1e3, latency_ms=50.0)})
    fast = replace(slow, links=Links({"p": Link(bytes_per_ms=1e7, latency_ms=0.1)}))
    query = make_query(4000)
    before = table_of(view_of(prefill, slow))
    assert find(query, before, PRICING, 8).prefill is None
    later = table_of(view_of(prefill, fast), before)
    assert find(query, later, PRICING, 8).prefill is prefill
    assert find(query, table_of(view_of(prefill, slow), later), PRICING, 8).prefill is None


@pytest.mark.parametrize(
    "odd",
    [
        decode_worker("d2", draining=True),
        decode_worker("d2", block_size=32),
        decode_worker("d2", formats={("vllm", b"x"): 10}),
        decode_worker("d2", decode_speed=None),
        prefill_worker("p2", prefill_speed=None),
    ],
)
def test_pools_whose_workers_are_not_alike_are_left_to_the_reference(odd: object) -> None:
    assert PoolTable.of(view_of(decode_worker("d1"), odd).pools["tiny"], None) is None  # type: ignore[arg-type]


def test_requests_that_some_worker_cannot_take_are_left_to_the_reference() -> None:
    table = table_of(view_of(decode_worker("d1"), decode_worker("d2", num_blocks=100)))
    assert table.fits(1000, 100)
    assert not table.fits(1590, 100)
    assert not table.fits(1601, 1)
    assert table_of(view_of(decode_worker("d1"))).fits(8000, 100_000)


def test_the_policy_routes_as_it_explains() -> None:
    view = view_of(
        *(prefill_worker(f"p{i}", load=queued(100 * i, 1)) for i in range(4)),
        *(decode_worker(f"d{i}", load=busy(5 * i)) for i in range(4)),
    )
    policy = Predictive()
    for tie_break in range(20):
        query = make_query(2000, tie_break=tie_break, cached_blocks={"p2": 60})
        quick = policy.choose(query, view, ROUTE_LIMITS).chosen
        slow = policy.choose(query, view, EXPLAIN_LIMITS).chosen
        assert (quick.prefill, quick.decode, quick.terms) == (slow.prefill, slow.decode, slow.terms)
