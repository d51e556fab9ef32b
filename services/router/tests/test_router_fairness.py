from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_router.fairness import FairShares


def serve(shares: FairShares, tenants: list[str], rounds: int, cost: int = 100) -> dict[str, int]:
    served = dict.fromkeys(tenants, 0)
    for _ in range(rounds):
        tenant = min(tenants, key=shares.counter)
        shares.charge(tenant, cost)
        served[tenant] += cost
    return served


def test_an_answer_of_another_length_than_charged_is_corrected_by_weight() -> None:
    shares = FairShares({"gold": 4.0})
    shares.charge("gold", 400)
    shares.charge("plain", 400)
    shares.correct("gold", 400)
    shares.correct("plain", -100)
    assert (shares.counter("gold"), shares.counter("plain")) == (200.0, 300.0)
    shares.correct("plain", -10_000)
    shares.correct("unknown", 5000)
    assert (shares.counter("plain"), shares.counter("unknown")) == (0.0, 0.0)
    shares.check_integrity()


def test_backlogged_tenants_are_served_by_their_weights() -> None:
    served = serve(FairShares({"gold": 4.0}), ["gold", "plain"], 1000)
    assert served["gold"] / served["plain"] == pytest.approx(4, rel=0.02)


def test_a_tenant_that_was_idle_gets_no_more_than_its_share_when_it_comes_back() -> None:
    shares = FairShares()
    serve(shares, ["busy"], 1000)
    shares.lift("back", ["busy"])
    served = serve(shares, ["busy", "back"], 100)
    assert abs(served["busy"] - served["back"]) <= 100


def test_lifting_never_takes_from_a_tenant_that_is_ahead() -> None:
    shares = FairShares()
    shares.charge("ahead", 500)
    shares.lift("ahead", ["new"])
    assert shares.counter("ahead") == 500
    shares.lift("new", ["ahead"])
    assert shares.counter("ahead") == shares.counter("new") == 500


@pytest.mark.parametrize("order", [("gold", "plain"), ("plain", "gold")])
def test_what_was_served_while_nobody_waited_is_held_against_nobody(order: tuple[str, str]) -> None:
    shares = FairShares({"gold": 4.0})
    for tenant in order:
        shares.charge(tenant, 1000)
    waiting: list[str] = []
    for tenant in order:
        shares.lift(tenant, waiting)
        waiting.append(tenant)
    assert shares.counter("gold") == shares.counter("plain") == 1000


def test_being_forgotten_is_no_gain() -> None:
    shares = FairShares(max_tenants=2)
    shares.charge("a", 100)
    shares.charge("b", 10)
    shares.charge("c", 10)
    assert shares.counter("a") >= 100


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}])
def test_weights_must_be_positive(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        FairShares(weights)


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0.5, 8), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 500)), max_size=60),
)
def test_counters_never_fall(weights: dict[str, float], charges: list[tuple[str, int]]) -> None:
    shares = FairShares(weights, max_tenants=3)
    for tenant, tokens in charges:
        before = shares.counter(tenant)
        shares.lift(tenant, "abcd")
        shares.charge(tenant, tokens)
        assert shares.counter(tenant) >= before
        shares.check_integrity()
