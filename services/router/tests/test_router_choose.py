from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_fakes import (
    FORMAT,
    busy,
    decode_worker,
    make_query,
    make_worker,
    prefill_worker,
    queued,
    view_of,
)
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router.choose import weigh
from tandem_router.eligible import eligible_workers
from tandem_router.policies import Predictive
from tandem_router.pricing import BlockPricing, MillisecondPricing, Pricing, pricing_for
from tandem_router.query import EXPLAIN_LIMITS, ROUTE_LIMITS, Candidate, Decision, Limits, Query
from tandem_router.view import ClusterView, Link, Place, WorkerLoad, WorkerRole, WorkerView

FULL = Limits(max_per_side=1000, max_listed=10_000, prune=False)


def choose(query: Query, *workers: WorkerView, limits: Limits = ROUTE_LIMITS) -> Decision:
    return Predictive().choose(query, view_of(*workers), limits)


def names(decision: Decision) -> tuple[str | None, str]:
    chosen = decision.chosen
    return (chosen.prefill.facts.worker_id if chosen.prefill else None, chosen.decode.facts.worker_id)


def test_a_long_prompt_is_prefilled_remotely_while_decode_is_busy() -> None:
    query = make_query(4000)
    assert names(choose(query, prefill_worker("p"), decode_worker("d", load=busy(16)))) == ("p", "d")


def test_a_long_prompt_does_not_go_to_an_empty_decode_worker_either() -> None:
    assert names(choose(make_query(4000), prefill_worker("p"), decode_worker("d"))) == ("p", "d")


def test_a_short_prompt_is_prefilled_where_it_is_decoded() -> None:
    query = make_query(8)
    assert names(choose(query, prefill_worker("p"), decode_worker("d", load=busy(1)))) == (None, "d")


def test_a_prompt_whose_prefix_is_cached_on_the_decode_worker_is_prefilled_there() -> None:
    workers = (prefill_worker("p"), decode_worker("d"))
    assert names(choose(make_query(4000, cached_blocks={"d": 249}), *workers)) == (None, "d")
    assert names(choose(make_query(4000, cached_blocks={"d": 10}), *workers)) == ("p", "d")


def test_a_local_prefill_waits_for_no_prefill_worker_that_is_far_behind() -> None:
    workers = (prefill_worker("p", load=queued(100_000, 20)), decode_worker("d"))
    assert names(choose(make_query(500), *workers)) == (None, "d")


@pytest.mark.parametrize("holder", ["p0", "p1", "p2"])
def test_a_request_with_a_cached_prefix_goes_to_the_prefill_worker_that_holds_it(holder: str) -> None:
    workers = [prefill_worker(f"p{i}") for i in range(3)]
    query = make_query(4000, cached_blocks={holder: 200})
    decision = choose(query, *workers, decode_worker("d", load=busy(8)))
    assert names(decision) == (holder, "d")
    assert decision.chosen.predicted_cached_tokens == 200 * 16


@pytest.mark.parametrize("holder", ["d0", "d1"])
def test_a_request_with_a_cached_prefix_goes_to_the_decode_worker_that_holds_it(holder: str) -> None:
    workers = [decode_worker(f"d{i}", load=busy(4)) for i in range(2)]
    assert names(choose(make_query(4000, cached_blocks={holder: 200}), *workers)) == (None, holder)


def test_load_overrules_cache_when_the_holder_is_far_behind() -> None:
    query = make_query(4000, cached_blocks={"holder": 240})
    holder = prefill_worker("holder", load=queued(40_000, 10))
    decision = choose(query, holder, prefill_worker("idle"), decode_worker("d", load=busy(8)))
    assert names(decision) == ("idle", "d")


def test_a_sequence_goes_where_it_slows_down_the_fewest() -> None:
    workers = [decode_worker("d0", load=busy(20)), decode_worker("d1", load=busy(3))]
    for tie_break in range(2):
        query = make_query(100, tie_break=tie_break)
        assert choose(query, prefill_worker("p"), *workers).chosen.decode.facts.worker_id == "d1"


def test_the_pair_beats_what_each_side_would_choose_alone() -> None:
    # Alone, "near-a" is the best prefill worker and "in-b" the best decode worker, but between them is a slow line.
    places = {"a": Place(region="a"), "b": Place(region="b")}
    workers = (
        prefill_worker("near-a", place=places["a"]),
        prefill_worker("in-b-behind", place=places["b"], load=queued(300)),
        decode_worker("in-b", place=places["b"], load=busy(4)),
        decode_worker("in-a-fuller", place=places["a"], load=busy(12)),
    )
    query = make_query(4000)
    weighed = choose(query, *workers, limits=FULL)
    cost = {
        (c.prefill and c.prefill.facts.worker_id, c.decode.facts.worker_id): c for c in weighed.candidates
    }
    greedy = cost["near-a", "in-b"]
    best = min(weighed.candidates, key=lambda candidate: candidate.cost)

    assert names(choose(query, *workers)) == ("in-b-behind", "in-b")
    assert best.cost < greedy.cost
    # The greedy pair is made of the best of each side.
    assert greedy.terms["queue"] < best.terms["queue"]
    assert greedy.terms["ship"] > best.terms["ship"]


def test_only_what_the_decode_worker_lacks_is_shipped() -> None:
    slow = {"p": Link(bytes_per_ms=1e5, latency_ms=1.0)}
    workers = (prefill_worker("p"), decode_worker("d", load=busy(30), links=slow))
    decisions = [
        choose(make_query(4000, cached_blocks={"p": 240, "d": n}), *workers, limits=FULL)
        for n in (0, 100, 200)
    ]
    ships = [
        candidate.terms["ship"]
        for decision in decisions
        for candidate in decision.candidates
        if candidate.prefill is not None
    ]
    assert ships[0] > ships[1] > ships[2]


def test_a_measured_link_overrules_what_its_distance_promises() -> None:
    here = Place(host="h", zone="z")
    slow_neighbour = {"near": Link(bytes_per_ms=2e4, latency_ms=5.0)}
    workers = (
        prefill_worker("near", place=here),
        prefill_worker("far", place=Place(host="other", zone="z")),
        decode_worker("d", place=here, load=busy(8), links=slow_neighbour),
    )
    assert names(choose(make_query(4000), *workers)) == ("far", "d")
    assert names(choose(make_query(4000), *workers[:2], decode_worker("d", place=here, load=busy(8)))) == (
        "near",
        "d",
    )


def test_a_faster_worker_is_worth_a_longer_queue() -> None:
    fast = PrefillSpeed(a_ms=1.0, b_ms=0.02, c_ms=0.0, num_samples=9)
    slow = PrefillSpeed(a_ms=1.0, b_ms=0.2, c_ms=0.0, num_samples=9)
    workers = (
        prefill_worker("fast", prefill_speed=fast, load=queued(6000)),
        prefill_worker("slow", prefill_speed=slow),
        decode_worker("d", load=busy(8)),
    )
    assert names(choose(make_query(4000), *workers)) == ("fast", "d")


def test_workers_that_share_no_handoff_format_are_not_paired() -> None:
    other = {("vllm", b"layout"): 1}
    workers = (
        prefill_worker("p", formats=other),
        decode_worker("d", load=busy(16)),
    )
    decision = choose(make_query(4000), *workers)
    assert names(decision) == (None, "d")
    assert decision.excluded == {
        "p": "shares no handoff format with a decode worker that can take the request"
    }


def test_a_pair_that_shares_two_formats_is_weighed_once() -> None:
    formats = {FORMAT: 10, ("vllm", b"x"): 10}
    decision = choose(
        make_query(400),
        prefill_worker("p", formats=formats),
        decode_worker("d", formats=formats),
        limits=FULL,
    )
    assert decision.num_candidates == len(decision.candidates) == 2


def test_a_both_worker_is_never_its_own_partner() -> None:
    workers = [make_worker(f"b{i}", WorkerRole.BOTH) for i in range(3)]
    decision = choose(make_query(4000), *workers, limits=FULL)
    assert decision.num_candidates == 3 + 3 * 2
    assert all(c.prefill is not c.decode for c in decision.candidates)


def test_a_both_worker_prefills_for_others_when_that_is_faster() -> None:
    workers = (make_worker("b", WorkerRole.BOTH), decode_worker("d"))
    query = make_query(4000, cached_blocks={"b": 200}, excluded_worker_ids=frozenset())
    full = make_worker("b", WorkerRole.BOTH, load=WorkerLoad(num_used_blocks=999))
    assert names(choose(query, *workers))[0] is None
    assert names(choose(query, full, workers[1])) == ("b", "d")


def test_equal_workers_take_turns_by_the_request() -> None:
    workers = [*(prefill_worker(f"p{i}") for i in range(3)), *(decode_worker(f"d{i}") for i in range(4))]
    chosen = {names(choose(make_query(4000, tie_break=i), *workers)) for i in range(12)}
    assert chosen == {(f"p{i}", f"d{j}") for i in range(3) for j in range(4)}
    same = [names(choose(make_query(4000, tie_break=5), *workers)) for _ in range(3)]
    assert len(set(same)) == 1


def test_the_cost_is_the_sum_of_the_terms_and_the_chosen_one_is_listed_first() -> None:
    workers = (prefill_worker("p"), decode_worker("d0", load=busy(3)), decode_worker("d1", load=busy(9)))
    decision = choose(make_query(3000), *workers, limits=EXPLAIN_LIMITS)
    costs = [candidate.cost for candidate in decision.candidates]
    assert costs == sorted(costs)
    assert len(costs) == decision.num_candidates == 4
    for candidate in decision.candidates:
        assert candidate.cost == pytest.approx(sum(candidate.terms.values()))
        assert ("ship" in candidate.terms) == (candidate.prefill is not None)


def test_the_predicted_time_to_first_token_leaves_out_what_comes_later() -> None:
    decision = choose(
        make_query(3000), prefill_worker("p", load=queued(900)), decode_worker("d", load=busy(9))
    )
    terms = decision.chosen.terms
    assert decision.unit == "ms"
    assert decision.predicted_ttft_ms == pytest.approx(
        terms["queue"] + terms["prefill"] + terms["ship"] + terms["room"]
    )


def test_blocks_are_counted_while_no_worker_knows_its_speed() -> None:
    unknown = {"prefill_speed": None, "decode_speed": None}
    workers = (
        prefill_worker("p0", load=queued(2000), **unknown),
        prefill_worker("p1", **unknown),
        decode_worker("d0", load=busy(9), **unknown),
        decode_worker("d1", **unknown),
    )
    decision = choose(make_query(1000), *workers)
    assert decision.unit == "blocks"
    assert decision.predicted_ttft_ms == 0.0
    assert names(decision) == ("p1", "d1")
    assert names(choose(make_query(1000, cached_blocks={"d0": 62}), *workers[1:3])) == (None, "d0")
    assert names(choose(make_query(1000, cached_blocks={"p0": 62, "p1": 1}), *workers)) == ("p1", "d1")
    assert names(choose(make_query(16), *workers)) == (None, "d1")


# ---- the search against a full one

LOADS = st.builds(
    lambda decoding, context, prompts, tokens: WorkerLoad(
        num_sequences=decoding + prompts,
        num_decoding=decoding,
        decode_kv_tokens=decoding * context,
        num_prefilling=prompts,
        queued_prefill_tokens=prompts * tokens,
        num_used_blocks=min(1000, decoding * (context // 16 + 1)),
    ),
    st.integers(0, 70),
    st.integers(1, 400),
    st.integers(0, 5),
    st.integers(1, 4000),
)
PLACES = st.builds(
    Place, host=st.sampled_from(["", "h0", "h1"]), zone=st.sampled_from(["", "z0", "z1"]), region=st.just("r")
)
PREFILL_SPEEDS = st.builds(
    PrefillSpeed,
    a_ms=st.sampled_from([0.0, 5.0]),
    b_ms=st.sampled_from([0.001, 0.1, 1.0]),
    c_ms=st.sampled_from([0.0, 1e-4]),
    num_samples=st.just(9),
)
DECODE_SPEEDS = st.builds(
    DecodeSpeed,
    a_ms=st.sampled_from([1.0, 5.0]),
    b_ms=st.sampled_from([0.0, 0.5]),
    c_ms=st.sampled_from([0.0, 1e-3]),
    num_samples=st.just(9),
)
LINKS = st.dictionaries(
    st.sampled_from(["w0", "w1", "w2", "w3"]),
    st.builds(Link, bytes_per_ms=st.sampled_from([1e3, 1e5, 1e7]), latency_ms=st.sampled_from([0.0, 10.0])),
    max_size=3,
)

FORMATS = st.sets(st.sampled_from([FORMAT, ("vllm", b"x")]), min_size=1)


@st.composite
def views(draw: st.DrawFn, max_workers: int) -> ClusterView:
    workers = [decode_worker("w-decode")]
    for i in range(draw(st.integers(1, max_workers))):
        workers.append(
            make_worker(
                f"w{i}",
                draw(st.sampled_from(WorkerRole)),
                load=draw(LOADS),
                prefill_speed=draw(PREFILL_SPEEDS),
                decode_speed=draw(DECODE_SPEEDS),
                links=draw(LINKS),
                place=draw(PLACES),
                formats=dict.fromkeys(draw(FORMATS), 100_000),
                max_step_tokens=draw(st.sampled_from([64, 512])),
            )
        )
    return view_of(*workers)


QUERIES = st.builds(
    make_query,
    st.sampled_from([1, 17, 500, 4000]),
    max_tokens=st.sampled_from([1, 100]),
    tie_break=st.integers(0, 100),
    cached_blocks=st.dictionaries(st.sampled_from([f"w{i}" for i in range(20)]), st.integers(1, 250)),
)
PRICINGS = st.sampled_from([MillisecondPricing(expected_new_tokens=256), BlockPricing()])


def weighed(query: Query, view: ClusterView, pricing: Pricing, limits: Limits) -> tuple[Candidate, ...]:
    return weigh(query, eligible_workers(query, view), pricing, limits).candidates


@settings(max_examples=80, deadline=None)
@given(views(max_workers=7), QUERIES, PRICINGS)
def test_with_few_workers_the_pruned_search_finds_what_the_full_one_finds(
    view: ClusterView, query: Query, pricing: Pricing
) -> None:
    everything = weighed(query, view, pricing, FULL)
    (found,) = weighed(query, view, pricing, ROUTE_LIMITS)
    assert found.cost == pytest.approx(everything[0].cost)


@settings(max_examples=40, deadline=None)
@given(views(max_workers=16), QUERIES, PRICINGS)
def test_with_many_workers_it_is_dearer_by_at_most_one_shipping_term(
    view: ClusterView, query: Query, pricing: Pricing
) -> None:
    everything = weighed(query, view, pricing, FULL)
    (found,) = weighed(query, view, pricing, Limits(max_per_side=2, max_listed=1, prune=True))
    dearest_ship = max((candidate.terms.get("ship", 0.0) for candidate in everything), default=0.0)
    assert everything[0].cost <= found.cost + 1e-6
    assert found.cost <= everything[0].cost + dearest_ship + 1e-6


@settings(max_examples=40, deadline=None)
@given(views(max_workers=7), QUERIES)
def test_the_bound_that_prunes_is_never_above_what_shipping_costs(view: ClusterView, query: Query) -> None:
    eligible = eligible_workers(query, view)
    pricing = pricing_for(eligible, MillisecondPricing(expected_new_tokens=256))
    sides = [(worker, pricing.prefill_side(worker, query)) for worker in eligible.prefill]
    for decode in eligible.decode:
        partners = [s for s in sides if s[0].facts.formats.keys() & decode.facts.formats.keys()]
        if not partners:
            continue
        longest = partners[0][1]._replace(
            prefill=max(terms.prefill for _, terms in partners),
            num_steps=max(terms.num_steps for _, terms in partners),
        )
        least = pricing.least_ship(longest, decode, query)
        for worker, terms in partners:
            assert least <= pricing.ship(worker, terms, decode, query) + 1e-9
