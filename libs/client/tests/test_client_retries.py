"""What is tried again, how often and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_client.errors import InvalidRequest, Overloaded, ServerError, Unavailable
from tandem_client.retries import Attempts, RetryBudget, RetryPolicy


def attempts(policy: RetryPolicy | None = None, budget: RetryBudget | None = None, **options) -> Attempts:
    given_options = {"idempotent": False, "deadline_s": 100.0, "randomness": lambda: 0.5, **options}
    return Attempts(policy or RetryPolicy(), budget or RetryBudget(), **given_options)


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_stays_within_its_bounds(num_failures, randomness):
    policy = RetryPolicy()
    wait_s = policy.backoff_s(num_failures, randomness)
    assert policy.first_backoff_s / 2 <= wait_s <= policy.max_backoff_s
    assert wait_s <= policy.backoff_s(num_failures + 1, randomness)


def test_the_servers_advice_is_the_least_wait():
    assert attempts().wait_s(Overloaded("x", retry_after_s=3.0), 0.0) > 3.0


def test_nothing_is_tried_again_that_cannot_finish_before_the_deadline():
    with pytest.raises(Unavailable):
        attempts(deadline_s=1.0).wait_s(Unavailable("x", retry_after_s=2.0), 0.0)


def test_attempts_are_counted():
    call = attempts(RetryPolicy(max_attempts=3))
    call.wait_s(Unavailable("x"), 0.0)
    call.wait_s(Unavailable("x"), 0.0)
    with pytest.raises(Unavailable):
        call.wait_s(Unavailable("x"), 0.0)


@pytest.mark.parametrize(
    ("error", "generation", "idempotent"),
    [
        (Unavailable("x"), True, True),
        (Overloaded("x"), False, True),
        (Overloaded("x", retry_after_s=1.0), True, True),
        (Overloaded("x", retry_after_s=31.0), False, False),
        (ServerError("x"), False, True),
        (InvalidRequest("x"), False, False),
    ],
)
def test_which_errors_are_tried_again(error, generation, idempotent):
    policy = RetryPolicy()
    assert policy.permits(error, idempotent=False) is generation
    assert policy.permits(error, idempotent=True) is idempotent


def test_a_struggling_server_is_not_buried_under_retries():
    budget = RetryBudget(capacity=10, refund=0.1)
    num_retries = 0
    for _ in range(50):
        call = attempts(budget=budget)
        try:
            call.wait_s(Unavailable("x"), 0.0)
            num_retries += 1
        except Unavailable:
            pass
    assert num_retries == 4
    for _ in range(80):
        budget.refund()
    attempts(budget=budget).wait_s(Unavailable("x"), 0.0)


@pytest.mark.parametrize(
    "values", [{"max_attempts": 0}, {"first_backoff_s": -1.0}, {"max_wait_s": float("nan")}]
)
def test_a_policy_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        RetryPolicy(**values)
