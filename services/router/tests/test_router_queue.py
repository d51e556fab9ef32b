from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tandem_common.generation import RequestClass
from tandem_router.fairness import FairShares
from tandem_router.queue import QueueFull, RequestQueue, Waiting

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH


def waiting(key: int, **changes: Any) -> Waiting:
    defaults: dict[str, Any] = {
        "tenant": "a",
        "request_class": INTERACTIVE,
        "num_tokens": 100,
        "arrived_s": 0.0,
    }
    return Waiting(key=key, **(defaults | changes))


def make_queue(shares: FairShares | None = None, **changes: Any) -> RequestQueue:
    return RequestQueue(shares or FairShares(), **({"max_depth": 100, "starvation_s": 10.0} | changes))


def drain(queue: RequestQueue, shares: FairShares, now_s: float = 0.0) -> list[int]:
    order = []
    while (item := queue.head(now_s)) is not None:
        queue.remove(item)
        queue.started(item.request_class)
        shares.charge(item.tenant, item.num_tokens)
        order.append(item.key)
    return order


def test_interactive_goes_before_batch_and_earlier_deadlines_before_later_ones() -> None:
    shares = FairShares()
    queue = make_queue(shares)
    queue.push(waiting(1, request_class=BATCH, deadline_s=1.0))
    queue.push(waiting(2, deadline_s=9.0))
    queue.push(waiting(3, deadline_s=5.0))
    queue.push(waiting(4))
    queue.push(waiting(5, deadline_s=5.0))
    assert drain(queue, shares) == [3, 5, 2, 4, 1]


def test_tenants_are_served_by_their_weights_whoever_asks_more() -> None:
    shares = FairShares({"gold": 4.0})
    queue = make_queue(shares, max_depth=10_000)
    for key in range(3000):
        queue.push(waiting(key, tenant="plain" if key % 3 else "gold"))
    first = drain(queue, shares)[:1000]
    gold = sum(key % 3 == 0 for key in first)
    assert gold / (1000 - gold) == pytest.approx(4, rel=0.05)


def test_a_starved_batch_request_gets_one_turn_in_nine_and_no_more() -> None:
    shares = FairShares()
    queue = make_queue(shares, turns_per_starved=8)
    for key in range(30):
        queue.push(waiting(key))
    for key in range(100, 110):
        queue.push(waiting(key, request_class=BATCH))
    assert not any(key >= 100 for key in drain_some(queue, shares, now_s=9.9, count=10))
    later = drain_some(queue, shares, now_s=10.0, count=18)
    assert sum(key >= 100 for key in later) == 2
    assert [key for key in later if key >= 100] == [100, 101]


def drain_some(queue: RequestQueue, shares: FairShares, now_s: float, count: int) -> list[int]:
    order = []
    for _ in range(count):
        item = queue.head(now_s)
        assert item is not None
        queue.remove(item)
        queue.started(item.request_class)
        order.append(item.key)
    return order


def test_no_more_than_the_depth_may_wait() -> None:
    queue = make_queue(max_depth=1)
    queue.push(waiting(1))
    with pytest.raises(QueueFull):
        queue.push(waiting(2))
    assert [item.key for item in queue.items()] == [1]


def test_an_abandoned_request_leaves_the_queue_once() -> None:
    queue = make_queue()
    queue.push(waiting(1))
    assert queue.remove(waiting(1))
    assert not queue.remove(waiting(1))
    assert queue.head(0.0) is None
    assert queue.is_free_for(BATCH)


def test_those_past_their_deadline_or_too_old_are_overdue() -> None:
    queue = make_queue()
    queue.push(waiting(1, deadline_s=5.0, arrived_s=4.0))
    queue.push(waiting(2, arrived_s=0.0))
    queue.push(waiting(3, arrived_s=4.0))
    assert [item.key for item in queue.overdue(5.0, max_age_s=5.0)] == [1, 2]


def test_a_newcomer_waits_for_its_own_class_and_better_ones_only() -> None:
    queue = make_queue()
    queue.push(waiting(1, request_class=BATCH))
    assert queue.is_free_for(INTERACTIVE)
    assert not queue.is_free_for(BATCH)
    assert (queue.tokens_ahead_of(INTERACTIVE), queue.tokens_ahead_of(BATCH)) == (0, 100)


class QueueMachine(RuleBasedStateMachine):
    """Whatever comes and goes, orders and sums agree, and nobody is lost or served twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = FairShares({"b": 2.0})
        self.queue = make_queue(self.shares, max_depth=6)
        self.live: dict[int, Waiting] = {}
        self.now_s = 0.0
        self.next_key = 0

    @rule(
        tenant=st.sampled_from("abc"),
        request_class=st.sampled_from([INTERACTIVE, BATCH]),
        deadline_s=st.sampled_from([1.0, 5.0, math.inf]),
    )
    def push(self, tenant: str, request_class: RequestClass, deadline_s: float) -> None:
        self.next_key += 1
        item = waiting(
            self.next_key,
            tenant=tenant,
            request_class=request_class,
            deadline_s=deadline_s,
            arrived_s=self.now_s,
        )
        try:
            self.queue.push(item)
        except QueueFull:
            assert len(self.live) == 6
        else:
            self.live[item.key] = item

    @precondition(lambda self: self.live)
    @rule()
    def serve(self) -> None:
        item = self.queue.head(self.now_s)
        assert item is not None
        assert self.queue.remove(self.live.pop(item.key))
        self.queue.started(item.request_class)
        self.shares.charge(item.tenant, item.num_tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.live)))
        assert self.queue.remove(self.live.pop(key))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def holds(self) -> None:
        self.queue.check_integrity()
        self.shares.check_integrity()
        assert {item.key for item in self.queue.items()} == self.live.keys()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
