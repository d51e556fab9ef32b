from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from router_fakes import busy, decode_worker, make_query, make_worker, prefill_worker, queued, view_of
from tandem_common.errors import NotFound, Unavailable
from tandem_router.config import RouterConfig
from tandem_router.policies import (
    POLICY_NAMES,
    CacheAware,
    Dynamo,
    LeastLoaded,
    Policy,
    PowerOfTwo,
    Predictive,
    RandomWorkers,
    RoundRobin,
)
from tandem_router.query import EXPLAIN_LIMITS, ROUTE_LIMITS, Decision
from tandem_router.view import ClusterView, WorkerLoad, WorkerRole

VIEW = view_of(
    *(prefill_worker(f"p{i}") for i in range(3)),
    *(decode_worker(f"d{i}", load=busy(2)) for i in range(2)),
)


def names(decision: Decision) -> tuple[str | None, str]:
    chosen = decision.chosen
    return (chosen.prefill.facts.worker_id if chosen.prefill else None, chosen.decode.facts.worker_id)


def run(policy: Policy, view: ClusterView, num_turns: int) -> list[tuple[str | None, str]]:
    return [
        names(policy.choose(make_query(turn=i, tie_break=i * 7919), view, ROUTE_LIMITS))
        for i in range(num_turns)
    ]


@pytest.mark.parametrize(
    "policy",
    [
        Predictive(),
        RoundRobin(),
        RandomWorkers(),
        LeastLoaded(),
        PowerOfTwo(),
        CacheAware(),
        Dynamo(),
    ],
)
class TestEveryPolicy:
    def test_answers_the_same_when_asked_again(self, policy: Policy) -> None:
        assert run(policy, VIEW, 20) == run(policy, VIEW, 20)

    def test_lists_every_candidate_when_explaining_with_the_same_choice_first(self, policy: Policy) -> None:
        query = make_query(turn=3, tie_break=5)
        route = policy.choose(query, VIEW, ROUTE_LIMITS)
        explained = policy.choose(query, VIEW, EXPLAIN_LIMITS)
        assert len(route.candidates) == 1
        assert names(route) == names(explained)
        assert len(explained.candidates) == explained.num_candidates > 1
        assert explained.policy == policy.name

    def test_never_sends_a_request_to_an_excluded_worker(self, policy: Policy) -> None:
        for turn in range(12):
            query = make_query(turn=turn, tie_break=turn, excluded_worker_ids=frozenset({"p0", "d1"}))
            decision = policy.choose(query, VIEW, ROUTE_LIMITS)
            assert names(decision)[0] != "p0"
            assert names(decision)[1] == "d0"
            assert set(decision.excluded) == {"p0", "d1"}

    def test_raises_what_the_caller_must_be_told(self, policy: Policy) -> None:
        with pytest.raises(NotFound):
            policy.choose(make_query(model="huge"), VIEW, ROUTE_LIMITS)
        with pytest.raises(Unavailable):
            policy.choose(make_query(), view_of(prefill_worker("p")), ROUTE_LIMITS)

    def test_uses_a_decode_worker_alone_when_nobody_can_prefill_for_it(self, policy: Policy) -> None:
        view = view_of(decode_worker("d"), prefill_worker("p", formats={("other", b""): 1}))
        assert names(policy.choose(make_query(4000), view, ROUTE_LIMITS)) == (None, "d")


def test_round_robin_gives_every_worker_of_a_side_its_turn() -> None:
    chosen = run(RoundRobin(), VIEW, 6)
    assert [prefill for prefill, _ in chosen] == ["p0", "p1", "p2"] * 2
    assert [decode for _, decode in chosen] == ["d0", "d1"] * 3


def test_random_spreads_evenly_and_depends_on_its_seed() -> None:
    chosen = run(RandomWorkers(seed=1), VIEW, 600)
    prefill = Counter(prefill for prefill, _ in chosen)
    decode = Counter(decode for _, decode in chosen)
    assert set(prefill) == {"p0", "p1", "p2"}
    assert min(prefill.values()) > 150
    assert min(decode.values()) > 240
    assert chosen != run(RandomWorkers(seed=2), VIEW, 600)


def test_least_loaded_takes_the_emptiest_of_each_side_whatever_is_cached() -> None:
    view = view_of(
        prefill_worker("p0", load=queued(100)),
        prefill_worker("p1", load=queued(50)),
        decode_worker("d0", load=busy(3)),
        decode_worker("d1", load=busy(2)),
    )
    query = make_query(cached_blocks={"p0": 60, "d0": 60})
    assert names(LeastLoaded().choose(query, view, ROUTE_LIMITS)) == ("p1", "d1")


def test_least_loaded_spreads_equal_workers_by_the_request() -> None:
    assert len(set(run(LeastLoaded(), VIEW, 60))) == 6


def test_the_simple_policies_let_both_workers_prefill_their_own_requests() -> None:
    view = view_of(
        make_worker("b0", WorkerRole.BOTH), make_worker("b1", WorkerRole.BOTH), prefill_worker("p")
    )
    for policy in (RoundRobin(), RandomWorkers(), LeastLoaded()):
        assert {prefill for prefill, _ in run(policy, view, 10)} == {None}


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_configuration_makes_the_policy_that_it_names(name: str) -> None:
    assert RouterConfig(policy=name).make_policy().name == name


def test_dynamo_costs_what_its_documentation_works_out() -> None:
    # Ten blocks of prompt; (overlap, blocks in use with the request) is (2, 10), (5, 5) and (8, 9).
    workers = [
        make_worker(f"w{i}", WorkerRole.BOTH, load=WorkerLoad(num_used_blocks=used))
        for i, used in enumerate((2, 0, 7))
    ]
    query = make_query(160, cached_blocks={"w0": 2, "w1": 5, "w2": 8})
    assert [Dynamo().cost(worker, query) for worker in workers] == [18, 10, 11]
    assert names(Dynamo().choose(query, view_of(*workers), ROUTE_LIMITS)) == (None, "w1")


def test_dynamo_gives_a_decode_worker_no_credit_for_its_cache_when_others_prefill() -> None:
    view = view_of(
        prefill_worker("p"),
        decode_worker("holds", load=WorkerLoad(num_used_blocks=1)),
        decode_worker("empty"),
    )
    query = make_query(1600, cached_blocks={"holds": 90})
    assert names(Dynamo().choose(query, view, ROUTE_LIMITS)) == ("p", "empty")


def test_cache_aware_follows_the_prefix_while_loads_are_balanced() -> None:
    def chosen(cached: int, load: int, cached_blocks: int = 0) -> str | None:
        holder = make_worker(
            "holder", WorkerRole.BOTH, load=WorkerLoad(num_sequences=load, num_cached_blocks=9)
        )
        other = make_worker("other", WorkerRole.BOTH, load=WorkerLoad(num_cached_blocks=cached_blocks))
        query = make_query(1600, cached_blocks={"holder": cached})
        return CacheAware().choose(query, view_of(holder, other), ROUTE_LIMITS).chosen.decode.facts.worker_id

    assert chosen(cached=50, load=60) == "holder"
    assert chosen(cached=50, load=70) == "other", "out of balance: the least loaded"
    assert chosen(cached=20, load=60) == "other", "short prefix: the one with the least in its cache"
    assert chosen(cached=20, load=60, cached_blocks=10) == "holder"


def test_power_of_two_never_takes_the_busier_of_two_and_spreads_over_all() -> None:
    view = view_of(*(decode_worker(f"d{i}", load=busy(i)) for i in range(5)))
    seen = Counter(decode for _, decode in run(PowerOfTwo(), view, 400))
    assert set(seen) == {"d0", "d1", "d2", "d3"}, "the busiest loses against each other one"
    assert seen["d0"] > seen["d1"] > seen["d2"] > seen["d3"]


def test_a_session_stays_with_its_workers_while_they_cost_hardly_more() -> None:
    view = view_of(decode_worker("d0"), decode_worker("d1"), decode_worker("far", load=busy(30)))
    for preferred, expected in (("d0", "d0"), ("d1", "d1"), ("far", None)):
        for tie_break in range(4):
            query = make_query(100, tie_break=tie_break, preferred_worker_ids=frozenset({preferred}))
            chosen = Predictive().choose(query, view, ROUTE_LIMITS).chosen.decode.facts.worker_id
            assert chosen == expected if expected else chosen != "far"


def test_a_hot_prefix_spreads_over_workers_as_its_holder_fills_up() -> None:
    workers = [make_worker(f"w{i}", WorkerRole.BOTH) for i in range(4)]
    query = make_query(4000, cached_blocks={"w0": 200})
    chosen = []
    loads: dict[str, WorkerLoad] = {}
    for _ in range(40):
        view = view_of(*workers).with_loads("tiny", loads)
        decision = Predictive().choose(query, view, ROUTE_LIMITS)
        worker = decision.chosen.decode
        chosen.append(worker.facts.worker_id)
        uncached = query.num_tokens - decision.chosen.predicted_cached_tokens
        loads[worker.facts.worker_id] = WorkerLoad(
            num_sequences=worker.load.num_sequences + 1,
            num_prefilling=worker.load.num_prefilling + 1,
            queued_prefill_tokens=worker.load.queued_prefill_tokens + uncached,
        )
    assert chosen[0] == "w0"
    assert set(chosen) == {"w0", "w1", "w2", "w3"}


@pytest.mark.parametrize(
    ("restriction", "left"),
    [
        ({"pinned_worker_ids": frozenset({"d1"})}, "d1"),
        ({"required_labels": {"region": "eu"}}, "d0"),
    ],
)
def test_pins_and_required_labels_leave_only_those_workers(restriction: dict[str, Any], left: str) -> None:
    view = view_of(decode_worker("d0", labels={"region": "eu", "x": "y"}), decode_worker("d1"))
    for policy in (Predictive(), LeastLoaded(), Dynamo()):
        for tie_break in range(3):
            query = make_query(100, tie_break=tie_break, **restriction)
            decision = policy.choose(query, view, ROUTE_LIMITS)
            assert decision.chosen.decode.facts.worker_id == left
            assert len(decision.excluded) == 1
    with pytest.raises(Unavailable):
        Predictive().choose(make_query(100, pinned_worker_ids=frozenset({"nobody"})), view, ROUTE_LIMITS)
