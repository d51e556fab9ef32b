from __future__ import annotations

from collections import Counter

import pytest
from router_fakes import busy, decode_worker, make_query, make_worker, prefill_worker, queued, view_of
from tandem_common.errors import NotFound, Unavailable
from tandem_router.config import RouterConfig
from tandem_router.policies import (
    POLICY_NAMES,
    LeastLoaded,
    Policy,
    Predictive,
    RandomWorkers,
    RoundRobin,
)
from tandem_router.query import EXPLAIN_LIMITS, ROUTE_LIMITS, Decision
from tandem_router.view import ClusterView, WorkerRole

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


@pytest.mark.parametrize("policy", [Predictive(), RoundRobin(), RandomWorkers(), LeastLoaded()])
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
